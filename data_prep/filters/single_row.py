"""Rules for single rows: why one is dropped, or None. Pure functions of a row's text."""

import itertools
import json
import re
from collections import Counter
from typing import TYPE_CHECKING

from data_prep.filters.texts import words_of

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

CONFIDENT = 0.6  # of a language, from 0 to 1

# At the start of an answer. "It cannot be known" is not a refusal: it may be the right answer.
UNABLE = r"(?:can(?:no|')t|can not|won't|will not|must decline|(?:am|'m) (?:unable to|not able to))"
DOING = r"(?:help|assist|answer|fulfil|comply|provide|do that|do this|create|engage|continue|discuss|support|generate)"
REFUSALS = re.compile(
    rf"\W*(?:(?:(?:i'?m|i am) (?:really |very |so )?sorry|i apologi[sz]e|sorry|unfortunately|no)[,.;:]? (?:but )?)?"
    rf"(?:i ?{UNABLE} (?:\w+ ){{0,2}}?(?:{DOING}\b(?! but\b| for others\b)|with that\b)|i must decline\b"
    r"|as an ai(?: language model| assistant| model)?,? i\b|as a (?:large )?language model\b"
    r"|(?:i am|i'm) (?:just |only )?an? (?:\w+ )?(?:ai|language|small) (?:language )?model\b)"
    r"|\W*(?:(?:i'?m|i am) (?:\w+ )?sorry|i apologi[sz]e),? but no\b",
    re.IGNORECASE,
)
# Placeholders and remains of copied pages.
BOILERPLATE = re.compile(
    r"\W*(?:lorem ipsum|\[?insert .{0,40} here|click here to|please (?:enable|turn on) javascript|this page requires)",
    re.IGNORECASE,
)
# No sentence ends with these.
OPEN_ENDS = re.compile(
    r"(?:[,;:(\[{<\\]|[-–]|\b(?:a|an|the|of|and|or|to|is|are|was|were|in|on|at|for|with|from|by|that|which|because|if))$",
    re.IGNORECASE,
)
LIST_ITEM = re.compile(r"\s*(?:[-*•|#>]|[0-9]{1,3}[.)])\s*\S")
FENCED = re.compile(r"^[ \t]*```.*?^[ \t]*```[^\n]*$", re.DOTALL | re.MULTILINE)


def refusal(response: str) -> str | None:
    """Boilerplate, or "I'm sorry, but I can't help", at the start of an answer, after any reasoning."""
    head = response.rpartition("</think>")[2].lstrip()[:200].replace("\u2019", "'")
    found = REFUSALS.match(head) or BOILERPLATE.match(head)
    return f"begins with {found[0].strip()[:40]!r}" if found else None


def broken_format(message: str) -> str | None:
    """Reasoning that is not closed, or nothing after it; tool calls that are not JSON; fences or boxes left open."""
    if "think>" in message:
        opened, closed = message.count("<think>"), message.count("</think>")
        if not opened and message.lstrip().startswith("</think>"):
            return "begins with </think>"
        if closed == 0 or opened > closed:
            return "<think> is never closed"
        if closed > max(opened, 1):
            return "</think> comes more often than <think>"
        if not message.rpartition("</think>")[2].strip():
            return "nothing comes after </think>"
    if "<tool_call>" in message or "</tool_call>" in message:
        before, *calls = message.split("<tool_call>")
        if "</tool_call>" in before or any(call.count("</tool_call>") != 1 for call in calls):
            return "<tool_call> is never closed, or never opened"
        for call in (call.partition("</tool_call>")[0] for call in calls):
            if not (call.lstrip().startswith("<function=") or is_call(call)):  # Qwen3-Coder writes tags
                return "a tool call is not JSON with name and arguments"
    if message.count("```") % 2 and sum(line.lstrip().startswith("```") for line in message.splitlines()) % 2:
        return "a code fence is never closed"
    if "\\boxed{" in message and not balanced(message[message.rindex("\\boxed{") :]):
        return "\\boxed{ is never closed"
    return None


