"""Functions that a config names (rewards, metrics, tools, environments): of utils/ by name, or by a dotted path."""

import asyncio
import functools
import importlib
import inspect
import operator
import os
import sys
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from utils import rewards, tools
from utils.config import Config
from utils.model import load_reward_model
from utils.rows import split_prompt
from utils.source import UserError
from utils.tools import Environment, Scoring, Toolbox, methods_of

PARTS = {"prompt", "completion", "completion_ids", "messages", "chosen", "rejected", "text"}  # no columns for rewards
REWARDS = {
    name: function
    for name, function in inspect.getmembers(rewards, inspect.isfunction)
    if next(iter(inspect.signature(function).parameters)) == "completions"
}
TOOLS = {"calculator": tools.calculator}


def load_metrics(config: Config, heldout: Dataset) -> dict[str, Callable]:
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
        asked = [(number, row) for number, row in enumerate(rows, 1) if row.get("metric") in (None, name)]
        if not asked or fault_of_metric(metric, [row for _, row in asked], name) is None:
            continue
        for number, row in asked:  # one of them is at fault
            if fault := fault_of_metric(metric, [row], name):
                raise UserError(
                    f"eval_metrics: {name} cannot score held-out row {number}: {fault}. "
                    "Remove the metric, or mend the row"
                )
    return metrics


def fault_of_metric(metric: Callable, rows: list[dict], name: str) -> str | None:
    """What keeps a metric from scoring the rows' own references, or None."""
    split = [split_prompt(row) for row in rows]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in PARTS}
    said = [
        [{"role": "assistant", "content": reference}] if isinstance(prompt, list) else reference
        for prompt, reference in split
    ]
    columns["answer"] = [reference for _, reference in split]
    asked = {"prompts": [prompt for prompt, _ in split], "completions": said, "completion_ids": [[0]] * len(rows)}
    try:
        scores = called(metric, asked | columns)
    except Exception as error:  # it may be the user's own function
        return f"{type(error).__name__}: {error}" if "." in name else str(error)
    if len(scores) != len(rows):
        return f"it gives {len(scores)} scores for {len(rows)} completions"
    odd = [score for score in scores if not (score is None or (isinstance(score, (int, float)) and isfinite(score)))]
    return f"it gives {odd[0]!r}, which is no score" if odd else None


def called(function: Callable, arguments: dict) -> list[float | None]:
    """What a reward function gives, as plain numbers, awaited if it is asynchronous; called as TRL calls it."""
    given = function(**{"trainer_state": None, "log_extra": ignore, "log_metric": ignore} | arguments)
    given = asyncio.run(given) if inspect.isawaitable(given) else given
    return [score.item() if isinstance(score, (np.generic, torch.Tensor)) else score for score in given]


def ignore(*_: object) -> None:
    """Stands for the trainer's log where there is none."""


def load_rewards(config: Config) -> list[Callable | PreTrainedModel]:
    """What `reward_funcs` names: functions, or reward models by a hub name or a folder.

    Raises UserError if there is none, or no such function or model.
    """
    names = config.recipe.reward_funcs
    if not names and not config.recipe.environment_factory:
        raise UserError("reward_funcs: is missing. Write what scores the completions, as reward_funcs: [exact_match]")
    limit = config.training.max_completion_length
    return [
        load_reward_model(name, config.model.dtype)
        if "/" in name or Path(name).is_dir()
        else with_limit(find_reward("reward_funcs", name), limit)
        for name in names
    ]


def with_limit(function: Callable, limit: int) -> Callable:
    """The function, told the run's own length limit if it has a parameter for it."""
    if "max_completion_length" not in inspect.signature(function).parameters:
        return function
    return functools.partial(function, max_completion_length=limit)


def load_toolbox(config: Config) -> Toolbox:
    """What `tools` and `environment_factory` name. Raises UserError if there is no such function or class."""
    found = load_tools(config.recipe.tools)
    named = config.recipe.environment_factory if config.method == "grpo" else None
    paths = named if isinstance(named, dict) else {None: named} if named else {}
    factories = {key: find_path("environment_factory", path) for key, path in paths.items()}
    scores = [check_environment(paths[key], factory) for key, factory in factories.items()]
    return Toolbox(found, factories if isinstance(named, dict) else factories.get(None), any(scores))


def load_tools(names: list[str]) -> list[Callable]:
    """Tools of utils/tools.py by their names, others by their dotted paths, each fit to be shown to a model."""
    found = [
        find_path("tools", name) if "." in name else known("tools", name, TOOLS, "utils/tools.py") for name in names
    ]
    for tool in found:
        check_tool(tool)
    return found


def check_tool(tool: Callable) -> None:
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise UserError(
            f"tools: {tool.__name__} cannot be shown to the model: {' '.join(str(error).split())} Give it types, and "
            "a docstring with Args:, as utils/tools.py has them"
        ) from None


def check_environment(path: str, factory: Callable) -> bool:
    """Whether it scores itself. Raises UserError for what cannot be made, begun or called."""
    try:
        environment = factory()
    except Exception as error:  # the user's class
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"environment_factory: {path} cannot be made without arguments ({reason})") from None
    if not isinstance(environment, Environment):
        raise UserError(f"environment_factory: {path} has no method reset(**row), with which a rollout begins")
    for method in methods_of(environment):
        check_tool(method)
    return isinstance(environment, Scoring)


def find_reward(key: str, name: str) -> Callable:
    """A function of utils/rewards.py by its name, or any other by its dotted path."""
    return find_path(key, name) if "." in name else known(key, name, REWARDS, "utils/rewards.py")


def known(key: str, name: str, functions: dict[str, Callable], where: str) -> Callable:
    if name not in functions:
        kind = {"tools": "tool"}.get(key, "reward")
        raise UserError(f"{key}: {name} is not a {kind} of {where}. There are: {', '.join(functions)}")
    return functions[name]


def find_path(key: str, name: str) -> Callable:
    """What a dotted path names. Raises UserError if it cannot be imported or called."""
    module, _, function = name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module of the user's, beside which the recipe is started
    try:
        found = operator.attrgetter(function)(importlib.import_module(module))
    except Exception as error:  # the user's module: whatever it raises, it cannot be used
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{key}: {name} cannot be imported ({reason}). Start where {module} can be found") from None
    if not callable(found):
        raise UserError(f"{key}: {name} is {found!r}, which is no function")
    return found
