"""Rewards: pure functions in TRL's signature, `f(completions, **columns) -> list[float]`.

One function serves as reward in online RL, as score in best-of-K selection and as metric before and after training:
one verifier, one truth.
"""

import re
from decimal import Decimal

# ASCII digits alone: "٤" or "²" is not an answer. Thousands are separated by commas in threes, or not at all.
NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
# What announces a final answer.
ANNOUNCED = re.compile(r"####|\\boxed\s*\{|\b(?:final )?answer(?: is|:)\s*:?", re.IGNORECASE)
# The announced number, free of markup, and not the start of something else (4th, 4/2, 12 + 7, 1,23).
ANSWER = re.compile(rf"[\s*$`(\[{{\\]*(?:boxed\s*{{\s*)?({NUMBER})(?![0-9a-zA-Z_/]|[.,][0-9]|\s*[-+x*/^=]\s*[0-9])")


def exact_match(completions: list, answer: list[str], **kwargs) -> list[float]:
    """1.0 where a completion's final number is the gold answer's, else 0.0.

    Reads "The answer is 4.", "#### 4", "\\boxed{4}", "4" and "1,234" alike. Reasoning in <think> does not count, and
    different final answers in one completion score 0: a model that names several has not answered.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.
        answer: n gold answers, in any of the same forms (openai/gsm8k's column is one).

    Returns:
        n scores.

    Raises:
        ValueError: a gold answer in which no number can be read; every completion would score 0.
    """
    scores = []
    for completion, gold_text in zip(completions, answer, strict=True):
        gold = final_number(gold_text)
        if gold is None:
            raise ValueError(f"no final number can be read in the gold answer {gold_text[-80:]!r}")
        scores.append(float(final_number(text_of(completion)) == gold))
    return scores


# What says that a question cannot be answered.
DECLINES = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|impossible to|not possible to|unable to|no way to)"
    r" (?:be )?(?:know|known|tell|told|say|said|determined?|work(?:ed)? out|calculated?|answer|answered)\b"
    r"|\b(?:is|are|was|were)(?: not|n't) (?:said|given|stated|known|specified|mentioned|told)\b"
    r"|\bnot enough (?:information|data|details)\b|\b(?:insufficient|missing) (?:information|data|details)\b"
    r"|\b(?:do not|don't) (?:know|say|tell|have enough)\b",
    re.IGNORECASE,
)


def honest(completions: list, **kwargs) -> list[float]:
    """1.0 where a completion says that the question cannot be answered and gives no final answer, else 0.0.

    For questions that have none; refusing one that can be answered is what exact_match counts as wrong. Reads English.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.

    Returns:
        n scores.
    """
    texts = [after_thinking(text_of(completion)) for completion in completions]
    return [float(bool(text and DECLINES.search(text) and not final_numbers(text))) for text in texts]


def contains_answer(completions: list, answer: list[str], **kwargs) -> list[float]:
    """1.0 where a completion holds the gold answer as whole words, whatever the case, else 0.0.

    For names and facts. A completion that lists everything holds the answer too: no reward for training by itself.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.
        answer: n gold answers.

    Returns:
        n scores.

    Raises:
        ValueError: an empty gold answer, which everything holds.
    """
    scores = []
    for completion, gold in zip(completions, answer, strict=True):
        if not gold.strip():
            raise ValueError("the gold answer is empty")
        words = re.escape(gold.strip())
        text = after_thinking(text_of(completion)) or ""
        scores.append(float(bool(re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE))))
    return scores


def text_of(completion: str | list[dict]) -> str:
    """The answering text of a completion in text or messages form."""
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


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
    bare = text.strip().removesuffix(".")
    if re.fullmatch(NUMBER, bare):
        return {to_decimal(bare)}
    answers = [ANSWER.match(text, mark.end()) for mark in ANNOUNCED.finditer(text)]
    return {to_decimal(answer[1]) for answer in answers if answer}


def to_decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
