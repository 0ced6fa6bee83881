"""Reward functions tried before training: on right, wrong, empty, odd and very long answers to the rows' questions."""

import math
import re
from collections import Counter
from collections.abc import Callable

from torch import nn

from utils.config import UserError, describe_error
from utils.data import split_prompt
from utils.preflight import PreflightContext
from utils.rewards import call_reward, final_number, is_shipped

PROBED = 8  # rows on which each reward function is tried


def check_reward_names(context: PreflightContext) -> None:
    for name, count in Counter(context.trainer.reward_func_names).items():
        if count > 1:
            context.report(
                "same_reward_names",
                f"{count} reward functions are called {name}, so their scores would be added up in one column. "
                "Rename one",
                stops=True,
            )


def check_rewards(context: PreflightContext) -> None:
    """Each reward function on right, wrong, empty, odd and very long answers to the rows' own questions.

    A right answer must get more than a wrong one of the same form, and no other answer may get more than it. If that
    style is not the rows' own, that is reported: TRL's accuracy_reward, for one, counts only boxed answers.
    """
    rows = [row for row in context.sample if split_prompt(row)[1]][:PROBED]
    has_gold, rows = bool(rows), rows or context.sample[:PROBED]
    probes = answers_to_try(context, rows)
    totals, usable = {what: [0.0] * len(rows) for what in probes}, True
    weights = context.args.reward_weights or [1.0] * len(context.trainer.reward_funcs)
    # An environment that scores itself comes after the functions of the config, and knows no answer but its own.
    count = len(context.config.recipe.reward_funcs)
    functions, names = context.trainer.reward_funcs[:count], context.trainer.reward_func_names[:count]
    for function, name, weight in zip(functions, names, weights[:count], strict=True):
        if isinstance(function, nn.Module):
            continue  # a reward model reads any text; the first rollout shows its scores
        given = try_reward(context, function, name, rows, probes)
        if given is not None and is_shipped(name):  # can it read the gold of every row? What runs code, of 1,000
            every = context.sample if name == "code_passes_tests" else context.train.to_list()
            try:
                call_as_trained(context, function, every, ["0"] * len(every), "a short answer", environments=False)
            except ValueError as fault:
                context.report("bad_reward", f"{name} {fault}", stops=True)
        usable = usable and given is not None
        for what, scores in (given or {}).items():
            totals[what] = [total + weight * (score or 0.0) for total, score in zip(totals[what], scores, strict=True)]
    if has_gold and usable and functions:
        compare_gold(context, {what: sum(scores) / len(scores) for what, scores in totals.items()})


