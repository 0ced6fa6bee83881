"""Reward functions and metrics: found by the names that a config gives them, tried, and called as TRL calls them.

Nothing heavy is imported before it is needed: the processes of mathematics.py start through here.
"""

import asyncio
import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.config import Config, UserError, choose, describe_error, import_dotted
from utils.data import split_prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

# The columns that hold a row's prompt and answers; all others are given to reward functions by their names.
NOT_ARGUMENTS = {"prompt", "completion", "completion_ids", "messages", "chosen", "rejected", "text"}


@functools.cache
def shipped_rewards() -> dict[str, Callable]:
    """The functions of functions.py whose first parameter is `completions`, by name."""
    functions = inspect.getmembers(importlib.import_module("utils.rewards.functions"), inspect.isfunction)
    return {name: f for name, f in functions if next(iter(inspect.signature(f).parameters)) == "completions"}


def is_shipped(name: str) -> bool:
    return name in shipped_rewards()


def find_reward(key: str, name: str) -> Callable:
    """A function of utils/rewards/functions.py by its name, or any other by its dotted path."""
    if "." in name:
        return import_dotted(key, name)
    return choose(key, name, shipped_rewards(), "utils/rewards/functions.py")


def load_metrics(config: Config, heldout: "Dataset") -> dict[str, Callable]:
    """The functions that `eval_metrics` names, each tried on the held-out rows' own references.

    Raises UserError, before anything is trained, if there is no such function or a reference cannot be scored.
    """
    names, limit = config.recipe.eval_metrics, config.recipe.eval_max_new_tokens
    metrics = {name: with_limit(find_reward("eval_metrics", name), limit) for name in names}
    rows = heldout.select(range(min(len(heldout), config.recipe.eval_prompts))).to_list()
    for number, row in enumerate(rows, 1):
        if metrics and row.get("metric") not in (None, *metrics):
            raise UserError(
                f"eval_metrics: held-out row {number} is to be scored by {row['metric']!r} (its column `metric`), "
                f"which is not among {list(metrics)}. Add it"
            )
    for name, metric in metrics.items():
        scored = [(number, row) for number, row in enumerate(rows, 1) if row.get("metric") in (None, name)]
        try:
            try_metric(metric, [row for _, row in scored], name)
        except ValueError:  # one of the rows is at fault
            for number, row in scored:
                name_faulty_row(metric, number, row, name)
    return metrics


def name_faulty_row(metric: Callable, number: int, row: dict, name: str) -> None:
    try:
        try_metric(metric, [row], name)
    except ValueError as error:
        raise UserError(
            f"eval_metrics: {name} cannot score held-out row {number}: {error}. Remove the metric, or correct the row"
        ) from error


def try_metric(metric: Callable, rows: list[dict], name: str) -> None:
    """Score the rows' own references. Raises ValueError saying why a metric cannot."""
    if not rows:
        return
    split = [split_prompt(row) for row in rows]
    completions = [
        [{"role": "assistant", "content": reference}] if isinstance(prompt, list) else reference
        for prompt, reference in split
    ]
    arguments: dict[str, list] = {"prompts": [prompt for prompt, _ in split], "completions": completions}
    arguments |= {"completion_ids": [[0]] * len(rows)} | reward_columns(rows)
    try:
        scores = call_reward(metric, arguments | {"answer": [reference for _, reference in split]})
    except Exception as error:  # it may be the user's own function
        raise ValueError(describe_error(error) if "." in name else str(error)) from error
    if len(scores) != len(rows):
        raise ValueError(f"it gives {len(scores)} scores for {len(rows)} completions")
    odd = [score for score in scores if not (score is None or (isinstance(score, (int, float)) and isfinite(score)))]
    if odd:
        raise ValueError(f"it gives {odd[0]!r}, which is not a score")


def reward_columns(rows: list[dict]) -> dict[str, list]:
    """The columns that reward functions are given by their names."""
    return {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_ARGUMENTS}


def score_answers(metric: Callable, row: dict, completions: list) -> list[float | None]:
    """A metric's scores of several answers to a row with an `answer`; None where it does not apply or cannot score."""
    count = len(completions)
    arguments: dict[str, list] = {"prompts": [split_prompt(row)[0]] * count, "completions": completions}
    arguments |= {"completion_ids": [[0]] * count} | reward_columns([row] * count)
    try:
        return call_reward(metric, arguments | {"answer": [str(row["answer"])] * count})
    except Exception:  # maybe the user's own; load_metrics reports what fails where it is measured
        return [None] * count


def call_reward(function: Callable, arguments: dict[str, list]) -> list[float | None]:
    """The scores of a reward function as plain numbers, awaited if it is asynchronous; called as TRL calls it."""
    import torch

    scores = function(**{"trainer_state": None, "log_extra": ignore, "log_metric": ignore} | arguments)
    scores = asyncio.run(awaited(scores)) if inspect.isawaitable(scores) else scores
    return [score.item() if isinstance(score, (np.generic, torch.Tensor)) else score for score in scores]


async def awaited(scores: Awaitable[list]) -> list:
    return await scores


def ignore(*_: object) -> None:
    """Stands in for the trainer's log where there is none."""


def load_rewards(config: Config) -> "list[Callable | PreTrainedModel]":
    """What `reward_funcs` names: functions, or reward models by a hub name or a folder.

    Raises UserError if there is none, or no such function or model.
    """
    from utils.model import load_reward_model

    names = config.recipe.reward_funcs
    if not names and not config.recipe.environment_factory:
        raise UserError(
            "reward_funcs: is missing. Write what scores the completions, such as reward_funcs: [exact_match]"
        )
    limit = config.training.max_completion_length
    return [
        load_reward_model(name, config.model.dtype)
        if "/" in name or Path(name).is_dir()
        else with_limit(with_place(find_reward("reward_funcs", name), name), limit)
        for name in names
    ]


def with_place(function: Callable, name: str) -> Callable:
    """A user's function; what it raises while training ends the run with one message that says where it was raised."""
    if "." not in name or not inspect.isroutine(function):
        return function

    def as_user_error(error: Exception) -> UserError:
        return UserError(
            f"reward_funcs: {name} failed while training; the newest checkpoint is kept. Correct the function, then "
            f"start again with the same command. {describe_error(error)}"
        )

    @functools.wraps(function)
    def scores(*args: object, **kwargs: object) -> list[float | None]:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise as_user_error(error) from error

    @functools.wraps(function)
    async def scores_later(*args: object, **kwargs: object) -> Awaitable[list[float | None]]:
        try:
            return await function(*args, **kwargs)
        except Exception as error:
            raise as_user_error(error) from error

    return scores_later if inspect.iscoroutinefunction(function) else scores


def with_limit(function: Callable, limit: int) -> Callable:
    """The function, given the run's own length limit if it has a parameter for it."""
    if "max_completion_length" not in inspect.signature(function).parameters:
        return function
    return functools.partial(function, max_completion_length=limit)
