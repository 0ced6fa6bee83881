"""Rows: loaded from files or the hub, checked, and split by a hash of the prompt.

A row is in training or in held-out by what it asks, not by where it stands: number of processes, order, shuffling and
resume cannot move it, and two rows with one prompt are always on the same side.
"""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import datasets
from accelerate import PartialState

from utils.config import Config
from utils.source import ROOT, UserError
from utils.terminal import say

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
FORMATS = "messages; prompt and completion; text"
ROLES = {"system", "developer", "user", "assistant", "tool"}


def load_splits(
    config: Config, to_training_row: Callable[[dict], dict], has_template: bool
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rows to train on and the rows to evaluate on, each passed through `to_training_row`.

    Training rows whose prompt is held out are dropped and counted. Raises UserError naming file and row if a row
    cannot be trained on.
    """
    with PartialState().main_process_first():  # the others then find the caches made
        train, heldout = make_splits(config, to_training_row)
    messages = isinstance(train[0].get("messages", train[0].get("prompt")), list)
    if messages and not has_template:
        raise UserError(
            "chat_template: the rows are messages, and the tokenizer has no chat template. "
            "Write one that TRL ships (chat_template: qwen3) or a .jinja file"
        )
    if config.training.assistant_only_loss and not messages:
        raise UserError("assistant_only_loss: the rows are texts, without turns. Write assistant_only_loss: false")
    return train, heldout


def make_splits(config: Config, to_training_row: Callable[[dict], dict]) -> tuple[datasets.Dataset, datasets.Dataset]:
    recipe = config.recipe
    parts = recipe.datasets or [{"path": recipe.dataset_name, "name": recipe.dataset_config}]
    loaded = []
    for part in parts:
        split = part.get("split", recipe.dataset_train_split)
        rows = load_rows(part["path"], part.get("name"), split, part.get("data_files"))
        rows = rows.select_columns(part["columns"]) if part.get("columns") else rows
        loaded.append(prepare(rows, part["path"], to_training_row, config.training.dataset_num_proc))
    train = mix(loaded, [part.get("fraction") for part in parts], config.training.seed)
    if recipe.heldout_name:
        rows = load_rows(recipe.heldout_name, None, recipe.heldout_split, None)
        heldout = prepare(rows, recipe.heldout_name, to_training_row, None)
        kept_out = set(map(prompt_key, heldout))
        allowed = [i for i, row in enumerate(train) if prompt_key(row) not in kept_out]
        if len(allowed) < len(train):
            say("LEAK", f"{len(train) - len(allowed):,} training rows ask a held-out prompt and are left out")
        train = train.select(allowed)
    else:
        share = recipe.heldout_fraction
        marks = [is_held_out(row, share) for row in train] if share else [False] * len(train)
        heldout = train.select([i for i, mark in enumerate(marks) if mark])
        train = train.select([i for i, mark in enumerate(marks) if not mark])
    if len(train) == 0:
        raise UserError("dataset_name: no rows are left to train on once the held-out prompts are taken out")
    return train, heldout


def load_rows(name: str, subset: str | None, split: str, files: object) -> datasets.Dataset:
    """The rows of a file, of a hub data set, or of a builder with `data_files`."""
    path = Path(name)
    path = path if path.is_absolute() else ROOT / path
    if not path.is_file() and path.suffix in BUILDERS:
        raise UserError(f"{name}: there is no file {path}")
    try:
        if path.is_file():
            if path.suffix not in BUILDERS:
                raise UserError(f"{name}: rows are read from {', '.join(BUILDERS)} files")
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train")
        return datasets.load_dataset(name, subset, data_files=files, split=split)
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError, StopIteration) as error:
        if path.is_file() and path.suffix == ".jsonl":
            check_lines(path)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{name}: the rows cannot be read: {reason[0]}") from None


def check_lines(path: Path) -> None:
    """Name the lines of a JSONL file that are not JSON objects."""
    bad, rows = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            rows += 1
            try:
                if not isinstance(json.loads(line), dict):
                    bad.append(f"{path.name}:{number}: is not a JSON object")
            except json.JSONDecodeError as error:
                bad.append(f"{path.name}:{number}: is not JSON: {error.msg} at column {error.colno}")
    if not rows:
        raise UserError(f"{path.name}: has no rows")
    if bad:
        raise UserError("Write one JSON object a line:" + first_five(bad))


def first_five(faults: list[str]) -> str:
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    return "".join(f"\n  {fault}" for fault in faults[:5]) + more


def prepare(
    rows: datasets.Dataset, name: str, to_training_row: Callable[[dict], dict], processes: int | None
) -> datasets.Dataset:
    """Every row through `to_training_row`, and every row's form checked."""
    if len(rows) == 0:
        raise UserError(f"{name}: has no rows")
    try:
        rows = rows.map(to_training_row, remove_columns=rows.column_names, num_proc=processes)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{name}: to_training_row cannot read these rows: {type(error).__name__} {error}. "
            f"Columns that are there: {', '.join(rows.column_names)}"
        ) from None
    bad = []
    for number, row in enumerate(rows, 1):
        fault = fault_of(row)
        if fault:
            bad.append(f"{Path(name).name}, row {number}: {fault}")
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} rows cannot be trained on:{first_five(bad)}\n"
            "Mend or remove them, or turn them into training rows in to_training_row (train.py)."
        )
    return rows


