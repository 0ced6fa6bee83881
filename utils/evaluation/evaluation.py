"""Evaluation before and after: held-out rows, and greedy answers to held-out prompts scored by the reward functions.

Each figure has its n and a 95% interval, each difference a paired test. Rows are sharded over processes.
"""

import asyncio
import contextlib
import inspect
import json
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer, set_seed

from utils import trl_internals
from utils.config import Config
from utils.data import fingerprint
from utils.evaluation.kl import kl_from_reference
from utils.evaluation.statistics import mcnemar, mean_loss, paired_normal, score_interval, two_sided
from utils.files import say, write_atomically
from utils.generation import Dialogue, Scoring, Toolbox, answer_prompts, stop_tokens
from utils.rewards import call_reward, reward_columns

MEANS = ("answer_tokens", "logp_chosen", "logp_rejected", "reward_margin")  # no shares, even where all are 0
REFERENCE = ["ref_chosen_logps", "ref_rejected_logps"]  # TRL's columns where they are precomputed


@dataclass
class Evaluation:
    """What one state of the model did, to each held-out row and to each of its prompts.

    `figures` are what a mean is taken of, by metric: scores of 0 and 1, log-probabilities, numbers of tokens.
    """

    rows: list[dict]  # prompt, reference, completion, tokens, stopped, scores, kl
    losses: list[tuple[float, int]]  # SFT: (summed negative log-likelihood, supervised tokens)
    pairs: list[dict]  # DPO: logp_chosen, logp_rejected; margin and accuracy of the implicit rewards

    def figures(self) -> dict[str, dict[int, float]]:
        """{metric: {number of the row: value}}."""
        found: dict[str, dict[int, float]] = {}
        for i, row in enumerate(self.rows):
            for name, score in row["scores"].items():
                found.setdefault(name, {})[i] = score
        if self.rows:
            found["answer_tokens"] = {i: row["tokens"] for i, row in enumerate(self.rows)}
        for i, pair in enumerate(self.pairs):
            for name, value in pair.items():
                found.setdefault(name, {})[i] = value
        return found

    def metrics(self) -> dict[str, dict]:
        """{name: {"value", "low", "high", "n"}} with 95% intervals."""
        found = {"heldout_loss": mean_loss(self.losses)} if self.losses else {}
        for name, values in self.figures().items():
            measured = list(values.values())
            found[name] = mean_loss([(v, 1) for v in measured]) if name in MEANS else score_interval(measured)
        if self.rows and "kl" in self.rows[0]:
            found["kl"] = mean_loss([(row["kl"], row["tokens"]) for row in self.rows])
        return found


def evaluate(
    trainer: Trainer,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    config: Config,
    folder: Path,
    before: Evaluation | None = None,
) -> Evaluation:
    """Evaluate the trainer's model as it is now; kept in `evaluation/*.json`, so a resumed run does not repeat it.

    Args:
        trainer: a TRL trainer whose eval_dataset holds the processed rows of `heldout`.
        heldout: the rows as they are before processing; each has a prompt and a reference answer.
        metrics: the functions of `eval_metrics`.
        toolbox: what the model may call.
        folder: the run's.
        before: after training, what was found before it.
    """
    when = "after" if before else "before"
    count = min(len(heldout), config.recipe.eval_prompts)
    settings = {"rows": fingerprint(heldout), "count": count, "metrics": list(metrics)}
    settings["max_new_tokens"] = config.recipe.eval_max_new_tokens
    path = folder / "evaluation" / f"{when}.json"
    if when == "before" and path.is_file() and (kept := json.loads(path.read_text()))["settings"] == settings:
        return Evaluation(kept["rows"], kept["losses"], kept["pairs"])
    model, training = trainer.model, trainer.model.training
    model.eval()
    with torch.inference_mode(), trainer.accelerator.autocast():
        logps = heldout_logps(trainer, count, before)
        asked = heldout.select(range(count))
        rows = answer(trainer, asked, metrics, toolbox, config, trained=before is not None)
    model.train(training)
    if logps and len(logps[0]) == 2:  # chosen and rejected
        evaluation = Evaluation(rows, [], implicit_rewards(logps, before, trainer.beta))
    else:
        evaluation = Evaluation(rows, [(-logp, tokens) for ((logp, tokens),) in logps], [])
    if trainer.is_world_process_zero():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"settings": settings} | vars(evaluation), indent=1, ensure_ascii=False))
    shown = "  ".join(f"{name} {m['value']:.3f}" for name, m in evaluation.metrics().items())
    say(when, f"{shown}  (n = {count})" if count else "nothing held out, nothing measured")
    return evaluation


