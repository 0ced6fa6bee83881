"""What a row asks and answers, as text; its words as numbers, for a whole chunk of rows at once."""

import json
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, takewhile

import numpy as np
import xxhash

# Operators and signs are words of their own where sums and code have them: 7 - 3 is not 7 + 3.
OPERATOR = r"(?<![^\s\d()])[-+*/=<>^%&|!]{1,2}(?![^\s\d().-])"
ALONE = (
    r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Thai, Japanese, Chinese: no spaces, so each is a word
)
JOINED = r"\u0900-\u0dff"  # Indic vowel signs, which are no letters by themselves
HAS_OPERATOR = re.compile(r"[-+*/=<>^%&|!](?<=[\s\d()].)[-+*/=<>^%&|!]?(?![^\s\d().-])", re.DOTALL)  # the same, faster
ASCII_WORDS = re.compile(rf"\w+|{OPERATOR}", re.ASCII)
MARKS = re.compile(r"([\u0300-\u036f]{8})[\u0300-\u036f]+")
BLANKS = {code: " " for code in range(128) if not re.match(r"\w", chr(code))}
WORDS = re.compile(rf"[{ALONE}]|(?:[^\W{ALONE}]|[{JOINED}])+|{OPERATOR}")
MOST_WORDS = 20_000  # of one row that are compared; a row of a megabyte must not hold the others up
MOST_HASHES = 500_000  # of words that are remembered
MARK = np.uint64(0xD6E8FEB86659FD93)  # stands for no word
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no power of it is 0
ASKED = ("prompt", "question", "problem", "instruction", "query", "turns", "text", "ctx", "input")  # of benchmarks


@dataclass
class Parts:
    """What a row asks and answers, as texts."""

    asked: list[str] = field(default_factory=list)  # the user's turns up to the last answer
    given: list[str] = field(default_factory=list)  # system prompts, earlier answers, what tools said
    answers: list[str] = field(default_factory=list)  # every message that is learnt
    response: str = ""  # the last answer: of several messages, where tools were called
    rejected: str = ""  # of a pair

    @property
    def prompt(self) -> str:
        return "\n".join(self.asked)

    @cached_property
    def prompt_words(self) -> list[str]:
        return words_of(self.prompt)

    @cached_property
    def response_words(self) -> list[str]:
        return words_of(self.response)

    def everything(self) -> str:
        return "\n".join([*self.given, *self.asked, *self.answers, self.rejected])


def parts_of(row: dict) -> Parts:
    """The parts of a row in any of TRL's forms. Raises ValueError, TypeError, KeyError or AttributeError for what has
    none of them."""
    if row.get("messages"):
        messages = row["messages"]
        roles = [message["role"] for message in messages]
        if "assistant" not in roles:
            raise ValueError("no assistant message")
        end = len(roles) - roles[::-1].index("assistant")
        begin = max((i + 1 for i, role in enumerate(roles[:end]) if role == "user"), default=0)
        return sorted_by_role(messages[:begin], messages[begin:end], all_learnt=True)
    prompt, chosen, rejected = split_pair(row)
    asked = as_messages(prompt if prompt is not None else row.get("question"), "user")
    for answer in (row.get("completion"), chosen):
        if answer is not None:
            found = sorted_by_role(asked, as_messages(answer, "assistant"))
            found.rejected = text_of(rejected) if rejected is not None else ""
            if not found.answers:
                raise ValueError("no assistant message")
            return found
    for gold in (row.get("answer"), row.get("solution")):
        if gold is not None and asked:
            return sorted_by_role(asked, [{"role": "assistant", "content": str(gold)}])
    if row.get("text") is not None:
        return sorted_by_role([], as_messages(row["text"], "assistant"))
    if asked:  # a task for online RL may have no answer
        return sorted_by_role(asked, [])
    raise ValueError(f"the columns {', '.join(row)} hold no training row")


def split_pair(row: dict) -> tuple:
    """(prompt, chosen, rejected) of a row, None for what it lacks; a prompt may stand at the head of both sides."""
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        alike = (a == b for a, b in zip(chosen[:-1], rejected[:-1], strict=False))
        head = sum(1 for _ in takewhile(bool, alike))
        prompt, chosen, rejected = chosen[:head], chosen[head:], rejected[head:]
    return prompt, chosen, rejected


