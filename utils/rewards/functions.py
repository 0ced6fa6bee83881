"""Rewards: pure functions in TRL's signature, `f(completions, **columns) -> list[float]`.

One function serves as reward in online RL, as score in best-of-K selection and as metric before and after training:
one verifier, one truth.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor

from utils.rewards.answers import (
    ENDING,
    after_thinking,
    answer_text,
    as_number,
    as_words,
    code_of,
    final_expressions,
    final_number,
    final_numbers,
)

WORDS = re.compile(r"[a-z]{2,}(?: [a-z]+)*")  # an answer in words: no mathematics


def exact_match(completions: list, answer: list[str], **kwargs: object) -> list[float]:
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
        scores.append(float(final_number(answer_text(completion)) == gold))
    return scores


# Phrases that say that a question cannot be answered.
DECLINES = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|impossible to|not possible to|unable to|no way to)"
    r" (?:be )?(?:know|known|tell|told|say|said|determined?|work(?:ed)? out|calculated?|answer|answered)\b"
    r"|\b(?:is|are|was|were)(?: not|n't) (?:said|given|stated|known|specified|mentioned|told)\b"
    r"|\bnot enough (?:information|data|details)\b|\b(?:insufficient|missing) (?:information|data|details)\b"
    r"|\b(?:do not|don't) (?:know|say|tell|have enough)\b",
    re.IGNORECASE,
)


def honest(completions: list, **kwargs: object) -> list[float]:
    """1.0 where a completion says that the question cannot be answered and gives no final answer, else 0.0.

    For questions that have none; refusing one that can be answered is what exact_match counts as wrong. Reads English.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.

    Returns:
        n scores.
    """
    texts = [after_thinking(answer_text(completion)) for completion in completions]
    return [float(bool(text and DECLINES.search(text) and not final_numbers(text))) for text in texts]


def contains_answer(completions: list, answer: list[str], **kwargs: object) -> list[float]:
    """1.0 where a completion holds the gold answer as whole words, in any case, else 0.0.

    For names and facts. A completion that lists everything holds the answer too: not a reward to train on by itself.

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
        text = after_thinking(answer_text(completion)) or ""
        scores.append(float(bool(re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE))))
    return scores


def math_accuracy(completions: list, answer: list[str], **kwargs: object) -> list[float]:
    """1.0 where a completion's final answer equals the gold one as mathematics (1/2, 0.5, \\frac12), else 0.0.

    The final answer is what stands in \\boxed{}, or else after ####, or after "answer is" or "Answer:", or all of a
    completion of one line. Reasoning in <think> does not count, and all final answers of a completion must be right.
    Equality is math-verify's; an expression that takes it seconds is wrong.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.
        answer: n gold answers: an expression, or a solution that ends in one of the forms above.

    Returns:
        n scores.

    Raises:
        ValueError: a gold answer that math-verify cannot read.
    """
    from utils.rewards.mathematics import are_equal

    scores: list[float] = []
    compared: list[tuple[str, str]] = []  # (gold, expression) of all completions: processes work on them at once
    places: list[int] = []
    for place, (completion, gold_text) in enumerate(zip(completions, answer, strict=True)):
        given = final_expressions(after_thinking(answer_text(completion)) or "")
        gold = (final_expressions(gold_text) or [gold_text])[-1]
        number, numbers = as_number(gold), [as_number(expression) for expression in given]
        if WORDS.fullmatch(as_words(gold)):  # read as mathematics, words are products of letters, and equal anagrams
            right = bool(given) and all(as_words(expression) == as_words(gold) for expression in given)
        elif number is not None and None not in numbers:
            right = bool(given) and all(found == number for found in numbers)
        else:
            right = bool(given)  # if all of them are equal, which is decided below
            compared += [(gold, expression) for expression in given]
            places += [place] * len(given)
        scores.append(float(right))
    for place, equal in zip(places, are_equal(compared), strict=True):
        scores[place] = min(scores[place], float(equal))
    return scores


def think_format(completions: list, **kwargs: object) -> list[float]:
    """1.0 where a completion reasons once, first, in <think>...</think>, and then answers, else 0.0.

    Neither part may be empty. The opening tag may be missing: some chat templates end the prompt with it.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.

    Returns:
        n scores.
    """
    scores = []
    for completion in completions:
        reasoning, *answers = answer_text(completion).strip().removeprefix("<think>").split("</think>")
        well_formed = len(answers) == 1 and reasoning.strip() and answers[0].strip()
        scores.append(float(bool(well_formed) and "<think>" not in reasoning + answers[0]))
    return scores


def ends_with_answer(completions: list, **kwargs: object) -> list[float]:
    """1.0 where a completion ends with the final number that it announces, else 0.0: "The answer is 51. The" does not.

    A unit of a word, markup and a full stop may follow the number. Against drift after the answer, which a reward of
    the answer alone cannot see.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.

    Returns:
        n scores.
    """
    texts = [(after_thinking(answer_text(completion)) or "").rstrip() for completion in completions]
    return [float(bool(ENDING.search(text[-200:]))) for text in texts]


def soft_overlong_punishment(
    completions: list, completion_ids: list[list[int]], max_completion_length: int, **kwargs: object
) -> list[float]:
    """0.0 up to four fifths of max_completion_length, from there falling to -1.0 at its end (DAPO, arXiv 2503.14476).

    Args:
        completions: n completions; only their lengths count.
        completion_ids: their token ids.
        max_completion_length: the run's own, in tokens; the punishment begins a fifth before it, as in the paper.

    Returns:
        n scores from -1.0 to 0.0.
    """
    from trl.rewards import get_soft_overlong_punishment

    return get_soft_overlong_punishment(max_completion_length, max_completion_length // 5)(completion_ids)


def repetition_penalty(completions: list, completion_ids: list[list[int]], **kwargs: object) -> list[float]:
    """Minus the share of a completion's 20-grams of tokens that stood before: 0.0 to -1.0 (arXiv 2502.03373, C.2).

    20 tokens, since plain prose and sums repeat shorter ones.

    Args:
        completions: n completions; only their tokens count.
        completion_ids: their token ids.

    Returns:
        n scores from -1.0 to 0.0.
    """
    from trl.rewards import get_repetition_penalty_reward

    return get_repetition_penalty_reward(ngram_size=20)(completion_ids)


def code_passes_tests(completions: list, tests: list, **kwargs: object) -> list[float]:
    """1.0 where a completion's Python code passes its tests in a sandbox (sandbox.py), else 0.0.

    The code is the last fenced block of the answer, or all of an answer without one.

    Args:
        completions: n texts, or n lists of messages of which the last one answers.
        tests: n tests: lines of asserts, or lists of {"stdin", "stdout"}.

    Returns:
        n scores.

    Raises:
        ValueError: this machine cannot isolate the code, or tests that test nothing.
        SyntaxError: tests that are not Python.
    """
    from utils.rewards.sandbox import passes_tests, unsupported

    if reason := unsupported():
        raise ValueError(reason)
    texts = [after_thinking(answer_text(completion)) or "" for completion in completions]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [float(passed) for passed in threads.map(passes_tests, map(code_of, texts), tests)]
