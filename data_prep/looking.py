"""One look at each row, in any number of processes: what the rules need of it, as arrays."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep import rules
from data_prep.jsonl import read_rows
from data_prep.near_duplicates import signatures
from data_prep.texts import Words, parts_of, words_of
from utils.source import UserError

CHUNK = 2000  # rows at a time
RULES = (
    "bad_form", "min_score", "min_length", "max_length", "languages", "refusals", "broken_format", "truncated_endings",
    "repetition", "personal_data", "contamination", "exact_duplicates", "near_duplicates", "diversity",
)  # fmt: skip
DIMENSIONS = 256  # of the hashed words of a prompt, for diversity
NUMBER = {name: i for i, name in enumerate(RULES)}
work: dict = {}  # of this process: settings, tokenizer, what held-out rows say


@dataclass
class Looked:
    """n rows: by which rule each was dropped (-1: by none) and why, and what rows are compared by."""

    rule: np.ndarray  # (n,) int8
    line: np.ndarray  # (n,) of the file, from 1
    score: np.ndarray  # (n,) float32; 0 without one
    length: np.ndarray  # (n,) characters of the response
    exact: np.ndarray  # (n,) uint64, one number for what must differ
    signature: np.ndarray  # (n, permutations) uint32
    vector: np.ndarray  # (n, dimensions) float16
    why: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    lines: int = 0
    bad: tuple[int, str] | None = None  # the first line that is no JSON object

    def drop(self, row: int, rule: str, why: str) -> None:
        self.rule[row], self.why[row] = NUMBER[rule], why

    def counts(self) -> dict[str, int]:
        return {RULES[rule]: count for rule, count in sorted(Counter(self.rule[self.rule >= 0].tolist()).items())}

    @classmethod
    def joined(cls, parts: list["Looked"]) -> "Looked":
        starts, lines = np.cumsum([0, *(len(part.rule) for part in parts)]), np.cumsum([0, *(p.lines for p in parts)])
        columns = {}
        for name in ("rule", "line", "score", "length", "exact", "signature", "vector"):
            arrays = [vars(part)[name] for part in parts]
            columns[name] = np.concatenate([a + lines[i] for i, a in enumerate(arrays)] if name == "line" else arrays)
            for part in parts:
                vars(part)[name] = None  # so that the whole is held once
        why = {int(starts[i]) + row: text for i, part in enumerate(parts) for row, text in part.why.items()}
        return cls(**columns, why=why)


def begin_work(settings) -> None:
    """What a process needs, once."""
    work["settings"] = settings
    work["tokenizer"] = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    known: list[list[str]] = []
    for path in settings.contamination or []:
        for number, row in enumerate(read_rows(path), 1):
            try:
                prompt, response = parts_of(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"contamination: {Path(path).name}, row {number}: {error}") from None
            known.append(words_of(prompt or response))
    if known:
        asked = Words(known)
        work["grams"] = np.unique(asked.grams(settings.contamination_ngram)[0])
        work["asked"] = np.unique(asked.wholes())


def load_tokenizer(name: str):
    from tokenizers import Tokenizer

    from utils.source import ROOT

    for path in (Path(name), Path(name, "tokenizer.json"), ROOT / name / "tokenizer.json"):
        if path.is_file():
            return Tokenizer.from_file(str(path))
    raise UserError(f"tokenizer: there is no {name}/tokenizer.json. Name a model's folder")


def look(chunk: list[bytes]) -> Looked:
    settings, rows, lines = work["settings"], [], []
    for number, line in enumerate(chunk):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            return refused(chunk, number, f"is not JSON: {error}")
        if not isinstance(row, dict):
            return refused(chunk, number, "is not a JSON object")
        rows.append(row)
        lines.append(number + 1)
    count = len(rows)
    looked = Looked(
        rule=np.full(count, -1, np.int8), line=np.array(lines, np.int64), score=np.zeros(count, np.float32),
        length=np.zeros(count, np.int32), exact=np.zeros(count, np.uint64),
        signature=np.zeros((count, 0), np.uint32), vector=np.zeros((count, 0), np.float16),
        bytes=sum(map(len, chunk)), lines=len(chunk),
    )  # fmt: skip
    asked: list[list[str]] = [[] for _ in rows]
    said: list[list[str]] = [[] for _ in rows]
    for i, row in enumerate(rows):
        look_at_row(looked, i, row, settings, asked, said)
    prompts = Words(asked)
    if settings.contamination:
        drop_known(looked, prompts, settings)
    compared = {"prompt": prompts}
    for part in {settings.exact_duplicates, settings.near_duplicates} - {None, "prompt"}:
        compared[part] = Words(
            said if part == "response" else [[*a, "", *b] for a, b in zip(asked, said, strict=True)]
        )
    if settings.exact_duplicates:
        looked.exact = compared[settings.exact_duplicates].wholes()
    if settings.near_duplicates:
        texts = compared[settings.near_duplicates]
        looked.signature = signatures(texts, settings.near_ngram, settings.near_permutations)
    if settings.diversity:
        looked.vector = embedded(rows, settings) if settings.embeddings else hashed(prompts)
    return looked


def refused(chunk: list[bytes], number: int, reason: str) -> Looked:
    none = np.zeros(0, np.int64)
    before = np.zeros(sum(bool(line.strip()) for line in chunk[:number]), np.int8)
    return Looked(before, none, none, none, none, none, none, bad=(number, reason), lines=number)


def look_at_row(looked: Looked, i: int, row: dict, settings, asked: list, said: list) -> None:
    """The rules of single rows, in their order, to the first that drops it."""
    try:
        prompt, response = parts_of(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        looked.drop(i, "bad_form", f"{type(error).__name__}: {error}"[:200])
        return
    if not response.strip() and not (row.get("prompt") and "completion" not in row and "chosen" not in row):
        looked.drop(i, "bad_form", "an empty response")
        return
    score = row.get("score")
    if isinstance(score, (int, float)):
        looked.score[i] = score
    looked.length[i] = len(response)
    asked[i], said[i] = words_of(prompt), words_of(response)
    if settings.min_score is not None and (not isinstance(score, (int, float)) or score < settings.min_score):
        looked.drop(i, "min_score", f"its score is {score}")
        return
    for rule, why in faults(row, prompt, response, said[i], settings):
        if why:
            looked.drop(i, rule, why)
            return


def faults(row: dict, prompt: str, response: str, words: list[str], settings):
    """(rule, why or None), one after another, as far as they are asked for."""
    yield length_fault(prompt, response, settings)
    if settings.languages:
        found = rules.language_of(response, words)
        yield "languages", f"is in {found}" if found and found not in settings.languages else None
    if settings.refusals:
        yield "refusals", rules.refusal(response)
    if settings.broken_format:
        yield "broken_format", rules.broken_format(row, response)
    if settings.truncated_endings:
        yield "truncated_endings", rules.truncated_ending(response)
    if settings.repetition:
        yield "repetition", rules.repetition(response, words)
    if settings.personal_data:
        yield "personal_data", rules.personal_data(prompt + "\n" + response)


def length_fault(prompt: str, response: str, settings) -> tuple[str, str | None]:
    if settings.min_words is not None or settings.max_words is not None:
        count = len(response.split())
        if count < (settings.min_words or 0):
            return "min_length", f"{count} words"
        if settings.max_words and count > settings.max_words:
            return "max_length", f"{count} words"
    tokenizer = work["tokenizer"]
    if tokenizer and (settings.min_tokens is not None or settings.max_tokens):
        count = len(tokenizer.encode(response, add_special_tokens=False).ids)
        if count < (settings.min_tokens or 0):
            return "min_length", f"{count} tokens"
        if settings.max_tokens and count > settings.max_tokens:
            return "max_length", f"{count} tokens"
    if tokenizer and settings.max_prompt_tokens:
        count = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        if count > settings.max_prompt_tokens:
            return "max_length", f"a prompt of {count} tokens"
    return "max_length", None


def drop_known(looked: Looked, prompts: Words, settings) -> None:
    """Rows that ask what held-out rows ask: the same words, or a share of their runs of words."""
    grams, offsets = prompts.grams(settings.contamination_ngram)
    known = np.concatenate([[0], np.cumsum(np.isin(grams, work["grams"]))])
    hits, counts = known[offsets[1:]] - known[offsets[:-1]], np.diff(offsets)
    same = np.isin(prompts.wholes(), work["asked"]) & (counts > 0)
    share = hits / np.maximum(counts, 1)
    for i in np.flatnonzero((same | ((share >= settings.contamination_share) & (hits > 0))) & (looked.rule < 0)):
        why = "asks what a held-out row asks" if same[i] else f"{hits[i]} of {counts[i]} runs of words are held out"
        looked.drop(int(i), "contamination", why)


def hashed(prompts: Words) -> np.ndarray:
    """(n, DIMENSIONS) how often each hash of a word stands in a prompt, damped."""
    count = len(prompts.starts) - 1
    rows = np.repeat(np.arange(count), np.diff(prompts.starts))
    places = rows * DIMENSIONS + (prompts.hashes % np.uint64(DIMENSIONS)).astype(np.int64)
    found = np.bincount(places, minlength=count * DIMENSIONS).reshape(count, DIMENSIONS)
    return np.log1p(found).astype(np.float16)


def embedded(rows: list[dict], settings) -> np.ndarray:
    try:
        return np.array([row[settings.embeddings] for row in rows], dtype=np.float16)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"embeddings: not every row has numbers of one length in {settings.embeddings} ({error})"
        ) from None
