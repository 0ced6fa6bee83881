"""What the preflight asks of reward functions: right, wrong, empty, odd and endless answers to the rows' questions."""

import math
import re
from collections import Counter

from torch import nn

from utils.answers import final_number
from utils.checks import Look
from utils.named import REWARDS, called, load_toolbox
from utils.rows import split_prompt

PROBED = 8  # rows on which each reward function is tried


def check_reward_names(look: Look) -> None:
    for name, count in Counter(look.trainer.reward_func_names).items():
        if count > 1:
            look.found(
                "same_reward_names",
                f"{count} reward functions are called {name}, so their scores would be added up in one column. "
                "Rename one",
                stops=True,
            )


def check_rewards(look: Look) -> None:
    """Each reward function on right, wrong, empty, odd and very long answers to the rows' own questions.

    A right answer must get more than a wrong one of the same form, and no other answer may get more than it. If that
    form is not the rows' own, it is said: accuracy_reward of TRL, for one, counts boxed answers alone.
    """
    rows = [row for row in look.raw if split_prompt(row)[1]][:PROBED]
    has_gold, rows = bool(rows), rows or look.raw[:PROBED]
    probes = answers_to_try(look, rows)
    totals, usable = {what: [0.0] * len(rows) for what in probes}, True
    weights = look.args.reward_weights or [1.0] * len(look.trainer.reward_funcs)
    # An environment that scores itself comes after the functions of the config, and knows no answer but its own.
    count = len(look.config.recipe.reward_funcs)
    functions, names = look.trainer.reward_funcs[:count], look.trainer.reward_func_names[:count]
    for function, name, weight in zip(functions, names, weights[:count], strict=True):
        if isinstance(function, nn.Module):
            continue  # a reward model reads any text; the first rollout tells what it gives
        given = try_reward(look, function, name, rows, probes)
        if given is not None and name in REWARDS:  # can it read the gold of every row? What runs code, of 1,000
            every = look.raw if name == "code_passes_tests" else look.train.to_list()
            try:
                scores_of(look, function, every, ["0"] * len(every), "a short answer")
            except ValueError as fault:
                look.found("bad_reward", f"{name} {fault}", stops=True)
        usable = usable and given is not None
        for what, scores in (given or {}).items():
            totals[what] = [total + weight * (score or 0.0) for total, score in zip(totals[what], scores, strict=True)]
    if has_gold and usable and functions:
        judge_gold(look, {what: sum(scores) / len(scores) for what, scores in totals.items()})


