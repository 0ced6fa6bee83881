"""Keeps the good rows of a file: rules named in the YAML, each counted, with examples of what it dropped.

    python data_prep/filter.py --config configs/filter_tiny.yaml

JSON lines in any of TRL's row formats; the rows that are kept are written unchanged, in their order.
"""

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

import numpy as np

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
from utils.config import Source, UserError, parse_fields, read_config, run_main
from utils.files import say, show

ON = ["prompt", "response", "both"]
NOT_SHOWN = "(not shown: personal data)"


@dataclass
class FilterConfig:
    """The rules; those without a value are off."""

    dataset_name: str = field(metadata={"help": "The JSONL file to filter.", "path": "file"})
    output_file: str = field(metadata={"help": "The JSONL file to write.", "path": "output"})
    dropped_to: str | None = field(
        default=None, metadata={"help": "Also write what is dropped, with _rule and _why.", "path": "output"}
    )
    min_score: float | None = field(default=None, metadata={"help": "Rows whose column score is less are dropped."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "A model's folder (or tokenizer.json), by which tokens are counted."}
    )
    min_tokens: int | None = field(default=None, metadata={"help": "Of a response.", "range": (0, None)})
    max_tokens: int | None = field(default=None, metadata={"help": "Of a response.", "range": (1, None)})
    max_prompt_tokens: int | None = field(default=None, metadata={"help": "Of a prompt.", "range": (1, None)})
    min_words: int | None = field(default=None, metadata={"help": "Of a response.", "range": (0, None)})
    max_words: int | None = field(default=None, metadata={"help": "Of a response.", "range": (1, None)})
    languages: list[str] | None = field(
        default=None,
        metadata={"help": "Responses that are clearly in none of these are dropped: [en, de] (ISO 639)."},
    )
    refusals: bool = field(default=False, metadata={"help": "Refusals and boiler-plate at the head of a response."})
    broken_format: bool = field(
        default=False,
        metadata={"help": "Unclosed <think>, tool calls, code fences, boxes; responses that were cut off."},
    )
    truncated_endings: bool = field(
        default=False, metadata={"help": "Responses whose last line ends in the middle (a heuristic)."}
    )
    repetition: bool = field(default=False, metadata={"help": "Lines or runs of words that come again and again."})
    personal_data: bool = field(
        default=False, metadata={"help": "E-mail addresses, telephone, card and account numbers, IP addresses, keys."}
    )
    contamination: list[str] | None = field(
        default=None,
        metadata={
            "help": "Held-out rows and benchmarks, as JSONL files: rows that ask the like are dropped.",
            "path": "file",
        },
    )  # fmt: skip
    contamination_ngram: int = field(default=13, metadata={"help": "Words of a run.", "range": (1, 100)})
    contamination_share: float = field(
        default=0.5, metadata={"help": "The share of a prompt's runs that must be known.", "range": (1e-9, 1)}
    )
    exact_duplicates: str | None = field(
        default=None, metadata={"help": "prompt, response or both; case and punctuation aside.", "choices": ON}
    )
    near_duplicates: str | None = field(default=None, metadata={"help": "prompt, response or both.", "choices": ON})
    near_threshold: float = field(
        default=0.7,
        metadata={"help": "The overlap (Jaccard) of word runs from which rows are alike.", "range": (0.3, 1)},
    )
    near_ngram: int = field(default=3, metadata={"help": "Words of a run.", "range": (1, 20)})
    near_permutations: int = field(default=128, metadata={"help": "Of MinHash.", "range": (16, 1024)})
    diversity: int | None = field(
        default=None, metadata={"help": "Keep so many rows, those whose prompts differ most.", "range": (1, None)}
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "For diversity: a column of numbers, in place of the prompt's words."}
    )
    examples: int = field(
        default=5, metadata={"help": "Of what each rule drops, in the manifest.", "range": (0, 1000)}
    )
    workers: int = field(default=0, metadata={"help": "Processes; 0: one for each core.", "range": (0, 1024)})
    seed: int = field(default=42, metadata={"help": "Of the first pick of diversity."})
    start_over: bool = field(default=False, metadata={"help": "Replace what an earlier run has made."})


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
    if config.diversity:
        keep_diverse(result, config)
    dropped = result.counts()
    counts = {"in": len(result.rule), "out": int((result.rule < 0).sum())} | dropped
    if not counts["out"]:
        name = max(dropped, key=dropped.get)
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
