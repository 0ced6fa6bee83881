"""Evaluation before and after: held-out loss, and greedy answers to held-out prompts scored by the reward functions.

Each figure has its n and a 95% interval, each difference a paired test. Rows are sharded over processes.
"""

import importlib
import inspect
import json
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation

from utils import rewards
from utils.config import Config
from utils.data import fingerprint
from utils.rows import split_prompt
from utils.run import Run, write_atomically
from utils.source import UserError
from utils.terminal import say


@dataclass
class Evaluation:
    """What one state of the model did: `rows` (prompt, reference, completion, scores) and `losses` a held-out row."""

    rows: list[dict]
    losses: list[tuple[float, int]]  # (summed negative log-likelihood, supervised tokens)

    def metrics(self) -> dict[str, dict]:
        """{name: {"value", "low", "high", "n"}} with 95% intervals."""
        found = {"heldout_loss": mean_loss(self.losses)} if self.losses else {}
        for name in self.rows[0]["scores"] if self.rows else []:
            found[name] = score_interval([row["scores"][name] for row in self.rows])
        return found


def load_metrics(config: Config, heldout: Dataset) -> dict[str, Callable]:
    """The functions that `eval_metrics` names, each tried on the held-out rows' own references.

    Raises UserError, before anything is trained, if there is no such function or a reference cannot be scored.
    """
    metrics = {name: find_reward("eval_metrics", name) for name in config.recipe.eval_metrics}
    for name, metric in metrics.items():
        for number, row in enumerate(heldout.select(range(min(len(heldout), config.recipe.eval_prompts))), 1):
            reference = split_prompt(row)[1]
            try:
                metric(completions=[reference], answer=[reference])
            except Exception as error:  # it may be the user's own function
                said = f"{type(error).__name__}: {error}" if "." in name else error
                raise UserError(
                    f"eval_metrics: {name} cannot score held-out row {number}: {said}. "
                    "Remove the metric, or mend the row"
                ) from None
    return metrics


def load_rewards(config: Config) -> list[Callable]:
    """The functions that `reward_funcs` names. Raises UserError if there is none, or no such function."""
    if not config.recipe.reward_funcs:
        raise UserError("reward_funcs: is missing. Write what scores the completions, as reward_funcs: [exact_match]")
    return [find_reward("reward_funcs", name) for name in config.recipe.reward_funcs]


def find_reward(key: str, name: str) -> Callable:
    """A function of utils/rewards.py by its name, or any other by its dotted path."""
    if "." in name:
        module, _, function = name.rpartition(".")
        try:
            found = operator.attrgetter(function)(importlib.import_module(module))
        except Exception as error:  # the user's module: whatever it raises, it cannot be used
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{key}: {name} cannot be imported ({reason}). Start where {module} can be found"
            ) from None
        if not callable(found):
            raise UserError(f"{key}: {name} is {found!r}, which is no function")
        return found
    known = {
        name: function
        for name, function in inspect.getmembers(rewards, inspect.isfunction)
        if next(iter(inspect.signature(function).parameters), "") == "completions"
    }
    if name not in known:
        raise UserError(f"{key}: {name} is not a reward of utils/rewards.py. There are: {', '.join(known)}")
    return known[name]


