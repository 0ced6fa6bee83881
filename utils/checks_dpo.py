"""What the preflight checks of preference pairs."""

import math

from datasets import Dataset

from utils.checks import OFTEN, Look, quantile, spread, token_pieces
from utils.checks_step import check_longest_batch, check_steps, step_facts
from utils.rows import shorten


def prepare(trainer, rows: Dataset) -> list[dict]:
    """Pairs through the trainer's own preparation: input_ids and trained are those of prompt and chosen."""
    made = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, "preflight")
    return [
        {
            "input_ids": row["prompt_ids"] + row["chosen_ids"],
            "trained": [False] * len(row["prompt_ids"]) + [True] * len(row["chosen_ids"]),
            "rejected_ids": row["rejected_ids"],
            "prompt_length": len(row["prompt_ids"]),
        }
        for row in made.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    ]


def check_sides(look: Look) -> None:
    """Both sides of a pair must be different answers, as the trainer cuts them."""
    limit = look.args.max_length
    same = []
    for i, row in enumerate(look.whole):
        room = max(0, limit - row["prompt_length"]) if limit and look.args.truncation_mode == "keep_start" else None
        chosen = row["input_ids"][row["prompt_length"] :]
        if chosen[:room] == row["rejected_ids"][:room]:
            same.append(i)
    if same:
        look.found(
            "identical_pairs",
            f"the sides of {look.rows(same)} are the same once max_length = {limit} has cut them, so they have no "
            "gradient. Raise max_length",
            stops=len(same) > OFTEN * len(look.whole),
        )


def check_swapped(look: Look) -> None:
    """Chosen must not be the worse by the rows' own scores, or by `eval_metrics` where rows have an `answer`."""
    lost, won, by, worst = 0, 0, "", None
    for row in look.raw:
        if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
            by, difference = "score_chosen and score_rejected", row["score_chosen"] - row["score_rejected"]
        elif (
            row.get("answer") is not None
            and (name := row.get("metric") or next(iter(look.metrics), "")) in look.metrics
        ):
            try:
                sides = look.metrics[name](
                    completions=[row["chosen"], row["rejected"]], answer=[str(row["answer"])] * 2
                )
            except ValueError:
                continue  # a reference that the metric cannot read; load_metrics tells of it where it is measured
            by, difference = name, sides[0] - sides[1]
        else:
            continue
        won, lost = won + (difference > 0), lost + (difference < 0)
        worst = row if difference < 0 and worst is None else worst
    if lost > won and sign_test(won, lost) < 0.01:
        look.found(
            "swapped_sides",
            f"chosen is worse than rejected in {lost:,} of {won + lost:,} pairs by {by} (such as {shorten(worst)}), "
            "so the model would learn the worse answers. Swap the columns in to_training_row",
            stops=True,
        )


def sign_test(won: int, lost: int) -> float:
    """One-sided p-value that `lost` or more of the pairs are lost by chance."""
    n = won + lost
    return math.erfc((lost - n / 2) / math.sqrt(n / 2)) / 2


def check_length_bias(look: Look) -> None:
    longer = sum(len(row["input_ids"]) - row["prompt_length"] > len(row["rejected_ids"]) for row in look.whole)
    share, (chosen, rejected) = longer / len(look.whole), lengths_of(look)
    if len(look.whole) >= 20 and (share > 0.8 or share < 0.2) and max(chosen, rejected) > 1.3 * min(chosen, rejected):
        look.found(
            "length_bias",
            f"chosen is the longer side in {share:.0%} of the pairs (median {chosen} tokens against {rejected}): DPO "
            "may learn the length and not the difference. Balance the pairs, or write loss_type: sigmoid_norm",
        )


def lengths_of(look: Look) -> tuple[int, int]:
    """Median tokens of chosen and of rejected."""
    chosen = sorted(len(row["input_ids"]) - row["prompt_length"] for row in look.whole)
    return quantile(chosen, 0.5), quantile(sorted(len(row["rejected_ids"]) for row in look.whole), 0.5)


CHECKS = (check_sides, check_swapped, check_length_bias, check_steps, check_longest_batch)


def facts(look: Look) -> dict[str, str]:
    """The table."""
    lengths = sorted(len(row["input_ids"]) for row in look.whole)
    chosen, rejected = lengths_of(look)
    found = {
        "rows": f"{len(look.train):,} pairs to train on, {len(look.heldout):,} held out"
        + (f"; the figures are of {len(look.whole):,} of them" if len(look.whole) < len(look.train) else ""),
        "tokens a row": f"prompt and chosen: {spread(lengths)}",
        "sides": f"median {chosen} tokens chosen, {rejected} rejected",
    }
    mean = sum(len(row["input_ids"]) + row["prompt_length"] + len(row["rejected_ids"]) for row in look.whole)
    return found | step_facts(look, mean / len(look.whole))


def example(look: Look) -> list[tuple[str, bool]]:
    row = look.whole[0]
    rejected = look.tokenizer.decode(row["rejected_ids"])
    return [*token_pieces(row["input_ids"], row["trained"], look.tokenizer), (f"\n[rejected] {rejected}", False)]
