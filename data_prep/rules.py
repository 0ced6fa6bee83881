"""Rules that look at one row: why it is dropped, or None. Pure functions of a row's text."""

import ipaddress
import itertools
import json
import re
from collections import Counter

from py3langid.langid import LanguageIdentifier

from data_prep.texts import words_of

MOST_LOOKED_AT = 1_000_000  # characters of a row that the costlier patterns read
SURE = 0.6  # of a language, from 0 to 1

# At the head of an answer. "It cannot be known" is no refusal: it may be the right answer.
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
# What carries no lesson: talk about answering, marks of copied pages.
BOILERPLATE = re.compile(
    r"\W*(?:lorem ipsum|\[?insert .{0,40} here|click here to|please (?:enable|turn on) javascript|this page requires)",
    re.IGNORECASE,
)
# After these a sentence goes on.
OPEN_ENDS = re.compile(
    r"(?:[,;:(\[{<\\]|[-–]|\b(?:a|an|the|of|and|or|to|is|are|was|were|in|on|at|for|with|from|by|that|which|because|if))$",
    re.IGNORECASE,
)
LIST_ITEM = re.compile(r"\s*(?:[-*•|#>]|[0-9]{1,3}[.)])\s*\S")
FENCED = re.compile(r"^[ \t]*```.*?^[ \t]*```[^\n]*$", re.DOTALL | re.MULTILINE)
DOMAINS = r"(?:[a-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|email|online|site|tech|dev|app|cloud|xyz)"
COUNTRIES = (  # the codes that telephone numbers begin with (ITU-T E.164)
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-69]|3[578]|42|5[09]|6[7-9]|8[05]|9[679])[0-9])"
)
SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
    "an access key": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|AIza[\w-]{35}"
        r"|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{20,})"
    ),
    "an e-mail address": re.compile(
        rf"(?<![\w.@/])(?!git@)[A-Za-z0-9][\w.+-]{{0,63}}@(?:[A-Za-z0-9-]{{1,63}}\.){{0,3}}[A-Za-z0-9-]{{2,63}}\.{DOMAINS}"
        r"(?![\w(=]|[.:/][\w(])",
        re.IGNORECASE,
    ),
    "an IBAN": re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[0-9]{1,3}\b)?"),
    # By itself: not a row of a table of numbers, not what a sum comes to.
    "a card number": re.compile(
        r"(?<![\d.,-])(?<!\d )(?<!=)(?<!= )(?:[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
        r"|3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5}|[2-6][0-9]{15}|3[47][0-9]{13})(?![\d,.-]*\d| ?[0-9*+/=-])"
    ),
    "a telephone number": re.compile(
        rf"(?<![\w.+*/=-])(?<!\d )(?:\+{COUNTRIES}[ .-](?:\([0-9]{{1,4}}\)[ .-]?)?[0-9](?:[ .-]?[0-9]){{6,11}}"
        rf"|\+(?:1[0-9]{{10}}|(?!1){COUNTRIES}[0-9]{{8,11}})|\([0-9]{{3}}\) ?[0-9]{{3}}-[0-9]{{4}}"
        r"|[2-9][0-9]{2}([-.])[2-9][0-9]{2}\1[0-9]{4})(?![\w-]| ?[*+/=])"
    ),
    "an IP address": re.compile(
        r"(?<![\w.=/])(?<!ection )(?<!ersion )(?<!OID )(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])"
    ),
}
MARKS = {
    "a private key": ("-----BEGIN",), "an e-mail address": ("@",),
    "an access key": ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "AIza", "AKIA", "xox"),
}  # fmt: skip
DIGITS = re.compile(r"[0-9][0-9A-Z .()-]{5}")  # no number of the kinds below is without it
PUBLIC = re.compile(r".*@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.IGNORECASE)
# Letters and digits after the two that check, by country (ISO 13616).
IBANS = {
    "AT": 16, "BE": 12, "CH": 17, "CZ": 20, "DE": 18, "DK": 14, "ES": 20, "FI": 14, "FR": 23, "GB": 18, "GR": 23,
    "HU": 24, "IE": 18, "IT": 23, "LU": 16, "NL": 14, "NO": 11, "PL": 24, "PT": 21, "RO": 20, "SE": 20, "TR": 22,
}  # fmt: skip


def refusal(response: str) -> str | None:
    """At the head of an answer, reasoning aside: "I'm sorry, but I can't help", or a page's boiler-plate."""
    head = response.rpartition("</think>")[2].lstrip()[:200].replace("\u2019", "'")
    found = REFUSALS.match(head) or BOILERPLATE.match(head)
    return f"begins with {found[0].strip()[:40]!r}" if found else None


def broken_format(message: str) -> str | None:
    """Reasoning that is not closed, or nothing after it; tool calls that are no JSON; fences or boxes left open."""
    if "think>" in message:
        opened, closed = message.count("<think>"), message.count("</think>")
        if not opened and message.lstrip().startswith("</think>"):
            return "begins with </think>"
        if closed == 0 or opened > closed:
            return "<think> is never closed"
        if closed > max(opened, 1):
            return "</think> stands more often than <think>"
        if not message.rpartition("</think>")[2].strip():
            return "says nothing after </think>"
    if "<tool_call>" in message or "</tool_call>" in message:
        before, *calls = message.split("<tool_call>")
        if "</tool_call>" in before or any(call.count("</tool_call>") != 1 for call in calls):
            return "<tool_call> is never closed, or never opened"
        for call in (call.partition("</tool_call>")[0] for call in calls):
            if not (call.lstrip().startswith("<function=") or is_call(call)):  # Qwen3-Coder writes tags
                return "a tool call is no JSON with name and arguments"
    if message.count("```") % 2 and sum(line.lstrip().startswith("```") for line in message.splitlines()) % 2:
        return "a code fence is never closed"
    if "\\boxed{" in message and not balanced(message[message.rindex("\\boxed{") :]):
        return "\\boxed{ is never closed"
    return None


def broken_calls(row: dict) -> str | None:
    """Tool calls of messages that have no name, or arguments that are no mapping; an answer that was cut off."""
    if row.get("finish_reason") == "length":
        return "was cut off at its greatest length"
    parts = [row.get(column) for column in ("messages", "completion", "chosen")]
    for message in (m for part in parts if isinstance(part, list) for m in part if isinstance(m, dict)):
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            return "tool_calls is no list"
        for call in calls:
            if not is_call(call.get("function", call) if isinstance(call, dict) else {}):
                return "a tool call has no name, or arguments that are no mapping"
    return None


def is_call(written: str | dict) -> bool:
    """Whether it names a function, with arguments as a mapping (or one as JSON), or none."""
    try:
        call = json.loads(written) if isinstance(written, str) else written
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
    """A last line that ends in the middle: with a comma, an open bracket or a word like "the"; or a long one of prose
    without the full stop that sentences before it have. A heuristic, so only where it is asked for."""
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
    """Lines or word runs that come again and again (Gopher's limits, arXiv 2112.11446, table A1).

    Those limits are of web prose. So JSON, code in fences, lines of fewer than three words and runs with numbers do
    not count, nor texts of a few lines or under 50 words, where shares say nothing.
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
            return f"{repeated} of {len(lines)} lines stood before"
    if len(words) < 50:
        return None
    # A run that stands t times makes t - 1 repeated ones, a repeated run of 10 words holds repeated runs of 4, and
    # these repeated pairs: no text with few of them is counted in full.
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
                return f"{' '.join(gram)!r} stands {times} times in {len(words)} words"
    runs = [tuple(words[i : i + 10]) for i in range(len(words) - 9)]
    runs = [run for run in runs if sum(map(str.isalpha, run)) >= 6]
    repeated = len(runs) - len(set(runs))
    return f"{repeated} of {len(runs)} runs of 10 words stood before" if repeated > 0.10 * len(words) else None


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def personal_data(text: str) -> str | None:
    """Addresses, numbers and keys. Kinds, not contents, are told: what is dropped must not leak into a report."""
    text = text[:MOST_LOOKED_AT]
    digits = DIGITS.search(text)
    for kind, pattern in SECRETS.items():
        if not (any(mark in text for mark in MARKS[kind]) if kind in MARKS else digits):
            continue  # patterns cost more than a look for what none of theirs is without
        for found in pattern.finditer(text):
            if CHECKS.get(kind, bool)(found[0]):
                return f"holds {kind}"
    return None


def is_card(number: str) -> bool:
    """Luhn's sum: of other numbers, nine in ten fail."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_iban(number: str) -> bool:
    """As long as its country's are, and ISO 7064's sum: of others, 96 in 97 fail."""
    bare = number.replace(" ", "")
    bare = bare[: 4 + IBANS.get(bare[:2], 0)]
    return len(bare) > 14 and int("".join(str(int(character, 36)) for character in bare[4:] + bare[:4])) % 97 == 1


def is_public_address(number: str) -> bool:
    try:
        return ipaddress.ip_address(number).is_global and number not in ("8.8.8.8", "1.1.1.1")  # everybody's
    except ValueError:
        return False


CHECKS = {
    "a card number": is_card, "an IBAN": is_iban, "an IP address": is_public_address,
    "an e-mail address": lambda address: not PUBLIC.match(address),
}  # fmt: skip


def language_of(text: str, identifier: LanguageIdentifier) -> str | None:
    """The ISO 639 code of a text's language by py3langid, code in fences aside; None if it is not clear, as of short
    texts, sums and code."""
    language, confidence = identifier.classify(FENCED.sub("", text[:4000]))
    return language if confidence >= SURE and language != "zxx" else None
