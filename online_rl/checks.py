"""What the preflight of online RL looks at: the shared checks, rewards, generations, a true score, a first rollout."""

import math
from collections.abc import Callable

import torch
from datasets import Dataset
from trl import GRPOTrainer

from online_rl.config import OnlineRLRecipe
from online_rl.reward_checks import check_reward_names, check_rewards
from online_rl.rollouts import equal_groups
from utils import trl_internals
from utils.config import Config
from utils.generation import Toolbox
from utils.preflight import (
    Preflight,
    PreflightContext,
    check_near_copies,
    check_template,
    check_tokens,
    check_updates,
    describe_lengths,
    evenly_spread,
    open_context,
    run_checks,
    token_pieces,
)

PROMPTS = 8  # prompts of the first rollout


def preflight(
    trainer: GRPOTrainer,
    config: Config[OnlineRLRecipe],
    train: Dataset,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
) -> Preflight:
    """Check the trainer's rows against the rows that it was given; print a short table and one rendered row.

    Raises UserError with every finding that stops the run and is not accepted.
    """
    context = open_context(trainer, config, train, heldout, metrics, toolbox, tokenize)
    return run_checks(context, CHECKS, facts, example)


def tokenize(trainer: GRPOTrainer, rows: Dataset) -> list[dict]:
    """The prompts as the trainer tokenises them for generation."""
    return [{"input_ids": ids, "trained": [False] * len(ids)} for ids in trl_internals.prepare_prompts(trainer, rows)]


def steps_of(context: PreflightContext) -> tuple[int, int]:
    """(prompts a generation, steps): whole generations only, as TRL's RepeatSampler gives them."""
    args = context.args
    prompts = args.generation_batch_size // args.num_generations
    batches = len(context.train) // prompts * args.num_iterations * args.steps_per_generation
    an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return prompts, args.max_steps if args.max_steps > 0 and an_epoch else math.ceil(args.num_train_epochs * an_epoch)


def check_steps(context: PreflightContext) -> None:
    (prompts, steps), args = steps_of(context), context.args
    if steps < 1:
        most = len(context.train) * args.num_generations
        context.report(
            "no_steps",
            f"{len(context.train)} prompts are fewer than the {prompts} of one generation "
            f"({args.generation_batch_size} completions / num_generations = {args.num_generations}), so the run "
            f"would take no step and call it success. Write generation_batch_size: {most} and a "
            "per_device_train_batch_size that divides it, or give more prompts",
            stops=True,
        )


def check_rollout(context: PreflightContext) -> None:
    """A few prompts answered and scored by the trainer itself: is there anything to learn from?"""
    if context.is_stopped():
        return
    trainer, args = context.trainer, context.args
    rows = [context.train[i] for i in evenly_spread(len(context.train), PROMPTS)]
    training = trainer.model.training
    trainer.model.train()
    torch.manual_seed(args.seed)
    with trl_internals.untouched_counters(trainer):
        tried = [dict(row) for row in rows for _ in range(args.num_generations)]
        first, metrics = trl_internals.try_rollout(trainer, tried)
        metrics["frac_reward_zero_std"] = equal_groups(trainer)
    trainer.model.train(training)
    context.rollout = metrics | {"example": first}
    equal, clipped, reward = (
        metrics[name] for name in ("frac_reward_zero_std", "completions/clipped_ratio", "reward")
    )
    if equal > 0.5:
        context.report(
            "equal_rewards",
            f"in {equal:.0%} of {len(rows)} groups all {args.num_generations} completions got the same reward (mean "
            f"{reward:.2f}), and such a group has no gradient. Take prompts that the model solves sometimes, raise "
            "num_generations or temperature, or fix the reward; start from a model that knows the answer format",
            stops=equal == 1,
        )
    if clipped > 0.5:
        context.report(
            "clipped_completions",
            f"{clipped:.0%} of the completions were cut at max_completion_length = {args.max_completion_length}, "
            "before their answer. Raise it, or start from a model that ends its answers (SFT first)",
            stops=clipped >= 0.95,
        )


def check_true_score(context: PreflightContext) -> None:
    measured = context.metrics or context.toolbox.scores
    if not (measured and len(context.heldout) and context.config.recipe.eval_prompts):
        context.report(
            "no_true_score",
            "nothing is measured on held-out prompts, so reward hacking would look like success. Write "
            "heldout_fraction: 0.02 (or heldout_name), and eval_metrics: [exact_match] or what is truly wanted",
        )


CHECKS = (
    check_tokens, check_template, check_near_copies, check_updates, check_steps, check_reward_names, check_rewards,
    check_true_score, check_rollout,
)  # fmt: skip


def facts(context: PreflightContext) -> dict[str, str]:
    """The table."""
    lengths, args = sorted(len(row["input_ids"]) for row in context.tokenized), context.args
    prompts, steps = steps_of(context)
    found = {
        "rows": context.row_count("prompts "),
        "prompts": describe_lengths(lengths),
        "a generation": f"{args.world_size} x {args.per_device_train_batch_size} x {args.steps_per_generation} = "
        f"{args.generation_batch_size} completions (processes x rows each x steps) = {prompts} prompts x "
        f"{args.num_generations}",
        "steps": f"{steps:,}, each on {args.world_size * args.per_device_train_batch_size} x "
        f"{args.gradient_accumulation_steps} completions",
    }
    if context.rollout:
        found["first rollout"] = (
            f"reward {context.rollout['reward']:.3f}; {context.rollout['frac_reward_zero_std']:.0%} of the groups "
            f"have equal rewards; {context.rollout['completions/clipped_ratio']:.0%} of the completions are cut"
        )
    return found


def example(context: PreflightContext) -> list[tuple[str, bool]]:
    completion = context.rollout.get("example", [])
    ids = context.tokenized[0]["input_ids"]
    return token_pieces(ids + completion, [False] * len(ids) + [True] * len(completion), context.tokenizer)
