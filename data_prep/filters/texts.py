"""The words of texts, and their hashes for a whole chunk of rows at once."""

import re
import unicodedata
from functools import cached_property
from itertools import chain

import numpy as np
import xxhash

from utils.data import RowParts

# Operators and signs are words of their own where sums and code have them: 7 - 3 is not 7 + 3.
OPERATOR = r"(?<![^\s\d()])[-+*/=<>^%&|!]{1,2}(?![^\s\d().-])"
ALONE = (
    r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Thai, Japanese, Chinese: no spaces, so each is a word
)
JOINED = r"\u0900-\u0dff"  # Indic vowel signs, which are not letters by themselves
HAS_OPERATOR = re.compile(r"[-+*/=<>^%&|!](?<=[\s\d()].)[-+*/=<>^%&|!]?(?![^\s\d().-])", re.DOTALL)  # the same, faster
ASCII_WORDS = re.compile(rf"\w+|{OPERATOR}", re.ASCII)
COMBINING_MARKS = re.compile(r"([\u0300-\u036f]{8})[\u0300-\u036f]+")
BLANKS = {code: " " for code in range(128) if not re.match(r"\w", chr(code))}
WORDS = re.compile(rf"[{ALONE}]|(?:[^\W{ALONE}]|[{JOINED}])+|{OPERATOR}")
MOST_WORDS = 20_000  # words of one row that are compared; a row of a megabyte must not hold up the others
MOST_HASHES = 500_000  # word hashes that are cached
SEPARATOR = np.uint64(0xD6E8FEB86659FD93)  # the hash of no word
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0


class RowTexts(RowParts):
    """A row's parts, split into words at most once."""

    @cached_property
    def prompt_words(self) -> list[str]:
        return words_of(self.prompt)

    @cached_property
    def response_words(self) -> list[str]:
        return words_of(self.response)


def words_of(text: str) -> list[str]:
    """The words in lower case, without spacing and punctuation except operators: what two copies have in common."""
    text = text[: 20 * MOST_WORDS]
    if text.isascii():
        text = text.lower()
        if HAS_OPERATOR.search(f" {text}"):
            return ASCII_WORDS.findall(text)[:MOST_WORDS]
        return text.translate(BLANKS).split()[:MOST_WORDS]  # what the pattern finds, three times as fast
    text = COMBINING_MARKS.sub(r"\1", text)  # normalising thousands of marks on one letter takes minutes
    return WORDS.findall(unicodedata.normalize("NFKC", text).lower())[:MOST_WORDS]


def key_of(text: str) -> int:
    """A hash of a text that ignores case and spacing, so that exact copies share it; 0 for an empty text."""
    plain = " ".join(text.lower().split())
    return xxhash.xxh3_64_intdigest(plain.encode("utf-8", "surrogatepass")) if plain else 0


class Hashes(dict):
    """The hashes of words, computed on first use; emptied when it holds MOST_HASHES."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_HASHES:
            self.clear()
        found = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return found


HASHES = Hashes()


class Words:
    """The hashes of the words of n texts, one after another.

    Attributes:
        hashes: (total words,) uint64.
        starts: (n + 1,) where each text's words begin, and where those of the last end.
    """

    def __init__(self, texts: list[list[str]]):
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        words = map(HASHES.__getitem__, chain.from_iterable(texts))
        self.hashes = np.fromiter(words, dtype=np.uint64, count=int(self.starts[-1]))

    def joined(self, others: "Words") -> "Words":
        """Text i of these, SEPARATOR, and text i of the others, for every i."""
        both, sizes, more = Words([]), self.sizes(), others.sizes()
        both.starts = np.concatenate([[0], np.cumsum(sizes + 1 + more)])
        both.hashes = np.full(both.starts[-1], SEPARATOR)
        both.hashes[np.arange(len(self.hashes)) + np.repeat(both.starts[:-1] - self.starts[:-1], sizes)] = self.hashes
        places: np.ndarray = np.repeat(both.starts[:-1] + sizes + 1 - others.starts[:-1], more)
        both.hashes[np.arange(len(others.hashes)) + places] = others.hashes
        return both

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """All n-grams: (m,) hashes, and (texts + 1,) where each text's begin. A shorter text is one n-gram."""
        rolled: np.ndarray = np.zeros(len(self.hashes), dtype=np.uint64)
        for place in range(n):  # a polynomial in BASE, modulo 2^64
            size = max(0, len(rolled) - place)
            rolled[:size] = rolled[:size] * BASE + mix(self.hashes[place:])
        begins, ends = self.starts[:-1], self.starts[1:]
        counts = np.maximum(ends - begins - n + 1, (ends > begins).astype(np.int64))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)
        grams = rolled[places]
        for i in np.flatnonzero((ends - begins < n) & (ends > begins)):  # too short: all of it
            grams[offsets[i]] = self.text_hash(i)
        return grams, offsets

    def text_hash(self, i: int) -> np.uint64:
        """One hash of all words of a text."""
        own = self.hashes[self.starts[i] : self.starts[i + 1]]
        return np.uint64(xxhash.xxh3_64_intdigest(own.tobytes()))

    def text_hashes(self) -> np.ndarray:
        return np.fromiter((self.text_hash(i) for i in range(len(self.starts) - 1)), dtype=np.uint64)

    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spreads bits, so that the same words in another order do not collide."""
    return (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
