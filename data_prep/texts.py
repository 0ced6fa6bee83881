"""What a row asks and answers, as text; its words as numbers, for a whole chunk of rows at once."""

import json
import re
import unicodedata

import numpy as np
import xxhash

WORDS = re.compile(r"\w+")
MOST_WORDS = 20_000  # of one row that are compared; a row of a megabyte must not hold the others up
HASHES: dict[str, int] = {}  # of words seen, up to MOST_HASHES of them
MOST_HASHES = 500_000
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0


def parts_of(row: dict) -> tuple[str, str]:
    """(prompt, response) of a row in any of TRL's forms. Raises ValueError, TypeError, KeyError or AttributeError for
    what has none of them."""
    if row.get("messages"):
        messages = row["messages"]
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
        if last is None:
            raise ValueError("no assistant message")
        return text_of(messages[:last]), text_of(messages[last:])
    if "text" in row:
        return "", text_of(row["text"])
    for column in ("completion", "chosen", "answer", "solution"):
        if row.get(column) is not None:
            prompt = row.get("prompt", row.get("question"))
            return text_of(prompt if prompt is not None else ""), text_of(row[column])
    if row.get("prompt") is not None:  # a task for online RL may have no answer
        return text_of(row["prompt"]), ""
    raise ValueError(f"the columns {', '.join(row)} hold no training row")


def text_of(part: str | list[dict]) -> str:
    """A text as it is; of messages, what they say and the tools that they call."""
    if isinstance(part, str):
        return part
    texts = []
    for message in part:
        texts.append(message.get("content") or "")
        if message.get("tool_calls"):
            texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return "\n".join(texts)


def words_of(text: str) -> list[str]:
    """Its words in small letters, punctuation and spacing aside: what two copies have in common."""
    text = text[: 20 * MOST_WORDS]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return WORDS.findall(text.lower())[:MOST_WORDS]


def hash_of(word: str) -> int:
    found = HASHES.get(word)
    if found is None:
        if len(HASHES) >= MOST_HASHES:
            HASHES.clear()
        found = HASHES[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
    return found


class Words:
    """The words of n texts as numbers, one after another.

    Attributes:
        hashes: (words in all,) uint64.
        starts: (n + 1,) where each text's words begin, and where the last one's end.
    """

    def __init__(self, texts: list[list[str]]):
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.hashes = np.fromiter(
            (hash_of(word) for words in texts for word in words), dtype=np.uint64, count=int(self.starts[-1])
        )

    def grams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """All runs of n words: (m,) hashes, and (texts + 1,) where each text's begin. A shorter text is one run."""
        rolled = np.zeros(len(self.hashes), dtype=np.uint64)
        for place in range(n):  # a polynomial in BASE, modulo 2^64
            size = max(0, len(rolled) - place)
            rolled[:size] = rolled[:size] * BASE + mix(self.hashes[place:])
        begins, ends = self.starts[:-1], self.starts[1:]
        counts = np.maximum(ends - begins - n + 1, (ends > begins).astype(np.int64))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], counts)
        grams = rolled[places]
        for i in np.flatnonzero((ends - begins < n) & (ends > begins)):  # too short: all of it
            grams[offsets[i]] = self.whole(i)
        return grams, offsets

    def whole(self, i: int) -> np.uint64:
        """One number for all words of a text."""
        own = self.hashes[self.starts[i] : self.starts[i + 1]]
        return np.uint64(xxhash.xxh3_64_intdigest(own.tobytes()))

    def wholes(self) -> np.ndarray:
        return np.fromiter((self.whole(i) for i in range(len(self.starts) - 1)), dtype=np.uint64)


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spread bits, so that runs of the same words in another order do not meet."""
    return (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
