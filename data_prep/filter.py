"""Good rows out of many: rules named in the YAML, each counted, with examples of what it dropped.

    python data_prep/filter.py --config configs/filter_tiny.yaml

Rows of any of TRL's forms, as JSON lines; those that are kept are written as they are, in their order.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from multiprocessing import cpu_count
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

import numpy as np
from pydantic import Field

from data_prep.files.jsonl import Output, check_files, open_input, publish, stop_if_done, what_is_asked
from data_prep.filters import near_duplicates
from data_prep.filters.personal_data import personal_data
from data_prep.filters.scan import RULES, Looked, begin_work, chunks_of, look, tokenizer_file
from utils.config import InputFile, OutputFile, Source, UserError, parse_fields, read_config, run_main
from utils.files import Ticker, say, show

NOT_SHOWN = "(not shown: personal data)"
MOST_COMPARED = 2_000_000_000  # rows x picks of `diversity`: about a minute on one core


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
    min_tokens: Annotated[int | None, Field(ge=0, description="Of a response.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="Of a response.")] = None
    max_prompt_tokens: Annotated[int | None, Field(ge=1, description="Of a prompt.")] = None
    min_words: Annotated[int | None, Field(ge=0, description="Of a response.")] = None
    max_words: Annotated[int | None, Field(ge=1, description="Of a response.")] = None
    languages: Annotated[
        list[str] | None,
        Field(description="Drop responses that are clearly in none of these: [en, de] (ISO 639)."),
    ] = None
    refusals: Annotated[bool, Field(description="Refusals and boilerplate at the start of a response.")] = False
    broken_format: Annotated[
        bool, Field(description="Unclosed <think>, tool calls, code fences, boxes; responses that were cut off.")
    ] = False
    truncated_endings: Annotated[
        bool, Field(description="Responses whose last line ends in the middle (a heuristic).")
    ] = False
    repetition: Annotated[bool, Field(description="Lines or sequences of words that are repeated.")] = False
    personal_data: Annotated[
        bool, Field(description="E-mail addresses; telephone, card and account numbers; IP addresses; keys.")
    ] = False
    contamination: Annotated[
        list[InputFile] | None,
        Field(description="Held-out rows and benchmarks, as JSONL files: rows with similar prompts are dropped."),
    ] = None
    contamination_ngram: Annotated[int, Field(ge=1, le=100, description="Words of an n-gram.")] = 13
    contamination_share: Annotated[
        float, Field(gt=0, le=1, description="The share of a prompt's n-grams that must be known.")
    ] = 0.5
    exact_duplicates: Annotated[
        Literal["prompt", "response", "both"] | None,
        Field(description="What is compared; case and punctuation aside."),
    ] = None
    near_duplicates: Annotated[
        Literal["prompt", "response", "both"] | None, Field(description="What is compared, by MinHash.")
    ] = None
    near_threshold: Annotated[
        float, Field(ge=0.3, le=1, description="The overlap (Jaccard) of word n-grams from which rows are alike.")
    ] = 0.7
    near_ngram: Annotated[int, Field(ge=1, le=20, description="Words of an n-gram.")] = 3
    near_permutations: Annotated[int, Field(ge=16, le=1024, description="Of MinHash.")] = 128
    diversity: Annotated[
        int | None, Field(ge=1, description="Keep this many rows, those whose prompts differ most.")
    ] = None
    embeddings: Annotated[
        str | None, Field(description="For diversity: a column of numbers, instead of the prompt's words.")
    ] = None
    examples: Annotated[int, Field(ge=0, le=1000, description="Rows that each rule drops, shown in the manifest.")] = 5
    workers: Annotated[int, Field(ge=0, le=1024, description="Processes; 0: one for each core.")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Of the first pick of diversity.")] = 42
    start_over: Annotated[bool, Field(description="Replace what an earlier run has written.")] = False


def main() -> None:
    source, began = read_config(__doc__, fields=FilterConfig), time.time()
    settings = parse_fields(source, FilterConfig)
    check_together(source, settings)
    inputs = [settings.dataset_name, *(settings.contamination or [])]
    check_files(inputs, {"output_file": settings.output_file, "dropped_to": settings.dropped_to})
    inputs += [str(tokenizer_file(settings.tokenizer))] if settings.tokenizer else []
    outputs = [settings.output_file, *([settings.dropped_to] if settings.dropped_to else [])]
    asked = what_is_asked(settings, inputs, ("workers", "dropped_to"))
    stop_if_done(outputs, asked, start_over=settings.start_over)
    looked = look_at_all(settings)
    drop_copies(looked, settings)
    if settings.diversity:
        keep_different(looked, settings)
    counts = {"in": len(looked.rule), "out": int((looked.rule < 0).sum())} | looked.counts()
    if not counts["out"]:
        name, most = max(looked.counts().items(), key=lambda item: item[1])
        row = int(np.flatnonzero(looked.rule == RULES.index(name))[0])
        raise UserError(
            f"no row is left of {counts['in']:,}: {name} dropped {most:,}, first row {looked.line[row]}: "
            f"{told(looked.why[row], settings)}. Nothing was written"
        )
    files = [Output(path, with_manifest=True) for path in outputs]
    found = {"counts": counts, "examples": write(looked, settings, *files)}
    publish(files, source, asked, found, began, ["rensa", "numpy", "xxhash", "py3langid"])
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


def look_at_all(settings: FilterConfig) -> Looked:
    """Every row looked at by the rules of single rows, in several processes; the result is that of one."""
    size = Path(settings.dataset_name).stat().st_size
    workers, parts, first = settings.workers or cpu_count(), [], 1
    begin_work(settings)  # here too, so that what is wrong with a held-out file or a tokenizer is told once
    if size < 2_000_000:  # processes take longer to start than so few rows to read
        workers = 1
    with open_input(Path(settings.dataset_name)) as file, Ticker("filter", size, unit="bytes") as ticker:
        chunks = chunks_of(file)
        for part in map(look, chunks) if workers == 1 else looked_at_by(workers, settings, chunks):
            if part.bad:
                line, reason = part.bad
                raise UserError(
                    f"{Path(settings.dataset_name).name}:{first + line}: {reason}. Write one JSON object a line"
                )
            first += part.lines
            parts.append(part)
            ticker.tick(part.bytes)
    if not any(len(part.rule) for part in parts):
        raise UserError(f"{Path(settings.dataset_name).name}: has no rows")
    return Looked.joined(parts)


def looked_at_by(workers: int, settings: FilterConfig, chunks: Iterator[list[bytes]]) -> Iterator[Looked]:
    """What `look` finds, in the order of the chunks, a few of which are under way at a time."""
    with ProcessPoolExecutor(workers, initializer=begin_work, initargs=(settings,)) as pool:
        waiting = deque(pool.submit(look, chunk) for chunk in islice(chunks, 2 * workers))
        try:
            while waiting:
                part = waiting.popleft().result()
                waiting.extend(pool.submit(look, chunk) for chunk in islice(chunks, 1))
                yield part
        except BrokenProcessPool:
            raise UserError(
                "a process was ended from outside, most likely for want of memory. Write fewer, as workers: 1"
            ) from None


def drop_copies(looked: Looked, settings: FilterConfig) -> None:
    """Of rows that say the same, the best-scored stays, of equals the shorter; of those that say nearly the same, of
    equals the first. Rows without what is compared are copies of none."""
    if settings.exact_duplicates:
        left = np.flatnonzero((looked.rule < 0) & (looked.exact != 0))
        order = left[np.lexsort((left, looked.length[left], -looked.score[left], looked.exact[left]))]
        first = np.concatenate([[True], np.diff(looked.exact[order]) != 0])[: len(order)]
        kept = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
        for row, like in zip(order[~first].tolist(), kept[~first].tolist(), strict=True):
            looked.drop(row, "exact_duplicates", f"like row {looked.line[like]:,}, which is kept")
    if settings.near_duplicates:
        left = np.flatnonzero((looked.rule < 0) & (looked.words > 0))
        found = looked.signature if len(left) == len(looked.rule) else looked.signature[left]
        looked.signature = np.zeros((0, 0), np.uint32)  # half a gigabyte for a million rows
        order, ways = np.lexsort((left, -looked.score[left])), 2 if settings.near_duplicates == "both" else 1
        for row, like in near_duplicates.copies(found, settings.near_threshold, ways, order):
            looked.drop(left[row], "near_duplicates", f"like row {looked.line[left[like]]:,}, which is kept")


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
    vectors, looked.vector = looked.vector[left], np.zeros((0, 0), np.float32)
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


def write(looked: Looked, settings: FilterConfig, kept: Output, aside: Output | None = None) -> dict:
    """The kept rows, their lines as they were; aside, the others. Returns examples of what was dropped, by rule."""
    examples: dict[str, list[dict]] = {}
    with open_input(Path(settings.dataset_name)) as file, kept as output, aside or nullcontext() as dropped:
        lines = (line for line in file if line.strip())
        for row, (line, rule) in enumerate(zip(lines, looked.rule.tolist(), strict=True)):
            if rule < 0:
                output.write_line(line)
                continue
            name, shown = RULES[rule], examples.setdefault(RULES[rule], [])
            if len(shown) < settings.examples:
                shown.append({"row": int(looked.line[row])} | headed(line, looked.why[row], settings))
            if dropped:
                told = {"_rule": name, "_why": looked.why[row], "_row": int(looked.line[row])}
                dropped.write(json.loads(line) | told)
    return examples


def headed(line: bytes, why: str, settings: FilterConfig) -> dict:
    """Why a row was dropped and how it begins, for people; nothing of one with personal data, whatever the rule."""
    text = line.decode("utf-8", "replace").strip()
    if settings.personal_data and personal_data(text):
        return {"why": told(why, settings), "text": NOT_SHOWN}
    return {"why": why, "text": text[:300] + ("..." if len(text) > 300 else "")}


def told(why: str, settings: FilterConfig) -> str:
    return NOT_SHOWN if settings.personal_data and personal_data(why) else why


if __name__ == "__main__":
    run_main(main)
