"""Rows: loaded from files or the hub, checked, and split by a hash of the prompt.

A row is in training or in held-out by what it asks, not by where it stands: number of processes, order, shuffling and
resume cannot move it, and two rows with one prompt are always on the same side.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import datasets
from accelerate import PartialState

from utils.config import Config
from utils.rows import fault_of, is_held_out, is_identical_pair, prompt_key, row_key, shorten
from utils.source import ROOT, UserError

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
MARKS = ["_fault", "_prompt_key", "_row_key", "_identical"]  # made beside each row, and taken away before training


def load_splits(
    config: Config, to_training_row: Callable[[dict], dict], has_template: bool
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rows to train on and the rows to evaluate on, each passed through `to_training_row`.

    Training rows whose prompt is held out, and DPO pairs without a difference, are left out; these and duplicates
    go into `config.findings`. Raises UserError naming file and row if a row cannot be trained on.
    """
    with PartialState().main_process_first():  # the others then find the caches made
        train, heldout = make_splits(config, to_training_row)
    first = train[0]
    messages = any(isinstance(first.get(column), list) for column in ("messages", "prompt", "chosen"))
    if messages and not has_template:
        raise UserError(
            "chat_template: the rows are messages, and the tokenizer has no chat template. "
            "Write one that TRL ships (chat_template: qwen3) or a .jinja file"
        )
    calls = config.recipe.tools or (config.method == "grpo" and config.recipe.environment_factory)
    if calls and not messages:
        raise UserError("tools: the rows are texts, and tools need turns. Write prompts as messages")
    if config.method == "sft" and config.training.assistant_only_loss and not messages:
        raise UserError("assistant_only_loss: the rows are texts, without turns. Write assistant_only_loss: false")
    return train, heldout


def make_splits(config: Config, to_training_row: Callable[[dict], dict]) -> tuple[datasets.Dataset, datasets.Dataset]:
    recipe = config.recipe
    processes = None if config.method == "grpo" else config.training.dataset_num_proc
    parts = recipe.datasets or [{"path": recipe.dataset_name, "name": recipe.dataset_config}]
    loaded = []
    for part in parts:
        split = part.get("split", recipe.dataset_train_split)
        rows = load_rows(part["path"], part.get("name"), split, part.get("data_files"))
        rows = rows.select_columns(part["columns"]) if part.get("columns") else rows
        rows = prepare(rows, part["path"], to_training_row, config, processes)
        loaded.append(without_identical_pairs(rows, part["path"], config) if config.method == "dpo" else rows)
    train = mix(loaded, [part.get("fraction") for part in parts], config.training.seed)
    keys = train["_prompt_key"][:]
    if recipe.heldout_name:
        rows = load_rows(recipe.heldout_name, recipe.heldout_config, recipe.heldout_split, None)
        heldout = prepare(rows, recipe.heldout_name, to_training_row, config, None)
        kept_out = set(heldout["_prompt_key"][:])
        asked = [i for i, key in enumerate(keys) if key in kept_out]
        if asked:
            config.findings.add(
                "heldout_in_training",
                f"{len(asked):,} of {len(train):,} training rows ask a prompt of {Path(recipe.heldout_name).name} "
                f"(the first: {shorten(train[asked[0]])}) and are left out: figures on known prompts mean nothing. "
                "Remove them",
            )
            left_out = set(asked)
            train = train.select([i for i in range(len(train)) if i not in left_out])
    else:
        share = recipe.heldout_fraction
        marks = [is_held_out(key, share) for key in keys] if share else [False] * len(train)
        heldout = train.select([i for i, mark in enumerate(marks) if mark])
        train = train.select([i for i, mark in enumerate(marks) if not mark])
    if len(train) == 0:
        raise UserError("dataset_name: no rows are left to train on once the held-out prompts are taken out")
    find_duplicates(train, config)
    return train.remove_columns(MARKS), heldout.remove_columns(MARKS)


def find_duplicates(train: datasets.Dataset, config: Config) -> None:
    keys = train["_row_key"][:]
    counts = Counter(keys)
    if extra := len(train) - len(counts):
        most = counts.most_common(1)[0]
        first = keys.index(most[0])
        config.findings.add(
            "duplicate_rows",
            f"{extra:,} of {len(train):,} training rows are copies of others ({most[1]} times: "
            f"{shorten(train[first])}), so they weigh more than the rest. Remove the copies",
        )