def answers_to_try(context: PreflightContext, rows: list[dict]) -> dict[tuple[str, str], list[str]]:
    """{(kind, form): an answer to each row}."""
    golds, limit = [split_prompt(row)[1] for row in rows], context.args.max_completion_length
    ids = context.tokenized[0]["input_ids"]
    filler = context.tokenizer.decode(ids * (2 * limit // len(ids) + 1))
    long = context.tokenizer(filler, truncation=True, max_length=limit, add_special_tokens=False)["input_ids"]
    tried = {("other", "an empty answer"): [""] * len(rows)}
    tried["other", "an odd answer"] = ["\u0661\u0662 \\boxed{ </think> #### NaN"] * len(rows)
    tried["other", f"an answer of {limit} tokens"] = [context.tokenizer.decode(long)] * len(rows)
    for kind, answers in {"right": golds, "wrong": [wrong(gold) for gold in golds]}.items():
        for form, write in ANSWER_STYLES.items():
            tried[kind, form] = [write(answer) for answer in answers]
    return tried


def short(answer: str) -> str:
    """The final answer alone: what follows GSM8K's ####, or the number that is announced, or all of it."""
    number = final_number(answer)
    return answer.split("####")[-1].strip() if "####" in answer else answer if number is None else str(number)


ANSWER_STYLES = {  # how an answer may be written, for rewards that read one form alone
    "as the rows write it": lambda answer: answer,
    "as `The answer is X.`": lambda answer: f"The answer is {short(answer)}.",
    "as `Answer: X`": lambda answer: f"Answer: {short(answer)}",
    "in <answer> tags": lambda answer: f"<think>\nSo it is.\n</think>\n<answer>{short(answer)}</answer>",
    "in \\boxed{}": lambda answer: f"\\boxed{{{short(answer)}}}",
    "after </think>, in \\boxed{}": lambda answer: f"<think>\nSo it is.\n</think>\n\\boxed{{{short(answer)}}}",
}


def wrong(gold: str) -> str:
    """Another answer in the gold answer's form: the last digit of each number changed, or another letter or words."""
    if re.search(r"[0-9]", gold):
        return re.sub(r"[0-9](?![0-9])", lambda digit: str((int(digit[0]) + 3) % 10), gold)
    return {"A": "B"}.get(gold.strip(), "A") if len(gold.strip()) == 1 else "I do not know."


def try_reward(
    context: PreflightContext, function: Callable, name: str, rows: list[dict], probes: dict
) -> dict | None:
    """What one reward function gives to each probe; None if it cannot be used."""
    given = {}
    try:
        for (kind, what), texts in probes.items():
            given[kind, what] = call_as_trained(context, function, rows, texts, f"{what} ({kind})")
        if context.trainer.tools:
            call_as_trained(context, function, rows, [None] * len(rows), "a completion that is a tool call alone")
    except ValueError as fault:
        context.report("bad_reward", f"{name} {fault}", stops=True)
        return None
    every = {score for scores in given.values() for score in scores}
    if every == {None}:
        context.report(
            "constant_reward",
            f"{name} gives None for every answer, the right one too, so it never applies. Look at the columns it "
            f"reads ({', '.join(context.train.column_names)}), and at the form of the gold",
            stops=True,
        )
        return None
    if len(every) == 1:
        context.report(
            "constant_reward",
            f"{name} gives {every.pop()} to right, wrong, empty and very long answers alike. If it punishes length, "
            f"its limits must lie under max_completion_length = {context.args.max_completion_length}",
            stops=not context.trainer.tools,  # what is rewarded may be a call, and none of these answers calls
        )
    return given


def call_as_trained(
    context: PreflightContext,
    function: Callable,
    rows: list[dict],
    texts: list[str | None],
    what: str,
    environments: bool = True,
) -> list[float | None]:
    """One call as the trainer makes it. Raises ValueError saying what is wrong with the scores.

    Args:
        what: how the answers are named in that message.
        environments: whether the function is given environments; each is a real one, opened for its row.
    """
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    columns |= {"trainer_state": context.trainer.state}
    as_messages = isinstance(rows[0]["prompt"], list)
    completions = [[{"role": "assistant", "content": text}] if as_messages else text for text in texts]
    ids = [context.tokenizer(text or "", add_special_tokens=False)["input_ids"] for text in texts]
    columns |= {"prompts": [row["prompt"] for row in rows], "completions": completions, "completion_ids": ids}
    opened: list = []
    try:
        if context.toolbox.environment_factory is not None and environments:
            columns["environments"] = opened
            for row in rows:
                opened.append(context.toolbox.open(row, row["prompt"])[2])
        scores = call_reward(function, columns)
    except Exception as error:  # a user's function: whatever it raises would end the run when such an answer comes
        cause = error.__cause__ if isinstance(error, UserError) and isinstance(error.__cause__, Exception) else error
        raise ValueError(f"fails on {what}: {describe_error(cause)}") from error
    finally:
        context.toolbox.release(opened)
    numbers = [score for score in scores if score is not None]
    if len(scores) != len(rows):
        raise ValueError(f"returns {len(scores)} scores for {len(rows)} completions. Return one for each completion")
    if odd := [score for score in numbers if not isinstance(score, (int, float))]:
        raise ValueError(
            f"gives {odd[0]!r} for {what}, which is not a number. Return a float, or None where it does not apply"
        )
    if bad := [score for score in numbers if not math.isfinite(score)]:
        raise ValueError(
            f"gives {bad[0]} for {what}: its group would have no gradient. Return a finite number, or None"
        )
    return scores


def compare_gold(context: PreflightContext, means: dict[tuple[str, str], float]) -> None:
    """Whether right answers get the most, by the mean total reward of each probe."""
    names = " + ".join(context.trainer.reward_func_names)
    separated = {
        form: means["right", form] for form in ANSWER_STYLES if means["right", form] > means["wrong", form] + 1e-6
    }
    best = max(separated.values() if separated else (means["right", form] for form in ANSWER_STYLES))
    what, most = max(
        ((what, mean) for (kind, what), mean in means.items() if kind == "other"), key=lambda item: item[1]
    )
    if most > best + 1e-6:
        context.report(
            "gold_not_best",
            f"{names} gives {most:g} to {what} and {best:g} to the right one, so the model would learn that. Correct "
            "the function",
            stops=True,
        )
    elif not separated:
        context.report(
            "gold_not_best",
            f"{names} gives right answers no more than wrong ones ({means['right', AS_WRITTEN]:g} and "
            f"{means['wrong', AS_WRITTEN]:g} on average), however they were written, so it may not teach what is "
            "right. Look at the function, and at the form of the gold answers",
        )
    elif AS_WRITTEN not in separated:
        context.report(
            "gold_not_best",
            f"{names} gives the rows' own right answers no more than wrong ones, and tells them apart only "
            f"{max(separated, key=separated.__getitem__)}. Ask for that format in the prompt, or use exact_match, "
            "which reads several",
        )


AS_WRITTEN = next(iter(ANSWER_STYLES))
