"""Rows: loaded from files or the hub, checked, and split by a hash of the prompt.

A row is in training or in held-out by its prompt, not by its place: number of processes, order, shuffling and
resume cannot move it, and two rows with one prompt are always on the same side.
"""

import contextlib
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import ROOT, Config, UserError, describe_error
from utils.data.rows import (
    BadRow,
    describe_row,
    is_held_out,
    is_identical_pair,
    prompt_key,
    row_fault,
    row_key,
)

if TYPE_CHECKING:
    from datasets import Dataset

Formats = Iterable[tuple[str, ...]]
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
MARKS = ["_fault", "_prompt_key", "_row_key", "_identical"]  # made beside each row, and taken away before training


def load_splits(
    config: Config, to_training_row: Callable[[dict], dict], formats: Formats, has_template: bool
) -> "tuple[Dataset, Dataset]":
    """The rows to train on and the rows to evaluate on, each passed through `to_training_row`.

    Args:
        to_training_row: any row in, a row of one of the `formats` out. It may raise BadRow.
        formats: the sets of columns of which a row needs one.
        has_template: whether the tokenizer has a chat template.

    Training rows whose prompt is held out, and pairs without a difference, are left out; these and duplicates go into
    `config.findings`. Raises UserError naming file and row if a row cannot be trained on.
    """
    from accelerate import PartialState

    with PartialState().local_main_process_first():  # the others then find the rows prepared
        train, heldout = make_splits(config, to_training_row, formats)
    first = train[0]
    messages = any(isinstance(first.get(column), list) for column in ("messages", "prompt", "chosen"))
    if messages and not has_template:
        raise UserError(
            "chat_template: the rows are messages, and the tokenizer has no chat template. "
            "Write one that TRL ships (chat_template: qwen3) or a .jinja file"
        )
    if (config.recipe.tools or config.recipe.environment_factory) and not messages:
        raise UserError("tools: the rows are plain texts, and tools need messages. Write prompts as messages")
    if vars(config.training).get("assistant_only_loss") and not messages:
        raise UserError(
            "assistant_only_loss: the rows are plain texts, without turns. Write assistant_only_loss: false"
        )
    return train, heldout


def make_splits(
    config: Config, to_training_row: Callable[[dict], dict], formats: Formats
) -> "tuple[Dataset, Dataset]":
    recipe = config.recipe
    processes = vars(config.training).get("dataset_num_proc")
    parts = recipe.datasets or [{"path": recipe.dataset_name, "name": recipe.dataset_config}]
    loaded = []
    for part in parts:
        split = part.get("split", recipe.dataset_train_split)
        rows = load_rows(part["path"], part.get("name"), split, part.get("data_files"))
        rows = rows.select_columns(part["columns"]) if part.get("columns") else rows
        rows = prepare(rows, part["path"], to_training_row, formats, config, processes)
        pairs = any("chosen" in columns for columns in formats)
        loaded.append(without_identical_pairs(rows, part["path"], config) if pairs else rows)
    train = mix(loaded, [part.get("fraction") for part in parts], config.training.seed)
    keys = train["_prompt_key"][:]
    if recipe.heldout_name:
        rows = load_rows(recipe.heldout_name, recipe.heldout_config, recipe.heldout_split, None)
        heldout = prepare(rows, recipe.heldout_name, to_training_row, formats, config, None)
        kept_out = set(heldout["_prompt_key"][:])
        leaked = [i for i, key in enumerate(keys) if key in kept_out]
        if leaked:
            config.findings.add(
                "heldout_in_training",
                f"{len(leaked):,} of {len(train):,} training rows have a prompt of {Path(recipe.heldout_name).name} "
                f"(the first: {describe_row(train[leaked[0]])}) and are left out: figures on known prompts mean "
                "nothing. Remove them",
            )
            left_out = set(leaked)
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


def find_duplicates(train: "Dataset", config: Config) -> None:
    keys = train["_row_key"][:]
    counts = Counter(keys)
    if extra := len(train) - len(counts):
        most = counts.most_common(1)[0]
        first = keys.index(most[0])
        config.findings.add(
            "duplicate_rows",
            f"{extra:,} of {len(train):,} training rows are copies of others ({most[1]} times: "
            f"{describe_row(train[first])}), so they count more than the rest. Remove the copies",
        )


def without_identical_pairs(rows: "Dataset", name: str, config: Config) -> "Dataset":
    """The pairs that differ. A pair without a difference has no gradient; over 5% of them stop the run."""
    same = [i for i, identical in enumerate(rows["_identical"][:]) if identical]
    if same:
        numbers = ", ".join(str(i + 1) for i in same[:5]) + (", ..." if len(same) > 5 else "")
        config.findings.add(
            "identical_pairs",
            f"{len(same):,} of {len(rows):,} pairs of {Path(name).name} have chosen equal to rejected "
            f"(rows {numbers}): they teach nothing and are left out. Remove them, or check how the pairs were made",
            stops=len(same) > len(rows) / 20,
        )
    if len(same) == len(rows):
        raise UserError(f"{name}: chosen equals rejected in every one of the {len(rows)} rows: nothing can be learnt")
    differing = sorted(set(range(len(rows))) - set(same))
    return rows.select(differing) if same else rows


