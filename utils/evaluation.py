"""Evaluation before and after: held-out rows, and greedy answers to held-out prompts scored by the reward functions.

Each figure has its n and a 95% interval, each difference a paired test. Rows are sharded over processes.
"""

import importlib
import inspect
import json
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
from utils.drift import kl_from_reference
from utils.intervals import mcnemar, mean_loss, paired_normal, score_interval, two_sided
from utils.rows import split_prompt
from utils.run import Run, write_atomically
from utils.source import UserError
from utils.terminal import say

MEASURES = ("answer_tokens", "logp_chosen", "logp_rejected", "reward_margin")  # even where all are 0, no shares
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
            found[name] = mean_loss([(v, 1) for v in measured]) if name in MEASURES else score_interval(measured)
        if self.rows and "kl" in self.rows[0]:
            found["kl"] = mean_loss([(row["kl"], row["tokens"]) for row in self.rows])
        return found


def load_metrics(config: Config, heldout: Dataset) -> dict[str, Callable]:
    """The functions that `eval_metrics` names, each tried on the held-out rows' own references.

    Raises UserError, before anything is trained, if there is no such function or a reference cannot be scored.
    """
    metrics = {name: find_reward("eval_metrics", name) for name in config.recipe.eval_metrics}
    for name, metric in metrics.items():
        for number, row in enumerate(heldout.select(range(min(len(heldout), config.recipe.eval_prompts))), 1):
            if row.get("metric") not in (None, *metrics):
                raise UserError(
                    f"eval_metrics: held-out row {number} is to be scored by {row['metric']!r} (its column `metric`), "
                    f"which is not among {list(metrics)}. Add it"
                )
            if row.get("metric") not in (None, name):
                continue
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


def evaluate(
    trainer, heldout: Dataset, metrics: dict, config: Config, run: Run, before: Evaluation | None = None
) -> Evaluation:
    """Evaluate the trainer's model as it is now; kept in `evaluation/*.json`, so a resumed run does not repeat it.

    Args:
        trainer: a TRL trainer whose eval_dataset holds the processed rows of `heldout`.
        heldout: the rows as they are before processing; each has a prompt and a reference answer.
        metrics: what `load_metrics` gave.
        before: after training, what was found before it.
    """
    when = "after" if before else "before"
    count = min(len(heldout), config.recipe.eval_prompts)
    asked = {"rows": fingerprint(heldout), "count": count, "metrics": list(metrics)}
    asked["max_new_tokens"] = config.recipe.eval_max_new_tokens
    path = run.folder / "evaluation" / f"{when}.json"
    if when == "before" and path.is_file() and (kept := json.loads(path.read_text()))["asked"] == asked:
        return Evaluation(kept["rows"], kept["losses"], kept["pairs"])
    model, training = trainer.model, trainer.model.training
    model.eval()
    with torch.inference_mode(), trainer.accelerator.autocast():
        logps = heldout_logps(trainer, count, before)
        rows = answer(trainer, heldout.select(range(count)), metrics, config, trained=before is not None)
    model.train(training)
    if config.method == "dpo":
        evaluation = Evaluation(rows, [], implicit_rewards(logps, before, trainer.beta))
    else:
        evaluation = Evaluation(rows, [(-logp, tokens) for ((logp, tokens),) in logps], [])
    if trainer.is_world_process_zero():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps({"asked": asked} | vars(evaluation), indent=1, ensure_ascii=False))
    shown = "  ".join(f"{name} {m['value']:.3f}" for name, m in evaluation.metrics().items())
    say(when, f"{shown}  (n = {count})" if count else "nothing held out, nothing measured")
    return evaluation


def shard(items: list, trainer) -> list:
    return items[trainer.accelerator.process_index :: trainer.accelerator.num_processes]


def heldout_logps(trainer, count: int, before: Evaluation | None) -> list[list[tuple[float, int]]]:
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
        output = trainer.model(**batch, fused_lm_head=True)
        totals, counts = output.log_probs.float().sum(-1), output.label_mask.sum(-1)
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


def answer(trainer, heldout: Dataset, metrics: dict, config: Config, trained: bool) -> list[dict]:
    """Greedy answers to the prompts, scored: left-padded batches of like length, sharded over processes.

    A row's column `metric` names the one metric that scores it; without one, all do.
    """
    tokenizer, size = trainer.processing_class, trainer.args.per_device_eval_batch_size
    asked = []
    for index, row in enumerate(heldout):
        prompt, reference = split_prompt(row)
        if prompt is not None:
            asked.append((index, prompt, reference, encode(tokenizer, prompt, row)))
    asked.sort(key=lambda item: -len(item[3]))
    mine, found, answered = shard(asked, trainer), [], []
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
            for (index, prompt, reference, prompt_ids), ids in zip(part, made.tolist(), strict=True):
                ids = cut_at_stop(ids, settings.eos_token_id)
                answered.append((prompt_ids, ids))
                text = tokenizer.decode([i for i in ids if i not in settings.eos_token_id])
                found.append((index, {
                    "prompt": prompt, "reference": reference, "completion": text, "tokens": len(ids),
                    "stopped": ids[-1] in settings.eos_token_id,
                }))  # fmt: skip
    if config.method != "sft":  # before training the model is its own reference
        drift = kl_from_reference(trainer, config, answered) if trained else [0.0] * len(found)
        for (_, row), kl in zip(found, drift, strict=True):
            row["kl"] = kl
    found = sorted(gather_object(found), key=lambda item: item[0])
    named = heldout["metric"][:] if "metric" in heldout.column_names else [None] * len(heldout)
    for _, row in found:
        row["scores"] = {}
    for name, metric in metrics.items():
        part = [row for index, row in found if named[index] in (None, name)]
        scores = metric(completions=[row["completion"] for row in part], answer=[row["reference"] for row in part])
        for row, score in zip(part, scores, strict=True):
            row["scores"][name] = score
    return [row for _, row in found]


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
        drift = after.metrics()["kl"]
        p = two_sided(drift["value"], (drift["high"] - drift["low"]) / 3.92)
        found["kl"] = {"value": drift["value"], "p_value": p, "test": "normal"}
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
