"""Evaluation before and after training: losses of held-out rows and answers to held-out prompts."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer

from utils import trl_internals
from utils.config import Config
from utils.data import fingerprint
from utils.evaluation.answers import answer, shard
from utils.evaluation.results import Evaluation
from utils.files import say, write_atomically
from utils.generation import Toolbox

REFERENCE = ["ref_chosen_logps", "ref_rejected_logps"]  # TRL's columns where they are precomputed


def evaluate(
    trainer: Trainer,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    config: Config,
    folder: Path,
    before: Evaluation | None = None,
) -> Evaluation:
    """Evaluate the trainer's model as it is now, and write the result to `evaluation/before.json` or `after.json`.

    A resumed run reads before.json where its settings are the same.

    Args:
        trainer: a TRL trainer whose eval_dataset holds the processed rows of `heldout`.
        heldout: the unprocessed rows; each has a prompt and a reference answer.
        metrics: the functions of `eval_metrics`.
        toolbox: what the model may call.
        folder: the run's.
        before: after training, the evaluation before it.
    """
    when = "after" if before else "before"
    count = min(len(heldout), config.recipe.eval_prompts)
    settings = {"rows": fingerprint(heldout), "count": count, "metrics": list(metrics)}
    settings["max_new_tokens"] = config.recipe.eval_max_new_tokens
    path = folder / "evaluation" / f"{when}.json"
    if when == "before" and path.is_file() and (kept := json.loads(path.read_text())).get("settings") == settings:
        return Evaluation(kept["rows"], kept["losses"], kept["pairs"])
    model, training = trainer.model, trainer.model.training
    model.eval()
    with torch.inference_mode(), trainer.accelerator.autocast():
        logps = heldout_logps(trainer, count, before)
        rows = answer(trainer, heldout.select(range(count)), metrics, toolbox, config, trained=before is not None)
    model.train(training)
    if logps and len(logps[0]) == 2:  # chosen and rejected
        evaluation = Evaluation(rows, [], implicit_rewards(logps, before, trainer.beta))
    else:
        evaluation = Evaluation(rows, [(-logp, tokens) for ((logp, tokens),) in logps], [])
    if trainer.is_world_process_zero():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"settings": settings} | vars(evaluation), indent=1, ensure_ascii=False))
    values = "  ".join(f"{name} {metric['value']:.3f}" for name, metric in evaluation.metrics().items())
    say(when, f"{values}  (n = {count})" if count else "no rows are held out, so nothing is measured")
    return evaluation


def heldout_logps(trainer: Trainer, count: int, before: Evaluation | None) -> list[list[tuple[float, int]]]:
    """(log-probability, supervised tokens) of each answer of each held-out row, from the trainer's own tensors.

    A row has one answer (SFT), or a chosen and a rejected one (DPO). Rows of prompts alone (GRPO) give an empty list.
    """
    processed = trainer.eval_dataset
    if processed is None or count == 0 or not {"labels", "chosen_ids"} & set(processed.column_names):
        return []
    count = min(count, len(processed))
    preference = "chosen_ids" in processed.column_names
    if before is None and "ref_chosen_logps" in processed.column_names and trainer.ld_alpha is None:
        sides = processed.select(range(count)).select_columns(REFERENCE)
        return [[(row[side], 0) for side in REFERENCE] for row in sides]  # precomputed: the model is its own reference
    # A padding-free batch is one long row: in a batch of its own, each row keeps a loss of its own.
    alone = not preference and trainer.data_collator.padding_free
    size = 1 if alone else trainer.args.per_device_eval_batch_size
    ids = "chosen_ids" if preference else "input_ids"
    order = sorted(range(count), key=lambda i: -len(processed[i][ids]))
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


def implicit_rewards(logps: list[list[tuple[float, int]]], before: Evaluation | None, beta: float) -> list[dict]:
    """The log-probabilities of each pair, and the margin and accuracy of the rewards that DPO gives its answers.

    The reward of an answer is beta x (its log-probability - the reference's) (Rafailov et al. 2023, section 4).
    """
    pairs = [{"logp_chosen": chosen, "logp_rejected": rejected} for (chosen, _), (rejected, _) in logps]
    for pair, first in zip(pairs, before.pairs if before else pairs, strict=True):
        gained = {side: pair[side] - first[side] for side in ("logp_chosen", "logp_rejected")}
        pair["reward_margin"] = beta * (gained["logp_chosen"] - gained["logp_rejected"])
        pair["reward_accuracy"] = float(pair["reward_margin"] > 0)
    return pairs
