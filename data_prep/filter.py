"""Good rows out of many: rules named in the YAML, each counted, with examples of what it dropped.

    python data_prep/filter.py --config configs/filter_tiny.yaml

Rows of any of TRL's forms, as JSON lines; those that are kept are written as they are, in their order.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import Pool, cpu_count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

import numpy as np

from data_prep import near_duplicates
from data_prep.jsonl import Output, open_input, stop_if_done, what_is_asked, write_manifest
from data_prep.looking import CHUNK, RULES, Looked, begin_work, look
from data_prep.progress import Ticker
from utils.files import show
from utils.source import Source, UserError, read_config, run_main
from utils.strict import parse_fields
from utils.terminal import say

ON = ["prompt", "response", "both"]
MOST_COMPARED = 2_000_000_000  # rows x picks of `diversity`: about a minute on one core


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
        metadata={"help": "Responses in none of these are dropped: [en, de]; where it is not clear, kept."},
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
    settings = parse_fields(source, FilterConfig)
    check_together(source, settings)
    asked = what_is_asked(
        settings, [settings.dataset_name, *(settings.contamination or [])], ("workers", "dropped_to")
    )
    stop_if_done(settings.output_file, asked, settings.start_over)
    looked = look_at_all(settings)
    drop_copies(looked, settings)
    if settings.diversity:
        keep_different(looked, settings)
    counts = {"in": len(looked.rule), "out": int((looked.rule < 0).sum())} | looked.counts()
    if not counts["out"]:
        most = max(looked.counts().items(), key=lambda item: item[1], default=("nothing", 0))
        raise UserError(f"no row is left of {counts['in']:,}: {most[0]} dropped {most[1]:,}. Nothing was written")
    examples, made = write(looked, settings)
    found = {"counts": counts, "examples": examples, "output": made}
    write_manifest(settings.output_file, source, asked, found, began, ["rensa", "numpy", "xxhash"])
    for name, count in looked.counts().items():
        say("", f"{name:<18} {count:>10,} dropped")
    rate = counts["in"] / (time.time() - began)
    say(
        "done",
        f"{show(Path(settings.output_file))}: {counts['out']:,} of {counts['in']:,} rows ({rate:,.0f} a second)",
    )


def check_together(source: Source, settings: FilterConfig) -> None:
    bounds = (settings.min_tokens, settings.max_tokens, settings.max_prompt_tokens)
    if any(bound is not None for bound in bounds) and not settings.tokenizer:
        raise UserError(
            f"{source.path.name}: tokenizer: is missing. Name the model's folder, or count words: max_words"
        )
    if settings.embeddings and not settings.diversity:
        raise UserError("embeddings: has no effect without diversity. Write how many rows to keep, as diversity: 1000")
    if Path(settings.output_file).resolve() == Path(settings.dataset_name).resolve():
        raise UserError("output_file: is the input. Name another")


def look_at_all(settings: FilterConfig) -> Looked:
    """Every row looked at by the rules of single rows, in several processes; the result is that of one."""
    size = Path(settings.dataset_name).stat().st_size
    workers, parts, first = settings.workers or cpu_count(), [], 1
    with open_input(Path(settings.dataset_name)) as file, Ticker("filter", size, unit="bytes") as ticker:
        chunks = iter(lambda: list(islice(file, CHUNK)), [])
        if workers == 1 or size < 2_000_000:  # processes take longer to start than so few rows to read
            begin_work(settings)
            for chunk in chunks:
                parts.append(look(chunk))
                ticker.tick(sum(map(len, chunk)))
        else:
            with Pool(workers, begin_work, (settings,)) as pool:
                for part in pool.imap(look, chunks):
                    parts.append(part)
                    ticker.tick(part.bytes)
    for part in parts:
        if part.bad:
            line, reason = part.bad
            raise UserError(
                f"{Path(settings.dataset_name).name}:{first + line}: {reason}. Write one JSON object a line"
            )
        first += len(part.rule)
    if not parts or not sum(len(part.rule) for part in parts):
        raise UserError(f"{Path(settings.dataset_name).name}: has no rows")
    return Looked.joined(parts)


def drop_copies(looked: Looked, settings: FilterConfig) -> None:
    """Of rows that say the same, or nearly, the best-scored stays; of equals the shorter, then the first."""
    if settings.exact_duplicates:
        left = np.flatnonzero(looked.rule < 0)
        _, groups = np.unique(looked.exact[left], return_inverse=True)
        keep_the_best(looked, left, groups, "exact_duplicates")
    if settings.near_duplicates:
        left = np.flatnonzero(looked.rule < 0)
        groups = near_duplicates.clusters(looked.signature[left], settings.near_threshold)
        looked.signature = looked.signature[:0]  # half a gigabyte for a million rows
        keep_the_best(looked, left, groups, "near_duplicates")


def keep_the_best(looked: Looked, left: np.ndarray, groups: np.ndarray, rule: str) -> None:
    order = np.lexsort((left, looked.length[left], -looked.score[left], groups))
    ordered = groups[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    best = left[order][np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    for row, kept in zip(left[order][~first].tolist(), best[~first].tolist(), strict=True):
        looked.drop(row, rule, f"like row {looked.line[kept]:,}, which is kept")


def keep_different(looked: Looked, settings: FilterConfig) -> None:
    """Greedily the row that is least like those picked before (farthest first), from a seeded start.

    Likeness is the cosine of the prompts' words, rare ones counting more (hashed tf-idf), or of `embeddings`.
    """
    left = np.flatnonzero(looked.rule < 0)
    if len(left) <= settings.diversity:
        return
    if len(left) * settings.diversity > MOST_COMPARED:
        raise UserError(
            f"diversity: {settings.diversity:,} of {len(left):,} rows would be {len(left) * settings.diversity:,} "
            f"comparisons, and {MOST_COMPARED:,} are a minute. Keep fewer, or filter parts of the file"
        )
    vectors = looked.vector[left].astype(np.float32)
    if not settings.embeddings:
        vectors *= np.log((1 + len(left)) / (1 + (vectors > 0).sum(axis=0)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
    picked = [int(np.random.default_rng(settings.seed).integers(len(left)))]
    likeness = vectors @ vectors[picked[0]]
    for _ in range(settings.diversity - 1):
        likeness[picked[-1]] = np.inf
        picked.append(int(likeness.argmin()))
        likeness = np.maximum(likeness, vectors @ vectors[picked[-1]])
    for row in set(left.tolist()) - set(left[picked].tolist()):
        looked.drop(row, "diversity", "more like those kept than others are")


def write(looked: Looked, settings: FilterConfig) -> tuple[dict, dict]:
    """The kept rows, their lines as they were. Returns (examples of what was dropped by rule, rows and digest)."""
    examples: dict[str, list[dict]] = {}
    dropped = Output(settings.dropped_to).__enter__() if settings.dropped_to else None
    with open_input(Path(settings.dataset_name)) as file, Output(settings.output_file) as output:
        lines = (line for line in file if line.strip())
        for row, (line, rule) in enumerate(zip(lines, looked.rule.tolist(), strict=True)):
            if rule < 0:
                output.write_line(line)
                continue
            name, shown = RULES[rule], examples.setdefault(RULES[rule], [])
            if len(shown) < settings.examples:
                shown.append({"row": int(looked.line[row]), "why": looked.why[row], **headed(line, name)})
            if dropped:
                dropped.write(
                    json.loads(line) | {"_rule": name, "_why": looked.why[row], "_row": int(looked.line[row])}
                )
    if dropped:
        dropped.__exit__(None)
    return examples, output.made()


def headed(line: bytes, rule: str) -> dict:
    """The beginning of a row, for people; nothing of one that holds personal data."""
    if rule == "personal_data":
        return {"text": "(not shown)"}
    text = line.decode("utf-8", "replace").strip()
    return {"text": text[:300] + ("..." if len(text) > 300 else "")}


if __name__ == "__main__":
    run_main(main)
