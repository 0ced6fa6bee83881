"""Reading a completion: its answering text, its final answer, its code. Pure functions of text."""

import re
from decimal import Decimal

# ASCII digits alone: "٤" or "²" is not an answer. Thousands are separated by commas in threes, or not at all.
NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
# What announces a final answer.
ANNOUNCED = re.compile(r"####|\b(?:final )?answer\**(?: is|:)\**\s*:?", re.IGNORECASE)
# What makes a number a part of something else (4th, 4/2, 12 + 7, 1,23, 4\pi) or one of several (4 or 5; 4, 5).
GOES_ON = (
    r"[0-9a-zA-Z_/]|[.,:][0-9]|\s*\\(?!text|mathrm|mbox|[%$,;! )\]])"
    r"|\s*(?:[,;:~–—]|\(?\s*(?:or|and|to|through|vs\.?)\b|\\text\s*\{\s*(?:or|and)\s*\})\s*[$(\\]*[-+]?[0-9]"
    r"|\s*(?:[-+*/^=×·÷]|x\b)\s*[$(\\]*[0-9a-zA-Z]"
)
# The announced number, free of markup.
ANSWER = re.compile(rf"[\s*$€£`(\[{{\\]*(?:boxed\s*{{\s*)?(?:text\s*{{\s*)?({NUMBER})(?!{GOES_ON})")
# All that may stand in a \boxed{} beside its one number: markup, a unit.
UNIT = r"(?:\s|\\[,;! ]|\\?[%$]|\^\{?\\circ\}?|\\(?:text|mathrm|mbox)\s*\{[^{}0-9]*\}|[a-zA-Z]{2,})*"
BOXED = re.compile(rf"[\s$€£\\]*(?:text\s*\{{\s*)?({NUMBER})\s*\}}?(?:{UNIT})\.?")
ANNOUNCED_LINES = {
    "####": re.compile(r"####([^\n]*)"),
    "answer": re.compile(r"\b(?:final )?answer\**(?: is|:)\**\s*:?([^\n]*)", re.IGNORECASE),
}
# An announced number at the very end of a text, with its unit or markup.
ENDING = re.compile(
    rf"(?:####|\\boxed\s*\{{|\b(?:final )?answer\**(?: is|:)\**\s*:?)[\s*$`(\[{{\\]*(?:boxed\s*{{\s*)?{NUMBER}"
    r"[\s*$`)\]}%]*(?:[^\W\d]+)?[*$`]*\.?[*$`]*$",
    re.IGNORECASE,
)


def answer_text(completion: str | list[dict]) -> str:
    """The answering text of a completion in text or messages form, its reasoning first where a parser took it apart.

    Empty where the last message is not an answer: with tools, a completion may end with a tool's result.
    """
    if isinstance(completion, str):
        return completion
    last = completion[-1]
    if last["role"] != "assistant":
        return ""
    reasoning = last.get("reasoning_content")
    return (f"<think>{reasoning}</think>" if reasoning else "") + (last["content"] or "")


def after_thinking(text: str) -> str | None:
    """What follows the reasoning in <think>, or None if that was never closed: the answer never came."""
    if "<think>" in text or "</think>" in text:
        _, closed, text = text.rpartition("</think>")
        if not closed or "<think>" in text:
            return None
    return text


def final_number(text: str) -> Decimal | None:
    """The one final number that a text gives, or None if it gives none or several different ones."""
    found = final_numbers(after_thinking(text) or "")
    return found.pop() if len(found) == 1 else None


def final_numbers(text: str) -> set[Decimal]:
    """All numbers that a text, free of reasoning, gives as its final one."""
    text = plainly(text)
    bare = text.strip().removesuffix(".")
    if re.fullmatch(NUMBER, bare):
        return {to_decimal(bare)}
    found = [ANSWER.match(text, mark.end()) for mark in ANNOUNCED.finditer(text)]
    found += [BOXED.fullmatch(part) for part in boxed_parts(text)]
    return {to_decimal(answer[1]) for answer in found if answer}


def plainly(text: str) -> str:
    """With the minus sign of keyboards, and without LaTeX's ways to space thousands."""
    text = text.replace("\u2212", "-").replace("{,}", ",").replace(",\\!", ",")
    return re.sub(r"(?<=[0-9])\\[,;](?=[0-9]{3})", "", text)


def as_number(expression: str) -> Decimal | None:
    """The number that an expression is, and nothing else; None if it is anything more."""
    bare = plainly(expression).strip(" \n\t$*`").removesuffix(".")
    return to_decimal(bare) if re.fullmatch(NUMBER, bare) else None


def as_words(expression: str) -> str:
    """An expression without markup, in small letters, for answers that are words."""
    return re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", expression).strip(" \n\t$*`.").lower()


def final_expressions(text: str) -> list[str]:
    """All expressions that a text, free of reasoning, gives as its final answer, or [] if it gives none."""
    if boxes := boxed_parts(text):
        return boxes
    for mark in ("####", "answer"):
        found = [line.strip().rstrip(".").strip() for line in ANNOUNCED_LINES[mark].findall(text)]
        if found := [expression for expression in found if expression]:
            return found
    line = text.strip()
    return [line] if line and "\n" not in line else []


def boxed_parts(text: str) -> list[str]:
    """What stands in each \\boxed{}, braces within it counted; one that is never closed is not an answer."""
    parts, start = [], text.find("\\boxed{")
    while start >= 0:
        depth, end = 1, start + len("\\boxed{")
        first = end
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        parts.append(text[first : end - 1].strip())
        start = text.find("\\boxed{", end)
    return parts


def to_decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def code_of(text: str) -> str:
    """The last fenced block of a text, or all of it."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else text