def as_messages(part: str | list[dict] | None, role: str) -> list[dict]:
    if not isinstance(part, (str, list, type(None))):
        raise TypeError(f"{part!r:.40} is no text and no list of messages")
    return [{"role": role, "content": part}] if isinstance(part, str) else part or []


def sorted_by_role(asked: list[dict], answer: list[dict], *, all_learnt: bool = False) -> Parts:
    """The parts of a dialogue: what comes before its last answer, and that; `all_learnt`: earlier answers too."""
    found, own = Parts(), []
    for place, message in enumerate([*asked, *answer]):
        text, role = text_of([message]), message["role"]
        if role == "user":
            found.asked.append(text)
        elif role == "assistant" and (all_learnt or place >= len(asked)):
            found.answers.append(text)
            own += [text] * (place >= len(asked))
        else:
            found.given.append(text)
    found.response = "\n".join(own)
    return found


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


def questions_of(row: dict) -> list[str]:
    """What a held-out row or a benchmark's asks, in whatever column it stands. Raises ValueError if in none."""
    row = {key.lower(): value for key, value in row.items() if value is not None}
    if row.get("messages") or "chosen" in row:
        return parts_of(row).asked
    for name in ASKED:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            more = row.get("input") if name == "instruction" else None
            return [value + (f"\n{more}" if isinstance(more, str) and more else "")]
        if isinstance(value, list) and value:
            return [
                part if isinstance(part, str) else text_of([part])
                for part in value
                if isinstance(part, str) or part["role"] == "user"
            ]
    raise ValueError(
        f"none of its columns ({', '.join(row)}) is a question: name it {', '.join(ASKED[:4])} or messages"
    )


def words_of(text: str) -> list[str]:
    """Its words in small letters, spacing and punctuation aside, but for operators: what two copies have in common."""
    text = text[: 20 * MOST_WORDS]
    if text.isascii():
        text = text.lower()
        if HAS_OPERATOR.search(f" {text}"):
            return ASCII_WORDS.findall(text)[:MOST_WORDS]
        return text.translate(BLANKS).split()[:MOST_WORDS]  # what the pattern finds too, three times as fast
    text = MARKS.sub(r"\1", text)  # to normalise thousands of marks on one letter takes minutes
    return WORDS.findall(unicodedata.normalize("NFKC", text).lower())[:MOST_WORDS]


def key_of(text: str) -> int:
    """One number for a text, case and spacing aside: what exact copies share. 0 for one that says nothing."""
    plain = " ".join(text.lower().split())
    return xxhash.xxh3_64_intdigest(plain.encode("utf-8", "surrogatepass")) if plain else 0


class Hashes(dict):
    """The hash of a word, once it was asked for; of so many words at most."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_HASHES:
            self.clear()
        found = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return found


HASHES = Hashes()


class Words:
    """The words of n texts as numbers, one after another.

    Attributes:
        hashes: (words in all,) uint64.
        starts: (n + 1,) where each text's words begin, and where the last one's end.
    """

    def __init__(self, texts: list[list[str]]):
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        words = map(HASHES.__getitem__, chain.from_iterable(texts))
        self.hashes = np.fromiter(words, dtype=np.uint64, count=int(self.starts[-1]))

    def before(self, others: "Words") -> "Words":
        """Each text, a mark, and the text of the same number of the others."""
        made, sizes, more = Words([]), self.sizes(), others.sizes()
        made.starts = np.concatenate([[0], np.cumsum(sizes + 1 + more)])
        made.hashes = np.full(made.starts[-1], MARK)
        made.hashes[np.arange(len(self.hashes)) + np.repeat(made.starts[:-1] - self.starts[:-1], sizes)] = self.hashes
        places = np.repeat(made.starts[:-1] + sizes + 1 - others.starts[:-1], more)
        made.hashes[np.arange(len(others.hashes)) + places] = others.hashes
        return made

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

    def sizes(self) -> np.ndarray:
        return np.diff(self.starts)


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spread bits, so that runs of the same words in another order do not meet."""
    return (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
