"""Keeps the good rows of a file: rules named in the YAML, each counted, with examples of what it dropped.

    python data_prep/filter.py --config configs/filter_tiny.yaml

JSON lines in any of TRL's row formats; the rows that are kept are written unchanged, in their order.
"""

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

import numpy as np
from pydantic import Field

from data_prep.files import Output, check_outputs, made_from, open_input, publish, stop_if_done
from data_prep.filters import (
    RULES,
    ScanResult,
    drop_duplicates,
    find_personal_data,
    keep_diverse,
    scan_file,
    tokenizer_file,
)
from utils.config import InputFile, OutputFile, Source, UserError, parse_fields, read_config, run_main
from utils.files import say, show

NOT_SHOWN = "(not shown: personal data)"


@dataclass
class FilterConfig:
    """The rules; those without a value are off."""

    dataset_name: Annotated[InputFile, Field(description="The JSONL file to filter.")]
    output_file: Annotated[OutputFile, Field(description="The JSONL file to write.")]
    dropped_to: Annotated[OutputFile | None, Field(description="Write dropped rows here, with _rule and _why.")] = None
    min_score: Annotated[float | None, Field(description="Drop rows whose column `score` is less.")] = None
    tokenizer: Annotated[
        str | None, Field(description="A model's folder (or tokenizer.json), by which tokens are counted.")
    ] = None
    min_tokens: Annotated[int | None, Field(ge=0, description="Tokens of a response, at least.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="Tokens of a response, at most.")] = None
    max_prompt_tokens: Annotated[int | None, Field(ge=1, description="Tokens of a prompt, at most.")] = None
    min_words: Annotated[int | None, Field(ge=0, description="Words of a response, at least.")] = None
    max_words: Annotated[int | None, Field(ge=1, description="Words of a response, at most.")] = None
    languages: Annotated[
        list[str] | None,
        Field(description="Drop responses that are clearly in none of these: [en, de] (ISO 639)."),
    ] = None
    refusals: Annotated[bool, Field(description="Drop refusals and boilerplate at the start of a response.")] = False
    broken_format: Annotated[
        bool, Field(description="Drop unclosed <think>, tool calls, code fences, boxes; cut-off responses.")
    ] = False
    truncated_endings: Annotated[
        bool, Field(description="Drop responses whose last line ends in the middle (a heuristic).")
    ] = False
    repetition: Annotated[bool, Field(description="Drop responses that repeat lines or sequences of words.")] = False
    personal_data: Annotated[
        bool, Field(description="Drop rows with e-mail or IP addresses, telephone, card or account numbers, or keys.")
    ] = False
    contamination: Annotated[
        list[InputFile] | None,
        Field(description="Held-out rows and benchmarks, as JSONL files: rows with similar prompts are dropped."),
    ] = None
    contamination_ngram: Annotated[int, Field(ge=1, le=100, description="Words of an n-gram.")] = 13
    contamination_share: Annotated[
        float, Field(gt=0, le=1, description="Drop a row if this share of its prompt's n-grams is held out.")
    ] = 0.5
    exact_duplicates: Annotated[
        Literal["prompt", "response", "both"] | None,
        Field(description="What is compared, ignoring case and spacing."),
    ] = None
    near_duplicates: Annotated[
        Literal["prompt", "response", "both"] | None, Field(description="What is compared, by MinHash.")
    ] = None
    near_threshold: Annotated[
        float, Field(ge=0.3, le=1, description="The overlap (Jaccard) of word n-grams from which rows are alike.")
    ] = 0.7
    near_ngram: Annotated[int, Field(ge=1, le=20, description="Words of an n-gram.")] = 3
    near_permutations: Annotated[int, Field(ge=16, le=1024, description="Permutations of MinHash.")] = 128
    diversity: Annotated[
        int | None, Field(ge=1, description="Keep this many rows, those whose prompts differ most.")
    ] = None
    embeddings: Annotated[
        str | None, Field(description="For diversity: a column of numbers, instead of the prompt's words.")
    ] = None
    examples: Annotated[int, Field(ge=0, le=1000, description="Rows that each rule drops, shown in the manifest.")] = 5
    workers: Annotated[int, Field(ge=0, le=1024, description="Processes; 0: one for each core.")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Seed of the first pick of diversity.")] = 42
    start_over: Annotated[bool, Field(description="Replace what an earlier run has written.")] = False


def main() -> None:
    source, began = read_config(__doc__, fields=FilterConfig), time.time()
    config = parse_fields(source, FilterConfig)
    check_config(source, config)
    inputs = [config.dataset_name, *(config.contamination or [])]
    check_outputs(inputs, {"output_file": config.output_file, "dropped_to": config.dropped_to})
    inputs += [str(tokenizer_file(config.tokenizer))] if config.tokenizer else []
    outputs = [config.output_file, *([config.dropped_to] if config.dropped_to else [])]
    settings = made_from(config, inputs, ("workers", "dropped_to"))
    stop_if_done(outputs, settings, start_over=config.start_over)
    result = scan_file(config)
    drop_duplicates(result, config)
    keep_diverse(result, config)
    dropped = result.counts()
    counts = {"in": len(result.rule), "out": int((result.rule < 0).sum())} | dropped
    if not counts["out"]:
        name = max(dropped, key=lambda rule: dropped[rule])
        row = int(np.flatnonzero(result.rule == RULES.index(name))[0])
        raise UserError(
            f"no row is left of {counts['in']:,}: {name} dropped {dropped[name]:,}, the first in line "
            f"{result.line[row]}: {without_personal_data(result.why[row], config)}. Nothing was written"
        )
    files = [Output(path, with_manifest=True) for path in outputs]
    results = {"counts": counts, "examples": write(result, config, *files)}
    publish(files, source, settings, results, began, ["rensa", "numpy", "xxhash", "py3langid"])
    for name, count in dropped.items():
        say("", f"{name:<18} {count:>10,} dropped")
    rate = counts["in"] / (time.time() - began)
    kept = f"{counts['out']:,} of {counts['in']:,} rows ({rate:,.0f} a second)"
    say("done", f"{show(Path(config.output_file))}: {kept}")


def check_config(source: Source, config: FilterConfig) -> None:
    bounds = (config.min_tokens, config.max_tokens, config.max_prompt_tokens)
    if any(bound is not None for bound in bounds) and not config.tokenizer:
        raise UserError(
            f"{source.path.name}: tokenizer: is missing. Name the model's folder, or count words: max_words"
        )
    if config.embeddings and not config.diversity:
        raise UserError("embeddings: has no effect without diversity. Write how many rows to keep: diversity: 1000")


def write(result: ScanResult, config: FilterConfig, kept: Output, dropped: Output | None = None) -> dict:
    """Writes the kept rows, their lines unchanged, and the dropped. Returns examples of what was dropped, by rule."""
    examples: dict[str, list[dict]] = {}
    with open_input(Path(config.dataset_name)) as file, kept, dropped or nullcontext():
        lines = (line for line in file if line.strip())
        for row, (line, rule) in enumerate(zip(lines, result.rule.tolist(), strict=True)):
            if rule < 0:
                kept.write_line(line)
                continue
            shown = examples.setdefault(RULES[rule], [])
            if len(shown) < config.examples:
                shown.append({"row": int(result.line[row])} | example(line, result.why[row], config))
            if dropped:
                reason = {"_rule": RULES[rule], "_why": result.why[row], "_row": int(result.line[row])}
                dropped.write(json.loads(line) | reason)
    return examples


def example(line: bytes, why: str, config: FilterConfig) -> dict:
    """Why a row was dropped, and its beginning; nothing of a row with personal data, whatever the rule."""
    text = line.decode("utf-8", "replace").strip()
    if config.personal_data and find_personal_data(text):
        return {"why": without_personal_data(why, config), "text": NOT_SHOWN}
    return {"why": why, "text": text[:300] + ("..." if len(text) > 300 else "")}


def without_personal_data(why: str, config: FilterConfig) -> str:
    return NOT_SHOWN if config.personal_data and find_personal_data(why) else why


if __name__ == "__main__":
    run_main(main)
