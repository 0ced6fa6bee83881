"""What the preflight of labelled answers looks at: the shared checks, labels that are alike, unbalanced, contradictory
or flipped, and held-out answers that are not gold answers.
"""

from collections.abc import Callable

from datasets import Dataset
from trl import KTOTrainer

from utils import trl_internals
from utils.config import Config
from utils.data import describe_row
from utils.generation import Toolbox
from utils.preflight import (
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
    evenly_spread,
    open_context,
    run_checks,
    token_pieces,
)
from utils.rewards import score_answers

READ = 20_000  # of the trainer's rows, evenly spread
BALANCED = (1.0, 4 / 3)  # good to bad, by number x weight (Ethayarajh et al. 2024, equation 8)
TOLERANCE = 1.1  # a few rows more or less do not matter


def preflight(
    trainer: KTOTrainer,
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


def tokenize(trainer: KTOTrainer, rows: Dataset) -> list[dict]:
    """Rows through the trainer's own preparation: input_ids, and which of them are the completion's."""
    return [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "trained": [False] * len(row["prompt_ids"]) + [True] * len(row["completion_ids"]),
            "label": row["label"],
        }
        for row in trl_internals.prepare_answers(trainer, rows, ["prompt_ids", "completion_ids", "label"])
    ]


def count_labels(context: PreflightContext) -> tuple[int, int]:
    """How many of the trainer's rows are good and bad."""
    labels = context.trainer.train_dataset["label"][:]
    return sum(labels), len(labels) - sum(labels)


def check_labels(context: PreflightContext) -> None:
    """Both labels must be there, and weigh about the same."""
    (good, bad), args = count_labels(context), context.args
    if not good or not bad:
        if good or bad:
            context.report(
                "one_label",
                f"all {good or bad:,} rows have label: {str(good > 0).lower()}, so there is nothing to tell apart. "
                "Add rows of the other label; to learn from good answers alone, use sft/",
                stops=True,
            )
        return
    ratio = good * args.desirable_weight / (bad * args.undesirable_weight)
    low, high = BALANCED
    if not low / TOLERANCE <= ratio <= high * TOLERANCE:
        key, weight = (
            ("desirable_weight", args.desirable_weight * low / ratio)
            if ratio < low
            else ("undesirable_weight", args.undesirable_weight * ratio / high)
        )
        context.report(
            "unbalanced_labels",
            f"{good:,} good and {bad:,} bad rows, by their weights, are {ratio:.2f} to 1, and the KTO paper "
            f"recommends 1 to 1.33: the lighter label is hardly learnt. Write {key}: {weight:.2g}",
        )


def check_contradictions(context: PreflightContext) -> None:
    """One answer to one prompt must not be both good and bad: the two rows cancel out."""
    rows, found = context.trainer.train_dataset, []
    seen: dict[tuple, tuple[int, bool]] = {}
    places = evenly_spread(len(rows), READ)
    for i, row in enumerate(rows.select(places).select_columns(["prompt_ids", "completion_ids", "label"])):
        first = seen.setdefault((tuple(row["prompt_ids"]), tuple(row["completion_ids"])), (i, row["label"]))
        if first[1] != row["label"]:
            found.append(i)
    if found:
        context.report(
            "contradictory_labels",
            f"{len(found):,} of {len(places):,} rows repeat another one with the opposite label (for example "
            f"{describe_row(rows[places[found[0]]])}), and the two cancel out. Remove both, or keep the label that "
            "most raters gave",
            stops=len(found) > len(places) / 20,
        )


def check_flipped(context: PreflightContext) -> None:
    """Good answers must not be the wrong ones by `eval_metrics`, where rows have an `answer`."""
    agree, differ = 0, []
    for row in context.sample:
        name = row.get("metric") or next(iter(context.metrics), "")
        if row.get("answer") is None or name not in context.metrics:
            continue
        (score,) = score_answers(context.metrics[name], row, [row["completion"]])
        if score is None:
            continue
        if (score > 0.5) == row["label"]:
            agree += 1
        else:
            differ.append(row)
    if len(differ) > max(10, 2 * agree):
        context.report(
            "flipped_labels",
            f"{len(differ):,} of {agree + len(differ):,} labels are the opposite of what eval_metrics finds (for "
            f"example {describe_row(differ[0])} with label: {str(differ[0]['label']).lower()}), so the model would "
            "learn the worse answers. Reverse the labels in to_training_row",
            stops=True,
        )


def check_references(context: PreflightContext) -> None:
    """A held-out completion is the gold answer of its prompt only if it is a good one."""
    bad = [row for row in context.heldout if not row["label"] and row.get("answer") is None]
    if bad and context.metrics:
        context.report(
            "bad_references",
            f"{len(bad):,} of {len(context.heldout):,} held-out rows have label: false and no `answer` (for example "
            f"{describe_row(bad[0])}), so eval_metrics would compare answers with bad ones. Add a column `answer`, or "
            "give heldout_name a file of good rows",
            stops=True,
        )


CHECKS = (
    check_tokens, check_eos_trained, check_lengths, check_template, check_near_copies, check_updates, check_labels,
    check_contradictions, check_flipped, check_references, check_steps, check_longest_batch,
)  # fmt: skip


def facts(context: PreflightContext) -> dict[str, str]:
    """The table."""
    lengths, (good, bad) = sorted(len(row["input_ids"]) for row in context.tokenized), count_labels(context)
    weights = context.args.desirable_weight, context.args.undesirable_weight
    found = {
        "rows": context.row_count(),
        "tokens a row": describe_lengths(lengths),
        "labels": f"{good:,} good (weight {weights[0]:g}), {bad:,} bad (weight {weights[1]:g})",
    }
    return found | describe_steps(context, sum(lengths) / len(lengths))


def example(context: PreflightContext) -> list[tuple[str, bool]]:
    row = context.tokenized[0]
    label = f"\n[label: {str(row['label']).lower()}]"
    return [*token_pieces(row["input_ids"], row["trained"], context.tokenizer), (label, False)]
