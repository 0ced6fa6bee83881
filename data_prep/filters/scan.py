"""One look at each row, in any number of processes: what the rules need of it, as arrays."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from tokenizers import Tokenizer

from data_prep.filters import single_row as rules
from data_prep.filters.contamination import Known
from data_prep.filters.near_duplicates import signatures
from data_prep.filters.personal_data import personal_data
from data_prep.filters.texts import Parts, Words, key_of, parts_of, words_of
from utils.config import ROOT, UserError

CHUNK, BYTES = 2000, 4_000_000  # rows, and bytes, at a time
MOST_SCORED = 1e30
RULES = (
    "bad_form", "min_score", "min_length", "max_length", "languages", "refusals", "broken_format", "truncated_endings",
    "repetition", "personal_data", "contamination", "exact_duplicates", "near_duplicates", "diversity",
)  # fmt: skip
DIMENSIONS = 256  # of the hashed words of a prompt, for diversity
NUMBER = {name: i for i, name in enumerate(RULES)}
work: dict = {}  # of this process: settings, tokenizer, language identifier, what held-out rows ask


@dataclass
class Looked:
    """n rows: by which rule each was dropped (-1: by none) and why, and what rows are compared by."""

    rule: np.ndarray  # (n,) int8
    line: np.ndarray  # (n,) of the file, from 1
    score: np.ndarray  # (n,) float32; 0 without one
    length: np.ndarray  # (n,) characters of the response
    exact: np.ndarray  # (n,) uint64, one number for what must differ; 0 for nothing to compare
    signature: np.ndarray  # (n, permutations) uint32
    words: np.ndarray  # (n,) int32, how many the signature is of
    vector: np.ndarray  # (n, dimensions) float32
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
        """All rows; the parts are emptied one after another, so that little is held twice."""
        count = sum(len(part.rule) for part in parts)
        shapes = {name: vars(max(parts, key=lambda p: p.vector.shape[1]))[name] for name in COLUMNS}
        whole = {name: np.zeros((count, *one.shape[1:]), one.dtype) for name, one in shapes.items()}
        width = whole["vector"].shape[1]
        why, first, line = {}, 0, 0
        for part in parts:
            rows = slice(first, first + len(part.rule))
            part.line += line
            why |= {first + row: text for row, text in part.why.items()}
            first, line = rows.stop, line + part.lines
            if part.vector.shape[1] not in (0, width):
                raise UserError("embeddings: not every row has numbers of one length")
            for name in COLUMNS:
                if vars(part)[name].size:  # of a part whose rows were all dropped, there are no vectors
                    whole[name][rows] = vars(part)[name]
                vars(part)[name] = None
        return cls(**whole, why=why)


COLUMNS = ("rule", "line", "score", "length", "exact", "signature", "words", "vector")


def begin_work(settings) -> None:
    """What a process needs, once. Raises UserError for a tokenizer or a held-out file that cannot be read."""
    work["settings"] = settings
    work["tokenizer"] = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    work["identifier"] = load_identifier(settings.languages) if settings.languages else None
    work["known"] = Known(settings) if settings.contamination else None


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a model's folder. Raises UserError if there is none."""
    for path in (Path(name), Path(name, "tokenizer.json"), ROOT / name / "tokenizer.json"):
        if path.is_file():
            return path
    raise UserError(f"tokenizer: there is no {name}/tokenizer.json. Name a model's folder")


def load_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file(name)))


def load_identifier(languages: list[str]) -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(languages) - set(identifier.labels)):
        near = difflib.get_close_matches(unknown[0].lower()[:2], identifier.labels, n=1)
        mend = f"did you mean {near[0]}?" if near else "write codes of ISO 639, as [en, de]"
        raise UserError(f"languages: {unknown[0]} is not known; {mend}")
    return identifier


