"""Greedy answers to held-out prompts, scored by the reward functions, sharded over processes."""

import asyncio
import contextlib
import inspect
import random
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer, set_seed

from utils import trl_internals
from utils.config import Config
from utils.evaluation.kl import kl_from_reference
from utils.generation import Dialogue, Scoring, Toolbox, answer_prompts, stop_tokens
from utils.rewards import call_reward, reward_columns

SCORED_WHILE_TRAINING = 100  # prompts: enough to see a score fall, few enough to cost little


def shard(items: list, trainer: Trainer) -> list:
    """This process's share."""
    return items[trainer.accelerator.process_index :: trainer.accelerator.num_processes]


def answer(
    trainer: Trainer,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    config: Config,
    trained: bool,
) -> list[dict]:
    """Answer the prompts, score the answers, and measure the KL divergence of a trained model from its reference.

    Tools, environments and metrics get the same random numbers every time; those of training are left as they were.

    Returns:
        One dict per prompt, with the keys of `Evaluation.rows`; the same on every process.
    """
    tokenizer, stops = trainer.processing_class, stop_tokens(trainer.model, trainer.processing_class)
    with preserve_rng_state(trainer.args.seed):
        with trl_internals.generation_model(trainer) as model:
            dialogues = answer_prompts(model, tokenizer, config, shard(list(enumerate(heldout)), trainer), toolbox)
        rows = [
            {
                "prompt": dialogue.prompt,
                "reference": dialogue.reference,
                "completion": dialogue.text(tokenizer, stops),
                "tokens": sum(dialogue.own),
                "stopped": dialogue.stopped(stops),
            }
            for dialogue in dialogues
        ]
        if config.recipe.MEASURES_KL:  # before training the model is its own reference
            divergences = kl_from_reference(trainer, config, dialogues) if trained else [0.0] * len(rows)
            rows = [row | {"kl": kl} for row, kl in zip(rows, divergences, strict=True)]
        scores = score(dialogues, metrics)
        toolbox.release(dialogue.environment for dialogue in dialogues)
    numbered = [(d.index, row | {"scores": s}) for d, row, s in zip(dialogues, rows, scores, strict=True)]
    return [row for _, row in sorted(gather_object(numbered), key=lambda item: item[0])]


@contextlib.contextmanager
def preserve_rng_state(seed: int | None = None) -> Iterator[None]:
    """Run something random (dropout, sampling, rewards), seeded or not, without changing the run's random numbers."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            set_seed(seed)
        yield
    random.setstate(python)
    np.random.set_state(numbers)


def score(dialogues: list[Dialogue], metrics: dict[str, Callable]) -> list[dict[str, float]]:
    """{metric: score} of each answer, by the metric that its row names in the column `metric`, or else by all of them.

    Metrics are called as the trainer calls rewards, with the rows' columns by name. An environment may add a score.
    """
    found: list[dict] = [{} for _ in dialogues]
    for name, metric in metrics.items():
        part = [i for i, dialogue in enumerate(dialogues) if dialogue.row.get("metric") in (None, name)]
        if part:
            values = call_reward(metric, reward_arguments([dialogues[i] for i in part]))
            for i, value in zip(part, values, strict=True):
                if value is not None:  # it does not apply
                    found[i][name] = value
    for dialogue, scores in zip(dialogues, found, strict=True):
        if isinstance(dialogue.environment, Scoring):
            value = dialogue.environment.get_reward()
            scores[type(dialogue.environment).__name__] = asyncio.run(value) if inspect.isawaitable(value) else value
    return found


def reward_arguments(dialogues: list[Dialogue]) -> dict[str, list]:
    """The arguments of a reward function; `answer` is the reference, whichever column holds it."""
    columns = reward_columns([dialogue.row for dialogue in dialogues])
    if dialogues[0].environment is not None:
        columns["environments"] = [dialogue.environment for dialogue in dialogues]
    return columns | {
        "prompts": [dialogue.prompt for dialogue in dialogues],
        "completions": [dialogue.completion() for dialogue in dialogues],
        "completion_ids": [dialogue.ids for dialogue in dialogues],
        "answer": [dialogue.reference for dialogue in dialogues],
    }


def mean_scores(rows: list[dict]) -> dict[str, float]:
    """{"heldout/NAME": mean score} of the first prompts, the same ones every time."""
    found: dict[str, list[float]] = {}
    for row in rows[:SCORED_WHILE_TRAINING]:
        for name, value in row["scores"].items():
            found.setdefault(f"heldout/{name}", []).append(value)
    return {name: statistics.fmean(values) for name, values in found.items()}
