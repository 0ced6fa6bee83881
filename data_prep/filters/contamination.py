"""Rows that ask what held-out rows or benchmarks ask: the same words, or long runs of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.files.jsonl import read_rows
from data_prep.filters.texts import Parts, Words, questions_of, words_of
from utils.config import UserError

COMMON = 100  # questions
SHORTEST = 6  # words from which a question is told from small talk, and is looked for within longer texts


class Known:
    """What held-out files ask.

    A row is known if one of its turns is a held-out question in the same words; if at least `contamination_share` of
    the turn's runs of `contamination_ngram` words are held out, or that share of one question's runs stands in it; or
    if a question shorter than such a run stands in it whole. System prompts do not count: rows share them.
    """

    def __init__(self, settings):
        """Raises UserError naming the file and row that asks nothing."""
        self.ngram, self.share = settings.contamination_ngram, settings.contamination_share
        texts = [
            list(words) for words in dict.fromkeys(tuple(w) for path in settings.contamination for w in asked_in(path))
        ]
        self.wholes = np.unique(Words(texts).wholes())
        self.short = {  # of each length, the questions of so many words
            n: np.unique(Words([words for words in texts if len(words) == n]).grams(n)[0])
            for n in sorted({len(words) for words in texts if SHORTEST <= len(words) < self.ngram})
        }
        long = Words([words for words in texts if len(words) >= self.ngram])
        grams, starts = long.grams(self.ngram)
        owners = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        # Each run with each question that has it, by run; what very many have is a preamble and tells nothing.
        pairs = np.unique(np.array([grams, owners.astype(np.uint64)]), axis=1)
        _, times = np.unique(pairs[0], return_counts=True)
        pairs = pairs[:, np.repeat(times, times) <= COMMON]
        self.grams, self.owners = pairs[0], pairs[1].astype(np.int64)
        self.runs = np.bincount(self.owners, minlength=len(starts) - 1)

    def asked_by(self, parts: list[Parts | None]) -> Iterator[tuple[int, str]]:
        """(row, why) of rows that ask what is known; None stands for a row that was dropped before."""
        turns = [(i, words) for i, part in enumerate(parts) if part for words in turns_of(part)]
        rows, texts = [i for i, _ in turns], Words([words for _, words in turns])
        same = np.isin(texts.wholes(), self.wholes) & (texts.sizes() > 0)
        hits, counts, most = self.shared_runs(texts)
        within = np.zeros(len(turns), bool)
        for n, known in self.short.items():
            grams, starts = texts.grams(n)
            found = np.concatenate([[0], np.cumsum(np.isin(grams, known))])
            within |= (found[starts[1:]] > found[starts[:-1]]) & (texts.sizes() >= n)
        told = set()
        for k in np.flatnonzero(same | within | (hits >= self.share * counts) & (hits > 0) | (most >= self.share)):
            if rows[k] in told:
                continue
            told.add(rows[k])
            if same[k]:
                yield rows[k], "asks what a held-out row asks"
            elif within[k]:
                yield rows[k], "a held-out question stands in it"
            elif hits[k] >= self.share * counts[k]:
                yield rows[k], f"{hits[k]} of {counts[k]} runs of words are held out"
            else:
                yield rows[k], f"{most[k]:.0%} of a held-out question's runs of words stand in it"

    def shared_runs(self, texts: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each text: how many of its runs are held out, of how many; the greatest share of one question's runs that
        stands in it."""
        grams, starts = texts.grams(self.ngram)
        counts, size = np.diff(starts), len(starts) - 1
        hits, most = np.zeros(size, np.int64), np.zeros(size)
        low, high = (np.searchsorted(self.grams, grams, side) for side in ("left", "right"))
        met = np.flatnonzero(high > low)
        of_text = np.searchsorted(starts, met, side="right") - 1
        np.add.at(hits, of_text, 1)
        # Each run that is met, with each question that has it; one that stands twice in a text counts once.
        many = (high - low)[met]
        places = np.repeat(low[met], many) + np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        pairs = np.unique(np.stack([np.repeat(of_text, many), places], axis=1), axis=0)
        pairs, times = np.unique(np.stack([pairs[:, 0], self.owners[pairs[:, 1]]], axis=1), axis=0, return_counts=True)
        np.maximum.at(most, pairs[:, 0], times / self.runs[pairs[:, 1]])
        return hits, counts, most


def turns_of(part: Parts) -> list[list[str]]:
    """The words of what a row asks, turn by turn; of a plain text, all of it. Later turns of a few words ("go on") ask
    nothing by themselves."""
    texts = part.asked or part.answers[:1]
    turns = [words_of(text) for text in texts] if len(texts) > 1 else [part.prompt_words or part.response_words]
    return [words for k, words in enumerate(turns) if k == 0 or len(words) >= SHORTEST]


def asked_in(path: str) -> Iterator[list[str]]:
    count = 0
    for count, row in enumerate(read_rows(path), 1):
        try:
            questions = questions_of(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"contamination: {Path(path).name}, row {count}: {error}") from None
        turns = [words_of(text) for text in questions]
        yield from (words for k, words in enumerate(turns) if words and (k == 0 or len(words) >= SHORTEST))
    if not count:
        raise UserError(f"contamination: {Path(path).name} has no rows")
