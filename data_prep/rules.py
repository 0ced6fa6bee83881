"""Rules that look at one row: why it is dropped, or None. Pure functions of a row's text."""

import itertools
import json
import re
from collections import Counter

MOST_LOOKED_AT = 200_000  # characters of a response that the costlier patterns read

# At the head of an answer. "It cannot be known" is no refusal: it may be the right answer.
REFUSALS = re.compile(
    r"\W*(?:i'?m (?:really )?sorry,? but|i apologi[sz]e,? but|sorry,? (?:but )?i (?:can(?:no|')t|am unable)|as an ai\b"
    r"|as a (?:large )?language model|i (?:can(?:no|')t|am unable to|am not able to|won'?t) "
    r"(?:help|assist|answer|fulfil|comply|provide|do that|create|engage|continue)"
    r"|i am an? (?:\w+ )?(?:ai|language|small) (?:language )?model)",
    re.IGNORECASE,
)
# What carries no lesson: talk about answering, marks of copied pages.
BOILERPLATE = re.compile(
    r"\W*(?:lorem ipsum|\[?insert .{0,40} here|click here to|please (?:enable|turn on) javascript|this page requires)",
    re.IGNORECASE,
)
# Where a word may have ended: punctuation, closing marks, digits, symbols. Letters of scripts without full stops too.
ENDS = re.compile(r"[^\w\s,;:\-–(\[{<]$|[0-9]$|[\u0e00-\u0eff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]$")
SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
    "an access key": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{20,})"
    ),
    "an e-mail address": re.compile(
        r"[A-Za-z0-9][\w.+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,3}\.[A-Za-z]{2,24}\b"
    ),
    "an IBAN": re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "a card number": re.compile(r"(?<![\d.-])(?:[3-6][0-9]{3}[ -]?(?:[0-9]{4}[ -]?){2}[0-9]{1,4})(?![\d-])"),
    "a telephone number": re.compile(
        r"(?<![\w.])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9](?:[ .-]?[0-9]){6,11}"
        r"|\([0-9]{3}\) ?[0-9]{3}-[0-9]{4}|[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4})(?![\w-])"
    ),
    "an IP address": re.compile(
        r"(?<![\w.])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?![\w.])"
    ),
}
MARKS = {
    "a private key": ("-----BEGIN",), "an e-mail address": ("@",),
    "an access key": ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AKIA", "xox"),
}  # fmt: skip
DIGITS = re.compile(r"[0-9][0-9A-Z .()-]{5}")  # no number of the kinds below is without it
PUBLIC = re.compile(r"@(?:example|test)\.|127\.0\.0\.1|0\.0\.0\.0|192\.168\.|10\.\d|255\.255")  # of examples
# Words that hardly a paragraph of a language lacks.
FUNCTION_WORDS = {
    "en": "the of and to in is that it was for are with as his they this have from not but what you",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an",
    "fr": "de la le et les des en un du une que est pour qui dans par plus pas au sur ne se il sont",
    "es": "de la que el en y los se del las un por con no una su para es al lo como más o pero",
    "it": "di e il la che in un a per è una sono con non del si da come le dei nel alla ma i gli",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas ao",
    "nl": "de en van het een in is dat op te zijn met voor niet aan er om ook als bij maar door",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}
SCRIPTS = {
    "zh": r"[\u4e00-\u9fff]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]", "ru": r"[\u0400-\u04ff]",
    "ar": r"[\u0600-\u06ff]", "hi": r"[\u0900-\u097f]", "th": r"[\u0e00-\u0e7f]", "el": r"[\u0370-\u03ff]",
    "he": r"[\u0590-\u05ff]",
}  # fmt: skip
SCRIPTS = {language: re.compile(letters) for language, letters in SCRIPTS.items()}


def refusal(response: str) -> str | None:
    """At the head of an answer, reasoning aside: "I'm sorry, but", "As an AI", or a page's boiler-plate."""
    head = response.rpartition("</think>")[2].lstrip()[:200]
    found = REFUSALS.match(head) or BOILERPLATE.match(head)
    return f"begins with {found[0].strip()[:40]!r}" if found else None


def broken_format(row: dict, response: str) -> str | None:
    """Reasoning that is not closed, or nothing after it; tool calls that are no JSON; a response that was cut off."""
    if row.get("finish_reason") == "length":
        return "was cut off at its greatest length"
    if "think>" in response:
        opened, closed = response.count("<think>"), response.count("</think>")
        if not opened and response.lstrip().startswith("</think>"):
            return "begins with </think>"
        if closed == 0 or opened > closed:
            return "<think> is never closed"
        if closed > max(opened, 1):
            return "</think> stands more often than <think>"
        if not response.rpartition("</think>")[2].strip():
            return "says nothing after </think>"
    if "<tool_call>" in response or "</tool_call>" in response:
        before, *calls = response.split("<tool_call>")
        if "</tool_call>" in before or any(call.count("</tool_call>") != 1 for call in calls):
            return "<tool_call> is never closed, or never opened"
        if not all(is_call(call.partition("</tool_call>")[0]) for call in calls):
            return "a tool call is no JSON with name and arguments"
    for message in calling_messages(row):
        for call in message["tool_calls"]:
            function = call.get("function", call) if isinstance(call, dict) else {}
            if not is_call(function):
                return "a tool call has no name, or arguments that are no mapping"
    if response.count("```") % 2:
        return "a code fence is never closed"
    if response.count("\\boxed{") and not balanced(response[response.rindex("\\boxed{") :]):
        return "\\boxed{ is never closed"
    return None


