"""What the preflight checks of online RL: prompts, batches, reward functions, and a first rollout."""

import asyncio
import copy
import inspect
import math
import re
from collections import Counter

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from utils.checks import Look, evenly, spread, token_pieces
from utils.rewards import final_number
from utils.rows import split_prompt

PROMPTS = 8  # prompts of the first rollout
PROBED = 8  # rows on which each reward function is tried


def prepare(trainer, rows: Dataset) -> list[dict]:
    """The prompts as the trainer tokenises them for generation."""
    ids, *_ = trainer._tokenize_prompts(rows["prompt"][:])
    return [{"input_ids": list(row), "trained": [False] * len(row)} for row in ids]


def check_prompts(look: Look) -> None:
    room = look.context and look.context - look.args.max_completion_length
    long = [i for i, row in enumerate(look.whole) if room is not None and len(row["input_ids"]) > room]
    if room is not None and room < 1:
        look.found(
            "long_prompts",
            f"max_completion_length = {look.args.max_completion_length} alone fills the model's context of "
            f"{look.context}. Lower it, so that a prompt has room before it",
            stops=True,
        )
    elif long:
        longest = max(len(row["input_ids"]) for row in look.whole)
        look.found(
            "long_prompts",
            f"{look.rows(long)} ask more than {room} tokens (the longest {longest}), and leave no room for "
            f"max_completion_length = {look.args.max_completion_length} in the model's context of {look.context}. "
            "Remove them in to_training_row, or lower max_completion_length",
            stops=True,
        )


def steps_of(look: Look) -> tuple[int, int]:
    """(prompts a generation, steps): whole generations only, as TRL's RepeatSampler gives them."""
    args = look.args
    prompts = args.generation_batch_size // args.num_generations
    batches = len(look.train) // prompts * args.num_iterations * args.steps_per_generation
    an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return prompts, args.max_steps if args.max_steps > 0 and an_epoch else math.ceil(args.num_train_epochs * an_epoch)


def check_steps(look: Look) -> None:
    (prompts, steps), args = steps_of(look), look.args
    if steps < 1:
        most = len(look.train) * args.num_generations
        look.found(
            "no_steps",
            f"{len(look.train)} prompts are fewer than the {prompts} of one generation ({args.generation_batch_size} "
            f"completions / num_generations = {args.num_generations}), so the run would take no step and call it "
            f"success. Write generation_batch_size: {most} and a per_device_train_batch_size that divides it, or give "
            "more prompts",
            stops=True,
        )


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
    for function, name, weight in zip(look.trainer.reward_funcs, look.trainer.reward_func_names, weights, strict=True):
        if isinstance(function, nn.Module):
            continue  # a reward model reads any text; the first rollout tells what it gives
        given = try_reward(look, function, name, rows, probes)
        usable = usable and given is not None
        for what, scores in (given or {}).items():
            totals[what] = [total + weight * (score or 0.0) for total, score in zip(totals[what], scores, strict=True)]
    if has_gold and usable:
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
    alone = len(look.trainer.reward_funcs) == 1
    if every == {None}:
        look.found(
            "constant_reward",
            f"{name} gives None for every answer, the right one too, so it never applies. Look at the columns it "
            f"reads ({', '.join(look.train.column_names)}), and at the form of the gold",
            stops=alone,
        )
        return None if alone else given
    if len(every) == 1:  # a warning: rarer answers may differ, and the first rollout tells what the model's get
        look.found(
            "constant_reward",
            f"{name} gives {every.pop()} to right, wrong, empty and very long answers alike. If it punishes length, "
            f"its limits must lie under max_completion_length = {look.args.max_completion_length}",
        )
    return given