def shard(items: list, trainer: Trainer) -> list:
    return items[trainer.accelerator.process_index :: trainer.accelerator.num_processes]


def heldout_logps(trainer: Trainer, count: int, before: Evaluation | None) -> list[list[tuple[float, int]]]:
    """(log-probability, supervised tokens) of each answer of each held-out row, from the trainer's own tensors.

    A row has one answer (SFT) or two, chosen and rejected (DPO); GRPO's rows have none.
    """
    processed = trainer.eval_dataset
    if processed is None or count == 0 or not {"labels", "chosen_ids"} & set(processed.column_names):
        return []
    preference = "chosen_ids" in processed.column_names
    if before is None and "ref_chosen_logps" in processed.column_names and trainer.ld_alpha is None:
        sides = processed.select(range(min(count, len(processed)))).select_columns(REFERENCE)
        return [[(row[side], 0) for side in REFERENCE] for row in sides]  # precomputed: the model is its own reference
    # A padding-free batch is one long row: taken singly, each row keeps a loss of its own.
    alone = not preference and trainer.data_collator.padding_free
    size = 1 if alone else trainer.args.per_device_eval_batch_size
    lengths = "chosen_ids" if preference else "input_ids"
    order = sorted(range(min(count, len(processed))), key=lambda i: -len(processed[i][lengths]))
    mine, found = shard(order, trainer), []
    for start in range(0, len(mine), size):
        part = mine[start : start + size]
        batch = trainer.data_collator([processed[i] for i in part])
        batch = {name: value.to(trainer.model.device) for name, value in batch.items() if torch.is_tensor(value)}
        if preference:
            batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
            batch = {name: value for name, value in batch.items() if not name.startswith("ref_")}
        totals, counts = trl_internals.answer_log_probs(trainer.model, batch)
        answers = list(zip(totals.tolist(), counts.tolist(), strict=True))  # all chosen, then all rejected
        found += [(i, answers[place :: len(part)]) for place, i in enumerate(part)]
    return [answers for _, answers in sorted(gather_object(found), key=lambda item: item[0])]


def implicit_rewards(logps: list, before: Evaluation | None, beta: float) -> list[dict]:
    """Of each pair: log-probability of its sides, and margin and accuracy of the rewards that DPO gives them.

    The reward of an answer is beta x (its log-probability - the reference's) (Rafailov et al. 2023, section 4).
    """
    pairs = [{"logp_chosen": chosen, "logp_rejected": rejected} for (chosen, _), (rejected, _) in logps]
    for pair, first in zip(pairs, before.pairs if before else pairs, strict=True):
        gained = {side: pair[side] - first[side] for side in ("logp_chosen", "logp_rejected")}
        pair["reward_margin"] = beta * (gained["logp_chosen"] - gained["logp_rejected"])
        pair["reward_accuracy"] = float(pair["reward_margin"] > 0)
    return pairs


def answer(
    trainer: Trainer,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    config: Config,
    trained: bool,
) -> list[dict]:
    """Greedy answers to the prompts, scored, sharded over processes; of a trained model, its KL too.

    Tools, environments and metrics draw the same random numbers each time, and training as if none had been drawn.
    """
    with preserve_rng_state(trainer.args.seed):
        return answer_and_score(trainer, heldout, metrics, toolbox, config, trained)