def chunks_of(file: BinaryIO) -> Iterator[list[bytes]]:
    """Lines, some thousand at a time, fewer where they are long."""
    chunk, size = [], 0
    for line in file:
        chunk.append(line)
        size += len(line)
        if len(chunk) == CHUNK or size > BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def look(chunk: list[bytes]) -> Looked:
    settings, rows, lines = work["settings"], [], []
    for number, line in enumerate(chunk):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            return refused(number, f"is not JSON that can be read: {error}")
        if not isinstance(row, dict):
            return refused(number, "is not a JSON object")
        rows.append(row)
        lines.append(number + 1)
    count = len(rows)
    looked = Looked(
        rule=np.full(count, -1, np.int8), line=np.array(lines, np.int64), score=np.zeros(count, np.float32),
        length=np.zeros(count, np.int32), exact=np.zeros(count, np.uint64),
        signature=np.zeros((count, 0), np.uint32), words=np.zeros(count, np.int32),
        vector=np.zeros((count, 0), np.float32), bytes=sum(map(len, chunk)), lines=len(chunk),
    )  # fmt: skip
    parts = [look_at_row(looked, i, row, settings) for i, row in enumerate(rows)]
    if work["known"]:
        for i, why in work["known"].asked_by(parts):
            looked.drop(i, "contamination", why)
    if settings.exact_duplicates:
        looked.exact = np.array([key_of(said_by(part, settings.exact_duplicates)) for part in parts], np.uint64)
    if settings.near_duplicates:
        sign(looked, parts, settings)
    if settings.diversity:
        looked.vector = embedded(looked, rows, settings) if settings.embeddings else hashed(parts)
    return looked


def said_by(part: Parts | None, which: str) -> str:
    """What rows are compared by exactly: all of a prompt, what is learnt and what is not, or both."""
    if not part:
        return ""
    prompt = [*part.given, *part.asked]
    response = [part.response] if which == "response" else [*part.answers, "\0", part.rejected]
    return "\n".join(prompt if which == "prompt" else response if which == "response" else prompt + response)


def sign(looked: Looked, parts: list[Parts | None], settings) -> None:
    """Signatures of what is compared nearly. System prompts and what tools said, which rows share, do not count; for
    `both`, half of the signature is that of the response alone, which must be alike too."""
    which = settings.near_duplicates
    asked = Words([part.prompt_words if part and which != "response" else [] for part in parts])
    said = Words([learnt_words(part) if part and which != "prompt" else [] for part in parts])
    texts = {"prompt": [asked], "response": [said], "both": [asked.before(said), said]}[which]
    permutations = settings.near_permutations // len(texts)
    looked.signature = np.hstack([signatures(text, settings.near_ngram, permutations) for text in texts])
    looked.words = (asked.sizes() + said.sizes()).astype(np.int32)


def learnt_words(part: Parts) -> list[str]:
    """The words of every answer of a dialogue, and of what is rejected."""
    earlier = [word for answer in part.answers[:-1] for word in words_of(answer)] if len(part.answers) > 1 else []
    own = words_of(part.answers[-1]) if earlier else part.response_words
    return [*earlier, *own, *words_of(part.rejected)]


def refused(number: int, reason: str) -> Looked:
    none = np.zeros(0, np.int64)
    return Looked(none, none, none, none, none, none, none, none, bad=(number, reason))


