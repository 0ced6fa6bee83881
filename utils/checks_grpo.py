"""What the preflight checks of online RL: prompts, batches, a true score, and a first rollout."""

import copy
import math

import torch
from datasets import Dataset

from utils.checks import Look, evenly, spread, token_pieces
from utils.checks_rewards import check_reward_names, check_rewards
from utils.completions import equal_groups
from utils.named import load_toolbox

PROMPTS = 8  # prompts of the first rollout


def prepare(trainer, rows: Dataset) -> list[dict]:
    """The prompts as the trainer tokenises them for generation."""
    if trainer.environment_factories is not None:  # each prompt is rendered with its environment's tools
        trainer._batch_environments = rows["environment"][:] if trainer._multi_environment else [None] * len(rows)
    ids, *_ = trainer._tokenize_prompts(rows["prompt"][:])
    return [{"input_ids": list(row), "trained": [False] * len(row)} for row in ids]


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
    metrics["frac_reward_zero_std"] = equal_groups(trainer)
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


def check_true_score(look: Look) -> None:
    measured = look.metrics or load_toolbox(look.config).scores
    if not (measured and len(look.heldout) and look.config.recipe.eval_prompts):
        look.found(
            "no_true_score",
            "nothing is measured on held-out prompts, so a reward that is gamed would look like success. Write "
            "heldout_fraction: 0.02 (or heldout_name), and eval_metrics: [exact_match] or what is truly wanted",
        )


CHECKS = (check_steps, check_reward_names, check_rewards, check_true_score, check_rollout)


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