def evaluate(trainer, heldout: Dataset, metrics: dict, config: Config, run: Run, when: str) -> Evaluation:
    """Evaluate the trainer's model as it is now; kept in `evaluation/WHEN.json`, so a resumed run does not repeat it.

    Args:
        trainer: a TRL trainer whose eval_dataset holds the processed rows of `heldout`.
        heldout: the rows as they are before processing; each has a prompt and a reference answer.
        metrics: what `load_metrics` gave.
        when: "before" or "after".
    """
    count = min(len(heldout), config.recipe.eval_prompts)
    asked = {"rows": fingerprint(heldout), "count": count, "metrics": list(metrics)}
    asked["max_new_tokens"] = config.recipe.eval_max_new_tokens
    path = run.folder / "evaluation" / f"{when}.json"
    if when == "before" and path.is_file() and (kept := json.loads(path.read_text()))["asked"] == asked:
        return Evaluation(kept["rows"], kept["losses"])
    model, training = trainer.model, trainer.model.training
    model.eval()
    with torch.inference_mode(), trainer.accelerator.autocast():
        losses = heldout_losses(trainer, count)
        rows = answer(trainer, heldout.select(range(count)), metrics, config)
    model.train(training)
    evaluation = Evaluation(rows, losses)
    if trainer.is_world_process_zero():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"asked": asked} | vars(evaluation), indent=1, ensure_ascii=False))
    shown = "  ".join(f"{name} {m['value']:.3f}" for name, m in evaluation.metrics().items())
    say(when, f"{shown}  (n = {count})" if count else "nothing held out, nothing measured")
    return evaluation


def shard(items: list, trainer) -> list:
    return items[trainer.accelerator.process_index :: trainer.accelerator.num_processes]


def heldout_losses(trainer, count: int) -> list[tuple[float, int]]:
    """(negative log-likelihood, supervised tokens) of each held-out row, from the trainer's own tensors."""
    if trainer.eval_dataset is None or count == 0 or "labels" not in trainer.eval_dataset.column_names:
        return []
    processed = trainer.eval_dataset
    # A padding-free batch is one long row: taken singly, each row keeps a loss of its own.
    size = 1 if trainer.data_collator.padding_free else trainer.args.per_device_eval_batch_size
    order = sorted(range(min(count, len(processed))), key=lambda i: -len(processed[i]["input_ids"]))
    mine, found = shard(order, trainer), []
    for start in range(0, len(mine), size):
        chosen = mine[start : start + size]
        batch = trainer.data_collator([processed[i] for i in chosen])
        batch = {name: value.to(trainer.model.device) for name, value in batch.items() if torch.is_tensor(value)}
        output = trainer.model(**batch, fused_lm_head=True)
        totals, counts = -output.log_probs.float().sum(-1), output.label_mask.sum(-1)
        found += [(i, total.item(), int(n.item())) for i, total, n in zip(chosen, totals, counts, strict=True)]
    return [(total, n) for _, total, n in sorted(gather_object(found))]


def answer(trainer, heldout: Dataset, metrics: dict, config: Config) -> list[dict]:
    """Greedy answers to the prompts, scored: left-padded batches of like length, sharded over processes."""
    tokenizer, size = trainer.processing_class, trainer.args.per_device_eval_batch_size
    asked = []
    for index, row in enumerate(heldout):
        prompt, reference = split_prompt(row)
        if prompt is not None:
            asked.append((index, prompt, reference, encode(tokenizer, prompt, row)))
    asked.sort(key=lambda item: -len(item[3]))
    mine, found = shard(asked, trainer), []
    model_config = trainer.model.generation_config
    stops = model_config.eos_token_id if isinstance(model_config.eos_token_id, list) else [model_config.eos_token_id]
    settings = GenerationConfig(
        max_new_tokens=config.recipe.eval_max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=sorted({tokenizer.eos_token_id, *stops} - {None}),
        pad_token_id=tokenizer.pad_token_id,
    )
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            inputs = tokenizer.pad({"input_ids": [ids for *_, ids in part]}, padding_side="left", return_tensors="pt")
            inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
            made = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
            for (index, prompt, reference, _), ids in zip(part, made.tolist(), strict=True):
                ids = cut_at_stop(ids, settings.eos_token_id)
                text = tokenizer.decode([i for i in ids if i not in settings.eos_token_id])
                found.append((index, {
                    "prompt": prompt, "reference": reference, "completion": text, "tokens": len(ids),
                    "stopped": ids[-1] in settings.eos_token_id,
                }))  # fmt: skip
    rows = [row for _, row in sorted(gather_object(found), key=lambda item: item[0])]
    for row in rows:
        row["scores"] = {}
    for name, metric in metrics.items() if rows else []:
        scores = metric(completions=[row["completion"] for row in rows], answer=[row["reference"] for row in rows])
        for row, score in zip(rows, scores, strict=True):
            row["scores"][name] = score
    return rows


