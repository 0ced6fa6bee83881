"""What the preflight of preference pairs looks at: the shared checks, sides that are alike, swapped or unequal in
length.
"""

import math
from collections.abc import Callable

from datasets import Dataset
from trl import DPOTrainer

from utils import trl_internals
from utils.config import Config
from utils.data import describe_row
from utils.generation import Toolbox
from utils.preflight import (
    OFTEN,
    Preflight,
    PreflightContext,
    check_eos_trained,
    check_lengths,
    check_longest_batch,
    check_near_copies,
    check_steps,
    check_template,
    check_tokens,
    check_updates,
    describe_lengths,
    describe_steps,
    open_context,
    quantile,
    run_checks,
    token_pieces,
)
from utils.rewards import score_answers


def preflight(
    trainer: DPOTrainer,
    config: Config,
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


def tokenize(trainer: DPOTrainer, rows: Dataset) -> list[dict]:
    """Pairs through the trainer's own preparation: input_ids and trained are those of prompt and chosen."""
    return [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "trained": [False] * len(row["prompt_ids"]) + [True] * len(row["chosen_ids"]),
            "rejected_ids": row["rejected_ids"],
            "prompt_length": len(row["prompt_ids"]),
        }
        for row in trl_internals.prepare_answers(trainer, rows, ["prompt_ids", "chosen_ids", "rejected_ids"])
    ]


def check_sides(context: PreflightContext) -> None:
    """Both sides of a pair must be different answers, as the trainer cuts them."""
    limit = context.args.max_length
    same = []
    for i, row in enumerate(context.tokenized):
        room = max(0, limit - row["prompt_length"]) if limit and context.args.truncation_mode == "keep_start" else None
        chosen = row["input_ids"][row["prompt_length"] :]
        if chosen[:room] == row["rejected_ids"][:room]:
            same.append(i)
    if same:
        context.report(
            "identical_pairs",
            f"the sides of {context.describe_rows(same)} are the same once max_length = {limit} has cut them, so "
            "they have no gradient. Raise max_length",
            stops=len(same) > OFTEN * len(context.tokenized),
        )


def check_swapped(context: PreflightContext) -> None:
    """Chosen must not be the worse by the rows' own scores, or by `eval_metrics` where rows have an `answer`."""
    lost, won, by, worst = 0, 0, "", None
    for row in context.sample:
        if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
            by, difference = "score_chosen and score_rejected", row["score_chosen"] - row["score_rejected"]
        elif (
            row.get("answer") is not None
            and (name := row.get("metric") or next(iter(context.metrics), "")) in context.metrics
        ):
            chosen, rejected = score_answers(context.metrics[name], row, [row["chosen"], row["rejected"]])
            if chosen is None or rejected is None:
                continue
            by, difference = name, chosen - rejected
        else:
            continue
        won, lost = won + (difference > 0), lost + (difference < 0)
        worst = row if difference < 0 and worst is None else worst
    if worst is not None and lost > won and sign_test(won, lost) < 0.01:
        context.report(
            "swapped_sides",
            f"chosen is worse than rejected in {lost:,} of {won + lost:,} pairs by {by} (such as "
            f"{describe_row(worst)}), so the model would learn the worse answers. Swap the columns in to_training_row",
            stops=True,
        )


def sign_test(won: int, lost: int) -> float:
    """One-sided p-value that `lost` or more of the pairs are lost by chance."""
    n = won + lost
    return math.erfc((lost - n / 2) / math.sqrt(n / 2)) / 2


def check_length_bias(context: PreflightContext) -> None:
    longer = sum(len(row["input_ids"]) - row["prompt_length"] > len(row["rejected_ids"]) for row in context.tokenized)
    share, (chosen, rejected) = longer / len(context.tokenized), lengths_of(context)
    if (
        len(context.tokenized) >= 20
        and (share > 0.8 or share < 0.2)
        and max(chosen, rejected) > 1.3 * min(chosen, rejected)
    ):
        context.report(
            "length_bias",
            f"chosen is the longer side in {share:.0%} of the pairs (median {chosen} tokens against {rejected}): DPO "
            "may learn the length and not the difference. Balance the pairs, or write loss_type: sigmoid_norm",
        )


def lengths_of(context: PreflightContext) -> tuple[int, int]:
    """Median tokens of chosen and of rejected."""
    chosen = sorted(len(row["input_ids"]) - row["prompt_length"] for row in context.tokenized)
    return quantile(chosen, 0.5), quantile(sorted(len(row["rejected_ids"]) for row in context.tokenized), 0.5)


CHECKS = (
    check_tokens, check_eos_trained, check_lengths, check_template, check_near_copies, check_updates, check_sides,
    check_swapped, check_length_bias, check_steps, check_longest_batch,
)  # fmt: skip


def facts(context: PreflightContext) -> dict[str, str]:
    """The table."""
    lengths = sorted(len(row["input_ids"]) for row in context.tokenized)
    chosen, rejected = lengths_of(context)
    found = {
        "rows": context.row_count("pairs "),
        "tokens a row": f"prompt and chosen: {describe_lengths(lengths)}",
        "sides": f"median {chosen} tokens chosen, {rejected} rejected",
    }
    mean = sum(len(row["input_ids"]) + row["prompt_length"] + len(row["rejected_ids"]) for row in context.tokenized)
    return found | describe_steps(context, mean / len(context.tokenized))


def example(context: PreflightContext) -> list[tuple[str, bool]]:
    row = context.tokenized[0]
    rejected = context.tokenizer.decode(row["rejected_ids"])
    return [*token_pieces(row["input_ids"], row["trained"], context.tokenizer), (f"\n[rejected] {rejected}", False)]