def load_rows(name: str, subset: str | None, split: str, files: object) -> "Dataset":
    """The rows of a file, of a hub data set, or of a builder with `data_files`."""
    import datasets

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
    rows: "Dataset",
    name: str,
    to_training_row: Callable[[dict], dict],
    formats: Formats,
    config: Config,
    processes: int | None,
) -> "Dataset":
    """Every row through `to_training_row`, its format checked, its keys beside it (the columns of MARKS).

    The rows' fingerprint is of what came out, so that what `datasets` and TRL cache of them is never stale, whatever
    `to_training_row` calls or reads. Raises UserError naming file and row.
    """
    from accelerate import PartialState

    if len(rows) == 0:
        raise UserError(f"{name}: has no rows")
    columns = output_columns(rows, to_training_row, formats)

    def with_marks(row: dict, index: int) -> dict:
        try:
            made = dict(to_training_row(row))  # of a row as it came, `map` would take the columns for removed ones
            fault = row_fault(made, formats)
        except BadRow as error:
            made, fault = dict(row), str(error)
        except Exception as error:  # the function to edit is the user's
            raise UserError(
                f"{Path(name).name}, row {index + 1}: to_training_row cannot read it. Columns that are there: "
                f"{', '.join(row)}. {describe_error(error)}"
            ) from error
        if not fault and (others := made.keys() - columns.keys()):
            fault = f"has the columns {', '.join(sorted(others))}, which the first row has not"
        keys = (b"", b"", False) if fault else (prompt_key(made), row_key(made), is_identical_pair(made))
        values = columns if fault else columns | made  # `datasets` wants the same columns in every row
        return values | dict(zip(MARKS, (fault or "", *keys), strict=True))

    rows = rows.map(
        with_marks,
        with_indices=True,
        remove_columns=rows.column_names,
        num_proc=processes,
        load_from_cache_file=not PartialState().is_local_main_process,  # what the main process has just made
    )
    bad = [f"{Path(name).name}, row {i}: {fault}" for i, fault in enumerate(rows["_fault"][:], 1) if fault]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} rows cannot be trained on:{first_five(bad)}\n"
            "Correct or remove them, or turn them into training rows in to_training_row (train.py)."
        )
    rows = rows.remove_columns([name for name in columns if rows.data.column(name).null_count == len(rows)])
    needed = {name for names in formats for name in names} & set(rows.column_names)
    if mixed := sorted(name for name in needed if rows.data.column(name).null_count):
        raise UserError(
            f"{Path(name).name}: only some rows have {' and '.join(mixed)}: they are in different formats. Unite them "
            "in to_training_row"
        )
    return with_content_fingerprint(rows, cut_settings(config))


def output_columns(rows: "Dataset", to_training_row: Callable[[dict], dict], formats: Formats) -> dict[str, None]:
    """Every column that a training row may have: the file's own, those of the formats, and those of the first row that
    `to_training_row` can read.
    """
    columns = dict.fromkeys([*rows.column_names, *(name for names in formats for name in names)])
    for row in rows:
        with contextlib.suppress(Exception):  # reported with its number when all rows are read
            return columns | dict.fromkeys(to_training_row(row))
    return columns


def prepare_rows(
    rows: "Dataset", name: str, to_training_row: Callable[[dict], dict], formats: Formats, config: Config
) -> "Dataset":
    """The rows through `to_training_row`, all of them, for what is not training. Raises UserError as load_splits
    does.
    """
    return prepare(rows, name, to_training_row, formats, config, None).remove_columns(MARKS)


def with_content_fingerprint(rows: "Dataset", more: str) -> "Dataset":
    """The rows, with a fingerprint of their content, and of `more`, in place of one of the code that made them."""
    import datasets

    digest = hashlib.sha256(more.encode())
    for batch in rows.data.to_batches():
        for column in batch.columns:
            for buffer in column.buffers():
                digest.update(buffer or b"")
    return datasets.Dataset(rows.data, rows.info, rows.split, fingerprint=digest.hexdigest()[:16])


def cut_settings(config: Config) -> str:
    """What log-probabilities of a reference model depend on besides rows and weights. TRL caches them by rows and
    weights alone, so a run with another max_length and truncation_mode: keep_end would get those of answers cut
    elsewhere.
    """
    names = ("max_length", "truncation_mode", "ld_alpha", "bf16", "fp16")
    return repr({name: vars(config.training).get(name) for name in names})


def mix(parts: "list[Dataset]", fractions: list[float | None], seed: int) -> "Dataset":
    """All rows of all parts; with fractions, a seeded sample of each that has those shares and repeats no row."""
    if any(fraction is not None for fraction in fractions):
        given = [fraction for fraction in fractions if isinstance(fraction, (int, float)) and fraction > 0]
        if len(given) < len(fractions):
            raise UserError("datasets: give a fraction above 0 to every data set of the mixture, or to none")
        shares = [fraction / sum(given) for fraction in given]
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
    import datasets

    return datasets.concatenate_datasets(parts)


def fingerprint(rows: "Dataset | list[dict]", most: int = 20_000) -> str:
    """A hash of the rows' number, content and order, read off `most` rows evenly spread; the same on any machine."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for i in range(0, len(rows), max(1, len(rows) // most)):
        digest.update(json.dumps(rows[i], sort_keys=True, default=str).encode(errors="replace"))
    return digest.hexdigest()[:16]