def encode(tokenizer, prompt: list[dict] | str, row: dict) -> list[int]:
    """The prompt's token ids, with the row's tools and template settings as TRL reads them."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    tools, settings = row.get("tools"), row.get("chat_template_kwargs") or {}
    tools = json.loads(tools) if isinstance(tools, str) else tools
    encoded = tokenizer.apply_chat_template(
        prompt, tools=tools, add_generation_prompt=True, return_dict=True, **settings
    )
    return encoded["input_ids"]


def cut_at_stop(ids: list[int], stops: list[int]) -> list[int]:
    """The ids up to and with the first stop; what follows it is padding."""
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in stops), ids)


def mean_loss(losses: list[tuple[float, int]]) -> dict:
    """Loss a token over all rows; the interval is that of a ratio estimator over rows."""
    n, tokens = len(losses), sum(count for _, count in losses)
    value = sum(total for total, _ in losses) / tokens
    spread = math.sqrt(sum((total - value * count) ** 2 for total, count in losses) * n / max(1, n - 1)) / tokens
    return {"value": value, "low": value - 1.96 * spread, "high": value + 1.96 * spread, "n": n}


def score_interval(scores: list[float]) -> dict:
    """Mean and 95% interval: Wilson's for scores of 0 and 1, the normal one for others."""
    n, value = len(scores), sum(scores) / len(scores)
    if set(scores) <= {0.0, 1.0}:
        low, high = wilson(sum(scores), n)
    else:
        spread = 1.96 * math.sqrt(sum((s - value) ** 2 for s in scores) / max(1, n - 1) / n)
        low, high = value - spread, value + spread
    return {"value": value, "low": low, "high": high, "n": n}


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927)."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict]:
    """{name: {"value": after - before, "p_value", "test"}} on the same rows."""
    found = {}
    if before.losses and len(before.losses) == len(after.losses):
        change = after.metrics()["heldout_loss"]["value"] - before.metrics()["heldout_loss"]["value"]
        # The change is a ratio of sums over rows, so its spread is that of the rows' deviations from it.
        spread = mean_loss([(a - b, n) for (b, n), (a, _) in zip(before.losses, after.losses, strict=True)])
        p = two_sided(change, (spread["high"] - spread["low"]) / 3.92)
        found["heldout_loss"] = {"value": change, "p_value": p, "test": "paired normal"}
    for name in before.rows[0]["scores"] if before.rows else []:
        pairs = [(b["scores"][name], a["scores"][name]) for b, a in zip(before.rows, after.rows, strict=True)]
        change = sum(a - b for b, a in pairs) / len(pairs)
        if {score for pair in pairs for score in pair} <= {0.0, 1.0}:
            gained, lost = sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)
            found[name] = {"value": change, "p_value": mcnemar(gained, lost), "test": "McNemar exact"}
        else:
            p = paired_normal([a - b for b, a in pairs])
            found[name] = {"value": change, "p_value": p, "test": "paired normal"}
    return found


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that `gained` and `lost` are halves of the same coin (McNemar 1947)."""
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_normal(differences: list[float]) -> float:
    """Two-sided p-value that the mean difference is 0, by the normal approximation."""
    n, mean = len(differences), sum(differences) / len(differences)
    return two_sided(mean, math.sqrt(sum((d - mean) ** 2 for d in differences) / max(1, n - 1) / n))


def two_sided(change: float, standard_error: float) -> float:
    if standard_error == 0:
        return 1.0 if change == 0 else 0.0
    return math.erfc(abs(change) / standard_error / math.sqrt(2))
