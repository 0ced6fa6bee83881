"""What is asked: rows of any form as prompts of messages, beside what will score the answers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from data_prep.files.jsonl import read_rows
from utils.config import Source, UserError, local_path


def read_prompts(source: Source, settings, to_prompt_row: Callable[[dict], dict]) -> list[dict]:
    """The rows through to_prompt_row. Raises UserError naming the row that asks nothing."""
    name = settings.dataset_name
    path = local_path(source, "dataset_name", name)
    if path and path.suffix == ".jsonl":
        rows = list(read_rows(path))[: settings.prompts]
    else:
        from utils.data import load_rows

        loaded = load_rows(str(path or name), settings.dataset_config, settings.dataset_train_split, None)
        rows = loaded.select(range(min(len(loaded), settings.prompts or len(loaded)))).to_list()
    if not rows:
        raise UserError(f"{name}: has no rows")
    made = []
    for number, row in enumerate(rows, 1):
        try:
            row = to_prompt_row(row)
            prompt = row["prompt"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{Path(name).name}, row {number}: to_prompt_row cannot read it: {type(error).__name__} {error}. "
                f"Columns that are there: {', '.join(row)}"
            ) from None
        where = f"{Path(name).name}, row {number}"
        row["prompt"] = with_system(prompt, settings.system_prompt, where)
        check_row(row, where)
        made.append(row)
    return made


def check_row(row: dict, where: str) -> None:
    """Raises UserError for a column that cannot be sent or written, before anything is asked."""
    try:
        json.dumps(row)
        tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a column cannot be written as JSON ({error}). Change it in to_prompt_row") from None
    if not isinstance(tools, (list, type(None))):
        raise UserError(f"{where}: its tools are {tools!r:.80}; write a list of schemas, or one as JSON")


def with_system(prompt: object, system: str | None, where: str) -> list[dict]:
    """The prompt as messages, the system prompt first. Raises UserError if it asks nothing."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or not isinstance(messages, list) or not all(isinstance(part, dict) for part in messages):
        raise UserError(f"{where}: its prompt is {prompt!r}; write a text or a list of messages")
    for message in messages:
        if "role" not in message or not isinstance(message.get("content"), (str, type(None))):
            raise UserError(f"{where}: its prompt holds {message!r:.200}; write a role, and a text as content")
    if messages[-1]["role"] not in ("user", "tool") or not (messages[-1].get("content") or "").strip():
        raise UserError(f"{where}: its prompt does not end with a question: the last message is {messages[-1]!r}")
    if system and messages[0].get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}, *messages]
    return messages


def fingerprint(rows: list[dict]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
