"""Rows whose prompts are in held-out files or benchmarks: the same words, or long n-grams of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.files import read_rows
from data_prep.filters.texts import RowTexts, Words, words_of
from utils.config import UserError
from utils.data import BadRow, questions_of

if TYPE_CHECKING:
    from data_prep.filter import FilterConfig

COMMON = 100  # questions; an n-gram that more of them have is a preamble
SHORTEST = 6  # words; shorter questions are small talk, and are not searched for within longer texts


class HeldOut:
    """The questions of held-out files.

    A row is contaminated if one of its turns is a held-out question in the same words; if at least
    `contamination_share` of the turn's n-grams (`contamination_ngram` words) are held out, or if it contains that
    share of one question's n-grams; or if it contains the whole of a question shorter than an n-gram. System prompts
    do not count: rows share them.
    """

    def __init__(self, config: "FilterConfig"):
        """Raises UserError naming the file and row without a question."""
        self.ngram, self.share = config.contamination_ngram, config.contamination_share
        questions = (tuple(words) for path in config.contamination or [] for words in read_questions(path))
        texts = [list(words) for words in dict.fromkeys(questions)]
        self.text_hashes = np.unique(Words(texts).text_hashes())
        self.short = {  # of each length, the questions of so many words
            n: np.unique(Words([words for words in texts if len(words) == n]).grams(n)[0])
            for n in sorted({len(words) for words in texts if SHORTEST <= len(words) < self.ngram})
        }
        long = Words([words for words in texts if len(words) >= self.ngram])
        grams, starts = long.grams(self.ngram)
        owners: np.ndarray = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        # Each n-gram with each question that has it, sorted by n-gram.
        pairs = np.unique(np.array([grams, owners.astype(np.uint64)]), axis=1)
        _, times = np.unique(pairs[0], return_counts=True)
        pairs = pairs[:, np.repeat(times, times) <= COMMON]
        self.grams, self.owners = pairs[0], pairs[1].astype(np.int64)
        self.sizes = np.bincount(self.owners, minlength=len(starts) - 1)

    def find(self, rows: list[RowTexts | None]) -> Iterator[tuple[int, str]]:
        """(row, why) of the contaminated rows; None is a row that was dropped before."""
        turns = [(i, words) for i, row in enumerate(rows) if row for words in question_words(row)]
        owners, texts = [i for i, _ in turns], Words([words for _, words in turns])
        same = np.isin(texts.text_hashes(), self.text_hashes) & (texts.sizes() > 0)
        hits, counts, most = self.shared_ngrams(texts)
        within: np.ndarray = np.zeros(len(turns), bool)
        for n, known in self.short.items():
            grams, starts = texts.grams(n)
            found = np.concatenate([[0], np.cumsum(np.isin(grams, known))])
            within |= (found[starts[1:]] > found[starts[:-1]]) & (texts.sizes() >= n)
        reasons: dict[int, str] = {}  # the first of each row's turns
        for k in np.flatnonzero(same | within | (hits >= self.share * counts) & (hits > 0) | (most >= self.share)):
            if same[k]:
                why = "its prompt is a held-out prompt"
            elif within[k]:
                why = "it contains a held-out question"
            elif hits[k] >= self.share * counts[k]:
                why = f"{hits[k]} of its {counts[k]} n-grams are held out"
            else:
                why = f"it contains {most[k]:.0%} of a held-out question's n-grams"
            reasons.setdefault(owners[k], why)
        yield from reasons.items()

    def shared_ngrams(self, texts: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each text: how many of its n-grams are held out, of how many; the greatest share of one question's
        n-grams that it contains."""
        grams, starts = texts.grams(self.ngram)
        counts, size = np.diff(starts), len(starts) - 1
        hits: np.ndarray = np.zeros(size, np.int64)
        most: np.ndarray = np.zeros(size)
        low, high = (self.grams.searchsorted(grams, side) for side in ("left", "right"))
        met = np.flatnonzero(high > low)
        of_text = np.searchsorted(starts, met, side="right") - 1
        np.add.at(hits, of_text, 1)
        # Each shared n-gram with each question that has it; one that is twice in a text counts once.
        many = (high - low)[met]
        places = np.repeat(low[met], many) + np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        pairs = np.unique(np.stack([np.repeat(of_text, many), places], axis=1), axis=0)
        pairs, times = np.unique(np.stack([pairs[:, 0], self.owners[pairs[:, 1]]], axis=1), axis=0, return_counts=True)
        np.maximum.at(most, pairs[:, 0], times / self.sizes[pairs[:, 1]])
        return hits, counts, most


def question_words(row: RowTexts) -> list[list[str]]:
    """The words of a row's questions, turn by turn; of a plain text, all of it. Later turns of a few words ("go on")
    are not questions by themselves."""
    texts = row.questions or row.answers[:1]
    turns = [words_of(text) for text in texts] if len(texts) > 1 else [row.prompt_words or row.response_words]
    return [words for k, words in enumerate(turns) if k == 0 or len(words) >= SHORTEST]


def read_questions(path: str) -> Iterator[list[str]]:
    number = 0
    for number, row in enumerate(read_rows(path), 1):
        try:
            turns = [words_of(text) for text in questions_of(row)]
        except BadRow as error:
            raise UserError(f"contamination: {Path(path).name}, row {number}: {error}") from None
        yield from (words for k, words in enumerate(turns) if words and (k == 0 or len(words) >= SHORTEST))
    if not number:
        raise UserError(f"contamination: {Path(path).name} has no rows")