@contextlib.contextmanager
def preserve_rng_state(seed: int | None = None) -> Iterator[None]:
    """Whatever random numbers are drawn within (dropout, samples, rewards), the run goes on as if none had been."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if seed is not None:
            set_seed(seed)
        yield
    random.setstate(python)
    np.random.set_state(numbers)


def answer_and_score(
    trainer: Trainer,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    config: Config,
    trained: bool,
) -> list[dict]:
    tokenizer, stops = trainer.processing_class, stop_tokens(trainer.model, trainer.processing_class)
    mine, found = shard(list(enumerate(heldout)), trainer), []
    with trl_internals.generation_model(trainer) as model:
        dialogues = answer_prompts(model, tokenizer, config, mine, toolbox)
    for dialogue in dialogues:
        found.append((dialogue.index, {
            "prompt": dialogue.prompt, "reference": dialogue.reference, "completion": dialogue.text(tokenizer, stops),
            "tokens": sum(dialogue.own), "stopped": dialogue.stopped(stops),
        }))  # fmt: skip
    if config.recipe.MEASURES_KL:  # before training the model is its own reference
        moved = kl_from_reference(trainer, config, dialogues) if trained else [0.0] * len(found)
        for (_, row), kl in zip(found, moved, strict=True):
            row["kl"] = kl
    scores = score(dialogues, metrics)
    toolbox.release(dialogue.environment for dialogue in dialogues)
    for (_, row), scored in zip(found, scores, strict=True):
        row["scores"] = scored
    return [row for _, row in sorted(gather_object(found), key=lambda item: item[0])]


def score(dialogues: list[Dialogue], metrics: dict) -> list[dict[str, float]]:
    """{metric: score} of each answer: by the one that its row's column `metric` names, or by all; and by an
    environment that scores. A metric is called as the trainer calls rewards, with the rows' columns by name.
    """
    found: list[dict] = [{} for _ in dialogues]
    for name, metric in metrics.items():
        part = [i for i, dialogue in enumerate(dialogues) if dialogue.row.get("metric") in (None, name)]
        if part:
            given = call_reward(metric, reward_arguments([dialogues[i] for i in part]))
            for i, value in zip(part, given, strict=True):
                if value is not None:  # it does not apply
                    found[i][name] = value
    for dialogue, scores in zip(dialogues, found, strict=True):
        if isinstance(dialogue.environment, Scoring):
            given = dialogue.environment.get_reward()
            given = asyncio.run(given) if inspect.isawaitable(given) else given
            scores[type(dialogue.environment).__name__] = given
    return found


def reward_arguments(dialogues: list[Dialogue]) -> dict[str, list]:
    """The arguments of a reward function; `answer` is the reference, wherever the row keeps it."""
    columns = reward_columns([dialogue.row for dialogue in dialogues])
    if dialogues[0].environment is not None:
        columns["environments"] = [dialogue.environment for dialogue in dialogues]
    return columns | {
        "prompts": [dialogue.prompt for dialogue in dialogues],
        "completions": [dialogue.completion() for dialogue in dialogues],
        "completion_ids": [dialogue.ids for dialogue in dialogues],
        "answer": [dialogue.reference for dialogue in dialogues],
    }


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict]:
    """{name: {"value": after - before, "p_value", "test"}} on the same rows."""
    found = {}
    if before.losses and len(before.losses) == len(after.losses):
        change = after.metrics()["heldout_loss"]["value"] - before.metrics()["heldout_loss"]["value"]
        # The change is a ratio of sums over rows, so its spread is that of the rows' deviations from it.
        spread = mean_loss([(a - b, n) for (b, n), (a, _) in zip(before.losses, after.losses, strict=True)])
        p = two_sided(change, (spread["high"] - spread["low"]) / 3.92)
        found["heldout_loss"] = {"value": change, "p_value": p, "test": "paired normal"}
    if before.rows and "kl" in before.rows[0]:
        kl = after.metrics()["kl"]
        p = two_sided(kl["value"], (kl["high"] - kl["low"]) / 3.92)
        found["kl"] = {"value": kl["value"], "p_value": p, "test": "normal"}
    figures = after.figures()
    for name, values in before.figures().items():
        pairs = [(value, figures[name][i]) for i, value in values.items()]
        change = sum(a - b for b, a in pairs) / len(pairs)
        if {score for pair in pairs for score in pair} <= {0.0, 1.0}:
            gained, lost = sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)
            found[name] = {"value": change, "p_value": mcnemar(gained, lost), "test": "McNemar exact"}
        else:
            p = paired_normal([a - b for b, a in pairs])
            found[name] = {"value": change, "p_value": p, "test": "paired normal"}
    return found


SCORED_WHILE_TRAINING = 100  # prompts: enough to see a score fall, few enough to cost little


def mean_scores(rows: list[dict]) -> dict[str, float]:
    """{"heldout/NAME": mean score} of the first prompts, the same ones every time."""
    found: dict[str, list[float]] = {}
    for row in rows[:SCORED_WHILE_TRAINING]:
        for name, score in row["scores"].items():
            found.setdefault(f"heldout/{name}", []).append(score)
    return {name: statistics.fmean(scores) for name, scores in found.items()}