def calling_messages(row: dict) -> list[dict]:
    parts = [row.get(column) for column in ("messages", "completion", "chosen")]
    return [m for part in parts if isinstance(part, list) for m in part if m.get("tool_calls")]


def is_call(written: str | dict) -> bool:
    """Whether it names a function, with arguments as a mapping (or one as JSON)."""
    try:
        call = json.loads(written) if isinstance(written, str) else written
        arguments = call["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return isinstance(call["name"], str) and bool(call["name"]) and isinstance(arguments, dict)
    except (ValueError, KeyError, TypeError):
        return False


def balanced(text: str) -> bool:
    depth = 0
    for place in range(text.index("{"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return True
    return False


def truncated_ending(response: str) -> str | None:
    """A last line that ends in the middle: a heuristic, so only where it is asked for."""
    last = response.rstrip()
    return None if not last or ENDS.search(last[-1]) else f"ends in {last[-30:]!r}"


def repetition(response: str, words: list[str]) -> str | None:
    """Lines or word runs that come again and again (Gopher's limits, arXiv 2112.11446, table A1).

    Not so short texts as a few lines or 50 words: there the shares say nothing.
    """
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    if len(lines) >= 6:
        repeated = len(lines) - len(set(lines))
        if repeated > 0.3 * len(lines):
            return f"{repeated} of {len(lines)} lines stood before"
    if len(words) < 50:
        return None
    # A run that stands t times makes t - 1 repeated ones, and a repeated run of 10 words holds repeated runs of 4.
    repeated_pairs = len(words) - 1 - len(set(itertools.pairwise(words)))
    repeated_fours = len(words) - 3 - len(set(zip(words, words[1:], words[2:], words[3:], strict=False)))
    if repeated_pairs < 0.10 * len(words) - 1 and repeated_fours < 0.04 * len(words) - 1:
        return None
    for n, limit in ((2, 0.20), (4, 0.16)):
        grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        gram, times = grams.most_common(1)[0]
        if times > 2 and times * n > limit * len(words):
            return f"{' '.join(gram)!r} stands {times} times in {len(words)} words"
    total = len(words) - 9
    repeated = total - len({tuple(words[i : i + 10]) for i in range(total)})
    return f"{repeated} of {total} runs of 10 words stood before" if repeated > 0.10 * total else None


def personal_data(text: str) -> str | None:
    """Addresses, numbers and keys. Kinds, not contents, are told: what is dropped must not leak into a report."""
    text = text[:MOST_LOOKED_AT]
    digits = DIGITS.search(text)
    for kind, pattern in SECRETS.items():
        if not (any(mark in text for mark in MARKS[kind]) if kind in MARKS else digits):
            continue  # patterns cost more than a look for what none of theirs is without
        for found in pattern.finditer(text):
            if kind in ("a card number", "an IBAN") and not checks(found[0], kind):
                continue
            if not PUBLIC.search(found[0]):
                return f"holds {kind}"
    return None


def checks(number: str, kind: str) -> bool:
    """Luhn's sum of a card number, and ISO 7064's of an IBAN: of other numbers, nine in ten and 96 in 97 fail."""
    if kind == "a card number":
        digits = [int(digit) for digit in number if digit.isdigit()][::-1]
        doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
        return len(digits) >= 13 and (sum(digits[::2]) + sum(doubled)) % 10 == 0
    bare = number.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in bare[4:] + bare[:4])) % 97 == 1


def language_of(text: str, words: list[str]) -> str | None:
    """The language by its script, or by its commonest words (European ones of Latin script); None if it is not clear.

    A rough guess, good for paragraphs: short texts, sums and code have none.
    """
    letters = sum(character.isalpha() for character in text[:2000])
    if not letters:
        return None
    shares = {name: len(pattern.findall(text[:2000])) / letters for name, pattern in SCRIPTS.items()}
    if shares["ja"] > 0.1:
        return "ja"
    best = max(shares, key=lambda name: shares[name])
    if shares[best] > 0.4:
        return best
    counts = {name: sum(word in known for word in words[:400]) for name, known in FUNCTION_WORDS.items()}
    first, second = sorted(counts.values(), reverse=True)[:2]
    enough = first >= 3 and first >= 0.08 * min(len(words), 400)
    return max(counts, key=lambda name: counts[name]) if enough and first > 1.2 * second else None
