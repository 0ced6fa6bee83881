"""One scan of each row: the rules of single rows, and what the rules across rows compare."""

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from data_prep.filters import single_row as rules
from data_prep.filters.contamination import HeldOut
from data_prep.filters.near_duplicates import signatures
from data_prep.filters.personal_data import find_personal_data
from data_prep.filters.result import ScanResult
from data_prep.filters.texts import RowTexts, Words, key_of, words_of
from utils.config import ROOT, UserError
from utils.data import BadRow

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

    from data_prep.filter import FilterConfig

MOST_SCORED = 1e30
DIMENSIONS = 256  # of the hashed words of a prompt, for diversity


class Scanner:
    """What one process needs to scan rows. Raises UserError for a tokenizer or held-out file that cannot be read."""

    def __init__(self, config: "FilterConfig"):
        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
        self.identifier = load_identifier(config.languages) if config.languages else None
        self.heldout = HeldOut(config) if config.contamination else None

    def scan(self, chunk: list[bytes]) -> ScanResult:
        config, rows, lines = self.config, [], []
        for number, line in enumerate(chunk):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                return ScanResult.blank([], bad_line=(number, f"is not JSON: {error}"))
            if not isinstance(row, dict):
                return ScanResult.blank([], bad_line=(number, "is not a JSON object"))
            rows.append(row)
            lines.append(number + 1)
        result = ScanResult.blank(lines, bytes=sum(map(len, chunk)), lines=len(chunk))
        texts = [self.scan_row(result, i, row) for i, row in enumerate(rows)]
        if self.heldout:
            for i, why in self.heldout.find(texts):
                result.drop(i, "contamination", why)
        if config.exact_duplicates:
            keys = [key_of(compared_text(row, config.exact_duplicates)) if row else 0 for row in texts]
            result.key = np.array(keys, np.uint64)
        if config.near_duplicates:
            add_signatures(result, texts, config.near_duplicates, config)
        if config.diversity:
            result.vector = embeddings(result, rows, config.embeddings) if config.embeddings else tf_vectors(texts)
        return result

    def scan_row(self, result: ScanResult, i: int, row: dict) -> RowTexts | None:
        """The rules of single rows, in order, up to the first that drops the row. Returns its texts if it stays."""
        try:
            texts = RowTexts.of(row)
        except BadRow as error:
            result.drop(i, "invalid_row", str(error)[:200])
            return None
        score = row.get("score")
        known = isinstance(score, (int, float)) and not isinstance(score, bool) and abs(score) < MOST_SCORED
        result.score[i] = score if known else 0.0
        result.length[i] = len(texts.response)
        for rule, why in self.faults(row, texts, score if known else None):
            if why:
                result.drop(i, rule, why)
                return None
        return texts

    def faults(self, row: dict, texts: RowTexts, score: float | None) -> Iterator[tuple[str, str | None]]:
        """(rule, why or None), one after another, for the rules that are on.

        Every answer that is trained on is checked; what is not (rejected, or labelled false) may break these rules.
        """
        config = self.config
        yield "invalid_row", "an empty response" if texts.answers and not texts.response.strip() else None
        if config.min_score is not None:
            too_low = score is None or score < config.min_score
            yield "min_score", f"its score is {row.get('score')!r:.40}" if too_low else None
        yield from self.length_faults(texts)
        answers = [] if row.get("label") is False else texts.answers
        if config.languages and answers:
            language = rules.language_of(texts.response, self.identifier)
            yield "languages", f"is in {language}" if language and language not in config.languages else None
        if config.refusals:
            yield "refusals", first(map(rules.refusal, answers))
        if config.broken_format:
            yield "broken_format", first(map(rules.broken_format, answers)) or rules.broken_calls(row)
        if config.truncated_endings and answers:
            yield "truncated_endings", rules.truncated_ending(answers[-1])
        if config.repetition and answers:
            yield "repetition", first(rules.repetition(answer, words_of(answer)) for answer in answers[:-1])
            yield "repetition", rules.repetition(texts.response, texts.response_words)
        if config.personal_data:
            yield "personal_data", find_personal_data(texts.everything())

    def length_faults(self, texts: RowTexts) -> Iterator[tuple[str, str | None]]:
        config = self.config
        if texts.answers and (config.min_words is not None or config.max_words is not None):
            yield out_of_bounds(len(texts.response_words), config.min_words, config.max_words, "{} words")
        if texts.answers and (config.min_tokens is not None or config.max_tokens is not None):
            yield out_of_bounds(self.tokens(texts.response), config.min_tokens, config.max_tokens, "{} tokens")
        if config.max_prompt_tokens is not None:
            yield out_of_bounds(self.tokens(texts.prompt), None, config.max_prompt_tokens, "a prompt of {} tokens")

    def tokens(self, text: str) -> int:
        assert self.tokenizer, "filter.py checks that there is one"
        plain = text.encode(errors="replace").decode()  # half a surrogate is not text
        return len(self.tokenizer.encode(plain, add_special_tokens=False).ids)