def scores_of(look: Look, function, rows: list[dict], texts: list[str | None], what: str) -> list[float | None]:
    """One call as the trainer makes it. Raises ValueError saying what is wrong with the scores."""
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    columns |= {"trainer_state": look.trainer.state, "log_extra": ignore, "log_metric": ignore}
    as_messages = isinstance(rows[0]["prompt"], list)
    said = [[{"role": "assistant", "content": text}] if as_messages else text for text in texts]
    ids = [look.tokenizer(text or "", add_special_tokens=False)["input_ids"] for text in texts]
    try:
        scores = function(prompts=[r["prompt"] for r in rows], completions=said, completion_ids=ids, **columns)
        scores = list(asyncio.run(scores) if inspect.isawaitable(scores) else scores)
    except Exception as error:  # a user's function: whatever it raises would end the run when such an answer comes
        raise ValueError(f"fails on {what}: {type(error).__name__}: {error}. Mend the function") from error
    scores = [score.item() if isinstance(score, (np.generic, torch.Tensor)) else score for score in scores]
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


def ignore(*_: object) -> None:
    """Stands for the trainer's log while a function is tried."""


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


def check_rollout(look: Look) -> None:
    """A few prompts answered and scored by the trainer itself: is there anything to learn from?"""
    if look.is_stopped():
        return
    trainer, args = look.trainer, look.args
    rows = [look.train[i] for i in evenly(len(look.train), PROMPTS)]
    training, state = trainer.model.training, copy.copy(trainer.state)
    trainer.model.train()
    torch.manual_seed(args.seed)
    made = trainer._generate_and_score_completions([dict(row) for row in rows for _ in range(args.num_generations)])
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    ids, mask = made["completion_ids"][0].tolist(), made["completion_mask"][0].tolist()
    look.rollout = metrics | {"example": [token for token, kept in zip(ids, mask, strict=True) if kept]}
    trainer._metrics["train"].clear()
    for log in (*trainer._logs.values(), *trainer._logs["rewards"].values()):
        log.clear()
    trainer.state = state
    trainer.model.train(training)
    equal, clipped, reward = (
        metrics[name] for name in ("frac_reward_zero_std", "completions/clipped_ratio", "reward")
    )
    if equal > 0.5:
        look.found(
            "equal_rewards",
            f"in {equal:.0%} of {len(rows)} groups all {args.num_generations} completions got the same reward (mean "
            f"{reward:.2f}), and such a group has no gradient. Take prompts that the model solves sometimes, raise "
            "num_generations or temperature, or mend the reward; start from a model that knows the answer's form",
            stops=equal == 1,
        )
    if clipped > 0.5:
        look.found(
            "clipped_completions",
            f"{clipped:.0%} of the completions were cut at max_completion_length = {args.max_completion_length}, "
            "before their answer. Raise it, or start from a model that ends its answers (SFT first)",
            stops=clipped >= 0.95,
        )


CHECKS = (check_prompts, check_steps, check_reward_names, check_rewards, check_rollout)


def facts(look: Look) -> dict[str, str]:
    """The table."""
    lengths, args = sorted(len(row["input_ids"]) for row in look.whole), look.args
    prompts, steps = steps_of(look)
    found = {
        "rows": f"{len(look.train):,} prompts to train on, {len(look.heldout):,} held out"
        + (f"; the lengths are of {len(look.whole):,} of them" if len(look.whole) < len(look.train) else ""),
        "prompts": spread(lengths),
        "a generation": f"{args.world_size} x {args.per_device_train_batch_size} x {args.steps_per_generation} = "
        f"{args.generation_batch_size} completions (processes x rows each x steps) = {prompts} prompts x "
        f"{args.num_generations}",
        "steps": f"{steps:,}, each on {args.world_size * args.per_device_train_batch_size} x "
        f"{args.gradient_accumulation_steps} completions",
    }
    if look.rollout:
        found["first rollout"] = (
            f"reward {look.rollout['reward']:.3f}; {look.rollout['frac_reward_zero_std']:.0%} of the groups have "
            f"equal rewards; {look.rollout['completions/clipped_ratio']:.0%} of the completions are cut"
        )
    return found


def example(look: Look) -> list[tuple[str, bool]]:
    completion = look.rollout.get("example", [])
    ids = look.whole[0]["input_ids"]
    return token_pieces(ids + completion, [False] * len(ids) + [True] * len(completion), look.tokenizer)