def answers_to_try(look: Look, rows: list[dict]) -> dict[tuple[str, str], list[str]]:
    """{(kind, form): an answer to each row}."""
    golds, limit = [split_prompt(row)[1] for row in rows], look.args.max_completion_length
    ids = look.whole[0]["input_ids"]
    filler = look.tokenizer.decode(ids * (2 * limit // len(ids) + 1))
    long = look.tokenizer(filler, truncation=True, max_length=limit, add_special_tokens=False)["input_ids"]
    tried = {("other", "an empty answer"): [""] * len(rows)}
    tried["other", "an odd answer"] = ["\u0661\u0662 \\boxed{ </think> #### NaN"] * len(rows)
    tried["other", f"an answer of {limit} tokens"] = [look.tokenizer.decode(long)] * len(rows)
    for kind, answers in {"right": golds, "wrong": [wrong(gold) for gold in golds]}.items():
        for form, write in FORMS.items():
            tried[kind, form] = [write(answer) for answer in answers]
    return tried


def short(answer: str) -> str:
    """The final answer alone: what follows GSM8K's ####, or the number that is announced, or all of it."""
    number = final_number(answer)
    return answer.split("####")[-1].strip() if "####" in answer else answer if number is None else str(number)


FORMS = {  # how an answer may be written, for rewards that read one form alone
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


def try_reward(look: Look, function, name: str, rows: list[dict], probes: dict) -> dict | None:
    """What one reward function gives to each probe; None if it cannot be used."""
    given = {}
    try:
        for (kind, what), texts in probes.items():
            given[kind, what] = scores_of(look, function, rows, texts, f"{what} ({kind})")
        if look.trainer.tools:
            scores_of(look, function, rows, [None] * len(rows), "a completion that is a tool call alone")
    except ValueError as fault:
        look.found("bad_reward", f"{name} {fault}", stops=True)
        return None
    every = {score for scores in given.values() for score in scores}
    if every == {None}:
        look.found(
            "constant_reward",
            f"{name} gives None for every answer, the right one too, so it never applies. Look at the columns it "
            f"reads ({', '.join(look.train.column_names)}), and at the form of the gold",
            stops=True,
        )
        return None
    if len(every) == 1:
        look.found(
            "constant_reward",
            f"{name} gives {every.pop()} to right, wrong, empty and very long answers alike. If it punishes length, "
            f"its limits must lie under max_completion_length = {look.args.max_completion_length}",
            stops=not look.trainer.tools,  # what is rewarded may be a call, and none of these answers calls
        )
    return given


def scores_of(look: Look, function, rows: list[dict], texts: list[str | None], what: str) -> list[float | None]:
    """One call as the trainer makes it. Raises ValueError saying what is wrong with the scores."""
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    if look.trainer.environment_factories is not None:
        toolbox = load_toolbox(look.config)
        columns["environments"] = [toolbox.open(row, row["prompt"])[2] for row in rows]
    columns |= {"trainer_state": look.trainer.state}
    as_messages = isinstance(rows[0]["prompt"], list)
    said = [[{"role": "assistant", "content": text}] if as_messages else text for text in texts]
    ids = [look.tokenizer(text or "", add_special_tokens=False)["input_ids"] for text in texts]
    try:
        prompts = [row["prompt"] for row in rows]
        scores = called(function, {"prompts": prompts, "completions": said, "completion_ids": ids} | columns)
    except Exception as error:  # a user's function: whatever it raises would end the run when such an answer comes
        raise ValueError(f"fails on {what}: {type(error).__name__}: {error}. Mend the function") from error
    numbers = [score for score in scores if score is not None]
    if len(scores) != len(rows):
        raise ValueError(f"gives {len(scores)} scores for {len(rows)} completions. Give one a completion")
    if odd := [score for score in numbers if not isinstance(score, (int, float))]:
        raise ValueError(
            f"gives {odd[0]!r} for {what}, which is no number. Give a float, or None where it does not apply"
        )
    if bad := [score for score in numbers if not math.isfinite(score)]:
        raise ValueError(f"gives {bad[0]} for {what}: its group would have no gradient. Give a finite number, or None")
    return scores


def judge_gold(look: Look, means: dict[tuple[str, str], float]) -> None:
    """Look at the mean total reward of each probe."""
    names = " + ".join(look.trainer.reward_func_names)
    told = {form: means["right", form] for form in FORMS if means["right", form] > means["wrong", form] + 1e-6}
    best = max(told.values() if told else (means["right", form] for form in FORMS))
    what, most = max(
        ((what, mean) for (kind, what), mean in means.items() if kind == "other"), key=lambda item: item[1]
    )
    if most > best + 1e-6:
        look.found(
            "gold_not_best",
            f"{names} gives {most:g} to {what} and {best:g} to the right one, so the model would learn that. Mend the "
            "function",
            stops=True,
        )
    elif not told:
        look.found(
            "gold_not_best",
            f"{names} gives right answers no more than wrong ones ({means['right', FIRST]:g} and "
            f"{means['wrong', FIRST]:g} on average), however they were written, so it may not teach what is right. "
            "Look at the function, and at the form of the gold answers",
        )
    elif FIRST not in told:
        look.found(
            "gold_not_best",
            f"{names} gives the rows' own right answers no more than wrong ones, and tells them apart only "
            f"{max(told, key=told.get)}. Ask for that form in the prompt, or take exact_match, which reads several",
        )


FIRST = next(iter(FORMS))