def look_at_row(looked: Looked, i: int, row: dict, settings) -> Parts | None:
    """The rules of single rows, in their order, to the first that drops it. Returns what the row asks and answers."""
    try:
        part = parts_of(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        looked.drop(i, "bad_form", f"{type(error).__name__}: {error}"[:200])
        return None
    if part.answers and not part.response.strip():
        looked.drop(i, "bad_form", "an empty response")
        return None
    score = row.get("score")
    known = isinstance(score, (int, float)) and not isinstance(score, bool) and abs(score) < MOST_SCORED
    looked.score[i] = score if known else 0.0
    looked.length[i] = len(part.response)
    if settings.min_score is not None and not (known and score >= settings.min_score):
        looked.drop(i, "min_score", f"its score is {score!r:.40}")
        return None
    for rule, why in faults(row, part, settings):
        if why:
            looked.drop(i, rule, why)
            return None
    return part


def faults(row: dict, part: Parts, settings):
    """(rule, why or None), one after another, as far as they are asked for. Of a dialogue, every answer that is learnt
    is looked at; what is not to be learnt (rejected, or labelled false) may be as bad as it likes."""
    yield length_fault(part, settings)
    learnt = [] if row.get("label") is False else part.answers
    if settings.languages and learnt:
        found = rules.language_of(part.response, work["identifier"])
        yield "languages", f"is in {found}" if found and found not in settings.languages else None
    if settings.refusals:
        yield "refusals", first(map(rules.refusal, learnt))
    if settings.broken_format:
        yield "broken_format", first(map(rules.broken_format, learnt)) or rules.broken_calls(row)
    if settings.truncated_endings and learnt:
        yield "truncated_endings", rules.truncated_ending(learnt[-1])
    if settings.repetition:
        yield (
            "repetition",
            first(rules.repetition(a, words_of(a)) for a in learnt[:-1])
            or (rules.repetition(part.response, part.response_words) if learnt else None),
        )
    if settings.personal_data:
        yield "personal_data", personal_data(part.everything())


def first(found: Iterable[str | None]) -> str | None:
    return next(filter(None, found), None)


def length_fault(part: Parts, settings) -> tuple[str, str | None]:
    if part.answers and (settings.min_words is not None or settings.max_words is not None):
        count = len(part.response_words)
        if count < (settings.min_words or 0):
            return "min_length", f"{count} words"
        if settings.max_words and count > settings.max_words:
            return "max_length", f"{count} words"
    if part.answers and (settings.min_tokens is not None or settings.max_tokens):
        count = tokens_of(part.response)
        if count < (settings.min_tokens or 0):
            return "min_length", f"{count} tokens"
        if settings.max_tokens and count > settings.max_tokens:
            return "max_length", f"{count} tokens"
    if settings.max_prompt_tokens and (count := tokens_of(part.prompt)) > settings.max_prompt_tokens:
        return "max_length", f"a prompt of {count} tokens"
    return "max_length", None


def tokens_of(text: str) -> int:
    plain = text.encode(errors="replace").decode()  # half a surrogate is no text
    return len(work["tokenizer"].encode(plain, add_special_tokens=False).ids)


def hashed(parts: list[Parts | None]) -> np.ndarray:
    """(n, DIMENSIONS) how often each hash of a word stands in a prompt, damped."""
    prompts = Words([part.prompt_words if part else [] for part in parts])
    rows = np.repeat(np.arange(len(parts)), prompts.sizes())
    places = rows * DIMENSIONS + (prompts.hashes % np.uint64(DIMENSIONS)).astype(np.int64)
    found = np.bincount(places, minlength=len(parts) * DIMENSIONS).reshape(len(parts), DIMENSIONS)
    return np.log1p(found).astype(np.float32)


def embedded(looked: Looked, rows: list[dict], settings) -> np.ndarray:
    """(n, dimensions) the column `embeddings` of the rows that are still in; zeros for the others."""
    left = np.flatnonzero(looked.rule < 0)
    try:
        found = np.array([rows[i][settings.embeddings] for i in left], np.float32)
        if found.ndim != 2 or not np.isfinite(found).all():
            raise ValueError("not a list of finite numbers each")
    except (KeyError, TypeError, ValueError) as error:
        if not len(left):
            return np.zeros((len(rows), 0), np.float32)
        raise UserError(
            f"embeddings: not every row has numbers of one length in {settings.embeddings} ({error})"
        ) from None
    whole = np.zeros((len(rows), found.shape[1]), np.float32)
    whole[left] = found
    return whole
