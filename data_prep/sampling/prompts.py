"""Rows in any format as prompts of messages, beside the columns that score the answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.files import read_rows
from utils.config import Source, UserError, local_path
from utils.data import load_rows

if TYPE_CHECKING:
    from data_prep.generate import GenerateConfig


def read_prompts(source: Source, config: "GenerateConfig", to_prompt_row: Callable[[dict], dict]) -> list[dict]:
    """The rows through to_prompt_row. Raises UserError naming the row that has no question."""
    name = config.dataset_name
    path = local_path(source, "dataset_name", name)
    if path and path.suffix == ".jsonl":
        rows = list(read_rows(path))[: config.prompts]
    else:
        loaded = load_rows(str(path or name), config.dataset_config, config.dataset_train_split, None)
        rows = loaded.select(range(min(len(loaded), config.prompts or len(loaded)))).to_list()
    if not rows:
        raise UserError(f"{name}: has no rows")
    prompts = []
    for number, row in enumerate(rows, 1):
        where = f"{Path(name).name}, row {number}"
        try:
            made = to_prompt_row(row)
            prompt = made["prompt"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                f"{where}: to_prompt_row cannot read it: {type(error).__name__} {error}. Its columns: {', '.join(row)}"
            ) from None
        made["prompt"] = with_system_prompt(check_prompt(prompt, where), config.system_prompt)
        check_columns(made, where)
        prompts.append(made)
    return prompts


def check_prompt(prompt: object, where: str) -> list[dict]:
    """The prompt as messages. Raises UserError if it does not end with a question."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not messages or not isinstance(messages, list) or not all(isinstance(part, dict) for part in messages):
        raise UserError(f"{where}: its prompt is {prompt!r}; write a text or a list of messages")
    for message in messages:
        if "role" not in message or not isinstance(message.get("content"), (str, type(None))):
            raise UserError(
                f"{where}: its prompt has the message {message!r:.200}; write a role, and a text as content"
            )
    if messages[-1]["role"] not in ("user", "tool") or not (messages[-1].get("content") or "").strip():
        raise UserError(f"{where}: its prompt does not end with a question: the last message is {messages[-1]!r}")
    return messages


def with_system_prompt(messages: list[dict], system_prompt: str | None) -> list[dict]:
    if system_prompt and messages[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": system_prompt}, *messages]
    return messages


def check_columns(row: dict, where: str) -> None:
    """Raises UserError for a column that cannot be sent or written, before anything is sampled."""
    try:
        json.dumps(row)
        tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a column cannot be written as JSON ({error}). Change it in to_prompt_row") from None
    if not isinstance(tools, (list, type(None))):
        raise UserError(f"{where}: its tools are {tools!r:.80}; write a list of schemas, or one as JSON")