def without_identical_pairs(rows: datasets.Dataset, name: str, config: Config) -> datasets.Dataset:
    """The pairs that differ. A pair without a difference has no gradient; over 5% of them stop the run."""
    same = [i for i, identical in enumerate(rows["_identical"][:]) if identical]
    if same:
        numbers = ", ".join(str(i + 1) for i in same[:5]) + (", ..." if len(same) > 5 else "")
        config.findings.add(
            "identical_pairs",
            f"{len(same):,} of {len(rows):,} pairs of {Path(name).name} have chosen equal to rejected "
            f"(rows {numbers}): they teach nothing and are left out. Remove them, or look at how the pairs were made",
            stops=len(same) > len(rows) / 20,
        )
    if len(same) == len(rows):
        raise UserError(f"{name}: chosen equals rejected in every one of the {len(rows)} rows: nothing can be learnt")
    differing = sorted(set(range(len(rows))) - set(same))
    return rows.select(differing) if same else rows


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
            part = split[split.index("[") :] if "[" in split else ""  # a file has one split, of which this is a slice
            return datasets.load_dataset(BUILDERS[path.suffix], data_files=str(path), split=f"train{part}")
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
    rows: datasets.Dataset, name: str, to_training_row: Callable[[dict], dict], config: Config, processes: int | None
) -> datasets.Dataset:
    """Every row through `to_training_row`, its form checked, its keys beside it (the columns of MARKS)."""
    if len(rows) == 0:
        raise UserError(f"{name}: has no rows")

    method = config.method
    system = config.recipe.system_prompt if method == "grpo" else None

    def with_marks(row: dict, **stale: str) -> dict:
        row = dict(to_training_row(row))  # of a row as it came, `map` would take the columns for removed ones
        fault = fault_of(row, method)
        if system and not fault and isinstance(row["prompt"], str):
            fault = "has a prompt of text, before which no system_prompt can stand; write messages"
        elif system and not fault and row["prompt"][0]["role"] not in ("system", "developer"):
            row["prompt"] = [{"role": "system", "content": system}, *row["prompt"]]
        keys = (b"", b"", False) if fault else (prompt_key(row), row_key(row), is_identical_pair(row))
        return row | dict(zip(MARKS, (fault or "", *keys), strict=True))

    try:
        rows = rows.map(
            with_marks,
            # With other checks, or other settings of the reference log-probabilities, what is cached is stale.
            fn_kwargs={"code": Path(__file__).read_text(), "reference": reference_settings(config)},
            remove_columns=rows.column_names,
            num_proc=processes,
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"{name}: to_training_row cannot read these rows: {type(error).__name__} {error}. "
            f"Columns that are there: {', '.join(rows.column_names)}"
        ) from None
    bad = [f"{Path(name).name}, row {i}: {fault}" for i, fault in enumerate(rows["_fault"][:], 1) if fault]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} rows cannot be trained on:{first_five(bad)}\n"
            "Mend or remove them, or turn them into training rows in to_training_row (train.py)."
        )
    return rows


def reference_settings(config: Config) -> str:
    """What DPO's reference log-probabilities hang on besides rows and weights. TRL keeps them by rows and weights
    alone, so a run with another max_length and truncation_mode: keep_end would take those of answers cut elsewhere.
    """
    names = ("max_length", "truncation_mode", "ld_alpha", "bf16", "fp16") if config.method == "dpo" else ()
    return repr({name: vars(config.training)[name] for name in names})


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
        columns = "; ".join(", ".join(name for name in part.column_names if name not in MARKS) for part in parts)
        raise UserError(f"datasets: the parts have different columns ({columns}). Unite them in to_training_row")
    return datasets.concatenate_datasets(parts)


def fingerprint(rows: datasets.Dataset, most: int = 20_000) -> str:
    """A hash of the rows' number, content and order, read off `most` rows evenly spread; the same on any machine."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for row in rows.select(range(0, len(rows), max(1, len(rows) // most))):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