def fault_of(row: dict) -> str | None:
    """What keeps a row from being trained on, or None."""
    if not ({"messages", "text"} & row.keys() or {"prompt", "completion"} <= row.keys()):
        return f"has the columns {', '.join(row)}; a row needs: {FORMATS}"
    for column in ("messages", "prompt", "completion", "text"):
        if column not in row:
            continue
        value = row[column]
        if not value or (isinstance(value, str) and not value.strip()):
            return f"{column} is empty"
        if not isinstance(value, (str, list)):
            return f"{column} is {value!r}; write a text or a list of messages"
        if isinstance(value, list):
            for message in value:
                if not isinstance(message, dict):
                    return f"{column}: {message!r} is not a message with role and content"
                role, content = message.get("role"), message.get("content")
                if role not in ROLES:
                    return f"{column}: {role!r} is not a role; write one of {', '.join(sorted(ROLES))}"
                if not content and not message.get("tool_calls"):
                    return f"{column}: the {role} message is empty"
    if "prompt" in row and type(row["prompt"]) is not type(row["completion"]):
        return "prompt and completion must both be texts, or both lists of messages"
    last = row.get("messages") or row.get("completion")
    if isinstance(last, list) and not any(message["role"] == "assistant" for message in last):
        return "has no assistant message to learn from"
    return None


def mix(parts: list[datasets.Dataset], fractions: list[float | None], seed: int) -> datasets.Dataset:
    """All rows of all parts; with fractions, a seeded sample of each that has those shares and repeats no row."""
    if any(fraction is not None for fraction in fractions):
        if not all(isinstance(fraction, (int, float)) and fraction > 0 for fraction in fractions):
            raise UserError("datasets: give a fraction above 0 to every data set of the mixture, or to none")
        shares = [fraction / sum(fractions) for fraction in fractions]
        total = min(len(part) / share for part, share in zip(parts, shares, strict=True))
        parts = [
            part.select(sorted(random.Random(seed).sample(range(len(part)), round(share * total))))
            for part, share in zip(parts, shares, strict=True)
        ]
    if len(parts) == 1:
        return parts[0]
    if len({tuple(sorted(part.column_names)) for part in parts}) > 1:
        columns = "; ".join(", ".join(part.column_names) for part in parts)
        raise UserError(f"datasets: the parts have different columns ({columns}). Unite them in to_training_row")
    return datasets.concatenate_datasets(parts)


def split_prompt(row: dict) -> tuple[list[dict] | str | None, str]:
    """(prompt, reference answer): what comes before the last assistant turn, and that turn's text.

    The prompt is a list of messages, a text, or None for plain text rows, which ask nothing.
    """
    if "completion" in row:
        completion = row["completion"]
        return row["prompt"], completion if isinstance(completion, str) else completion[-1]["content"] or ""
    if "messages" in row:
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        return row["messages"][:last], row["messages"][last]["content"] or ""
    return None, row["text"]


def prompt_key(row: dict) -> bytes:
    """What a row asks first, whatever the spacing and case: rows that share it are never split."""
    prompt, text = split_prompt(row)
    if isinstance(prompt, list):
        asked = [message["content"] or "" for message in prompt if message["role"] == "user"]
        text = asked[0] if asked else json.dumps(prompt)
    elif isinstance(prompt, str):
        text = prompt
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def is_held_out(row: dict, fraction: float) -> bool:
    return int.from_bytes(prompt_key(row)[:8]) < fraction * 2**64


def fingerprint(rows: datasets.Dataset, most: int = 20_000) -> str:
    """A hash of the rows' number, content and order, read off `most` rows evenly spread; the same on any machine."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for row in rows.select(range(0, len(rows), max(1, len(rows) // most))):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