def out_of_bounds(count: int, least: int | None, most: int | None, text: str) -> tuple[str, str | None]:
    if count < (least or 0):
        return "min_length", text.format(count)
    return "max_length", text.format(count) if most is not None and count > most else None


def first(faults: Iterable[str | None]) -> str | None:
    return next(filter(None, faults), None)


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a model's folder. Raises UserError if there is none."""
    for path in (Path(name), Path(name, "tokenizer.json"), ROOT / name / "tokenizer.json"):
        if path.is_file():
            return path
    raise UserError(f"tokenizer: there is no {name}/tokenizer.json. Name a model's folder")


def load_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file(name)))


def load_identifier(languages: list[str]) -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(languages) - set(identifier.labels)):
        near = difflib.get_close_matches(unknown[0].lower()[:2], identifier.labels, n=1)
        fix = f"did you mean {near[0]}?" if near else "write ISO 639 codes, for example [en, de]"
        raise UserError(f"languages: {unknown[0]} is not known; {fix}")
    return identifier


def compared_text(row: RowTexts, which: str) -> str:
    """What exact duplicates share: all of the prompt, the response, or both sides of everything."""
    if which == "response":
        return row.response
    prompt = [*row.context, *row.questions]
    return "\n".join(prompt if which == "prompt" else [*prompt, *row.answers, "\0", row.rejected])


def add_signatures(result: ScanResult, rows: list[RowTexts | None], which: str, config: "FilterConfig") -> None:
    """What near-duplicates share. System prompts and tool results, which rows have in common, do not count; for
    `both`, half of the signature is of the response alone, which must be alike too."""
    prompts = Words([row.prompt_words if row and which != "response" else [] for row in rows])
    answers = Words([answer_words(row) if row and which != "prompt" else [] for row in rows])
    texts = {"prompt": [prompts], "response": [answers], "both": [prompts.joined(answers), answers]}[which]
    permutations = config.near_permutations // len(texts)
    result.signature = np.hstack([signatures(text, config.near_ngram, permutations) for text in texts])
    result.words = (prompts.sizes() + answers.sizes()).astype(np.int32)


def answer_words(row: RowTexts) -> list[str]:
    """The words of every answer of a dialogue, and of the rejected one."""
    earlier = [word for answer in row.answers[:-1] for word in words_of(answer)]
    last = words_of(row.answers[-1]) if earlier else row.response_words
    return [*earlier, *last, *words_of(row.rejected)]


def tf_vectors(rows: list[RowTexts | None]) -> np.ndarray:
    """(n, DIMENSIONS) log(1 + how often each hash of a word is in the prompt)."""
    prompts = Words([row.prompt_words if row else [] for row in rows])
    owners: np.ndarray = np.repeat(np.arange(len(rows)), prompts.sizes())
    places = owners * DIMENSIONS + (prompts.hashes % np.uint64(DIMENSIONS)).astype(np.int64)
    counts = np.bincount(places, minlength=len(rows) * DIMENSIONS).reshape(len(rows), DIMENSIONS)
    return np.log1p(counts).astype(np.float32)


def embeddings(result: ScanResult, rows: list[dict], column: str) -> np.ndarray:
    """(n, dimensions) the column of the rows that are left; zeros for the others."""
    left = np.flatnonzero(result.rule < 0)
    if not len(left):
        return np.zeros((len(rows), 0), np.float32)
    try:
        vectors = np.array([rows[i][column] for i in left], np.float32)
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ValueError("not a list of finite numbers each")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"embeddings: not every row has numbers of one length in {column} ({error})") from None
    whole = np.zeros((len(rows), vectors.shape[1]), np.float32)
    whole[left] = vectors
    return whole