def broken_calls(row: dict) -> str | None:
    """Tool calls without a name, or whose arguments are not a mapping; an answer that was cut off."""
    if row.get("finish_reason") == "length":
        return "was cut off at its maximum length"
    parts = [row.get(column) for column in ("messages", "completion", "chosen")]
    for message in (m for part in parts if isinstance(part, list) for m in part if isinstance(m, dict)):
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            return "tool_calls is not a list"
        for call in calls:
            if not is_call(call.get("function", call) if isinstance(call, dict) else {}):
                return "a tool call has no name, or arguments that are not a mapping"
    return None


def is_call(value: str | dict) -> bool:
    """Whether it names a function, with a mapping of arguments (or one as JSON), or none."""
    try:
        call = json.loads(value) if isinstance(value, str) else value
        arguments = call.get("arguments")
        arguments = json.loads(arguments) if isinstance(arguments, str) and arguments else arguments or {}
        return isinstance(call["name"], str) and bool(call["name"]) and isinstance(arguments, dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def balanced(text: str) -> bool:
    """Whether the first brace of a text is closed; LaTeX's \\{ and \\} do not count."""
    depth, text = 0, re.sub(r"\\[{}\\]", "", text)
    for place in range(text.index("{"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return True
    return False


def truncated_ending(response: str) -> str | None:
    """A last line that ends in the middle: with a comma, an open bracket or a word like "the"; or a long line of prose
    without the full stop that the sentences before it have. A heuristic."""
    text = response.rstrip()
    last = text.rpartition("\n")[2]
    if not text or last.lstrip().startswith("```"):
        return None
    if OPEN_ENDS.search(last[-40:]) and not last.endswith(("->", "--", "\\\\")):
        return f"ends in {last[-30:]!r}"
    prose = len(last.split()) >= 12 and not LIST_ITEM.match(last) and FENCED.sub("", text).endswith(last)
    if prose and last[-1].isalpha() and last[-1].isascii() and re.search(r"[.!?] ", text):
        return f"ends in {last[-30:]!r}"
    return None


def repetition(response: str, words: list[str]) -> str | None:
    """Lines or n-grams that are repeated (Gopher's limits, arXiv 2112.11446, table A1).

    Those limits are for web prose. So JSON, code in fences, lines of fewer than three words and n-grams with numbers
    do not count, nor texts of a few lines or under 50 words, where shares mean nothing.
    """
    if response[:1] in "[{" and is_json(response):
        return None
    if "```" in response:
        response = FENCED.sub("", response)
        words = words_of(response)
    lines = [line.strip() for line in response.splitlines() if len(line.split()) >= 3 and any(map(str.isalpha, line))]
    if len(lines) >= 6:
        repeated = len(lines) - len(set(lines))
        if repeated > 0.3 * len(lines):
            return f"{repeated} of {len(lines)} lines are repeats"
    if len(words) < 50:
        return None
    # An n-gram that occurs t times is repeated t - 1 times, a repeated 10-gram contains repeated 4-grams, and those
    # repeated pairs: a text with few of them need not be counted in full.
    repeated_pairs = len(words) - 1 - len(set(itertools.pairwise(words)))
    if repeated_pairs < 0.04 * len(words) - 1:
        return None
    repeated_fours = len(words) - 3 - len(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    if repeated_pairs < 0.10 * len(words) - 1 and repeated_fours < 0.04 * len(words) - 1:
        return None
    for n, limit in ((2, 0.20), (4, 0.16)):
        grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        for gram, times in grams.most_common(3):
            if times > 2 and times * n > limit * len(words) and all(map(str.isalpha, gram)):
                return f"{' '.join(gram)!r} occurs {times} times in {len(words)} words"
    tens = [tuple(words[i : i + 10]) for i in range(len(words) - 9)]
    tens = [gram for gram in tens if sum(map(str.isalpha, gram)) >= 6]
    repeated = len(tens) - len(set(tens))
    return f"{repeated} of {len(tens)} 10-grams are repeats" if repeated > 0.10 * len(words) else None


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def language_of(text: str, identifier: "LanguageIdentifier") -> str | None:
    """The ISO 639 code of a text's language by py3langid, ignoring code in fences; None if it is not clear: short
    texts, sums, code."""
    language, confidence = identifier.classify(FENCED.sub("", text[:4000]))
    return language if confidence >= CONFIDENT and language != "zxx" else None
