"""What the preflight of supervised fine-tuning looks at: the shared checks, masks and packing."""

from collections.abc import Callable

from datasets import Dataset
from trl import SFTTrainer

from utils import trl_internals
from utils.config import Config
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

READ = 20_000  # of the trainer's rows, evenly spread


def preflight(
    trainer: SFTTrainer,
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


def tokenize(trainer: SFTTrainer, rows: Dataset) -> list[dict]:
    """Rows through the trainer's own preparation: input_ids, and which of them are trained."""
    return [
        {"input_ids": row["input_ids"], "trained": [label != -100 for label in row["labels"]]}
        for row in trl_internals.prepare_sft_rows(trainer, rows)
    ]


def check_masks(context: PreflightContext) -> None:
    """The loss falls on the answers, and on nothing else that the user did not mean."""
    args, columns = context.args, context.train.column_names
    if args.completion_only_loss and "completion" not in columns:
        context.report(
            "mask_without_effect",
            f"completion_only_loss: true masks nothing in rows with the columns {', '.join(columns)}, so the prompts "
            "would be learnt too. Write assistant_only_loss: true, or split the rows into prompt and completion",
            stops=True,
        )
    everything = all(all(row["trained"]) for row in context.tokenized)
    if everything and args.assistant_only_loss:
        context.report(
            "mask_without_effect",
            "assistant_only_loss: true masks nothing: the chat template marks every token as the assistant's. Put "
            "{% generation %} around the assistant's turns in chat_template",
            stops=True,
        )
    elif everything and "text" not in columns and not args.completion_only_loss:
        fix = "completion_only_loss: true" if "completion" in columns else "assistant_only_loss: true"
        context.report(
            "prompts_trained",
            "every token is learnt, the users' turns as well as the answers: the model also learns to write the "
            f"questions. Write {fix}",
        )
    empty = [i for i, row in enumerate(context.tokenized) if not any(row["trained"])]
    if empty:
        context.report(
            "no_supervised_tokens",
            f"{context.describe_rows(empty)} have no token to learn from: the mask covers them. Look at "
            "assistant_only_loss and completion_only_loss",
            stops=True,
        )


def check_packing(context: PreflightContext) -> None:
    if context.args.packing and context.args.packing_strategy == "wrapped":
        context.report(
            "wrapped_packing",
            "packing_strategy: wrapped lets an example see the one before it, and learn from it. Write "
            "packing_strategy: bfd_split",
            stops=True,
        )


CHECKS = (
    check_tokens, check_eos_trained, check_lengths, check_template, check_near_copies, check_updates, check_masks,
    check_packing, check_steps, check_longest_batch,
)  # fmt: skip


def facts(context: PreflightContext) -> dict[str, str]:
    """The table."""
    rows, args, eos = context.trainer.train_dataset, context.args, context.tokenizer.eos_token_id
    lengths = sorted(len(row["input_ids"]) for row in context.tokenized)
    sample = rows.select(evenly_spread(len(rows), READ)).select_columns(["input_ids", "labels"])
    tokens = supervised = ended = after = 0
    for row in sample:
        tokens += len(row["input_ids"])
        supervised += sum(label != -100 for label in row["labels"])
        ended += eos in row["labels"]
        after += any(a == eos and b not in (-100, eos) for a, b in zip(row["labels"], row["labels"][1:], strict=False))
    mean = tokens / len(sample)
    found = {
        "rows": context.row_count(),
        "tokens a row": describe_lengths(lengths),
        "trained on": f"{supervised / tokens:.0%} of the tokens; {ended / len(sample):.1%} of the "
        f"{'packed rows hold' if args.packing else 'rows end with'} {context.tokenizer.eos_token}"
        + (", and the template's newline after it is learnt too" if after and not args.packing else ""),
        "cut": f"{sum(n > (args.max_length or n) for n in lengths) / len(lengths):.1%} of the rows are longer than "
        f"max_length = {args.max_length}"
        if args.max_length
        else "nothing (no max_length)",
    }
    if args.packing:
        found["packed"] = f"{len(rows):,} rows of {mean:.0f} tokens ({args.packing_strategy})"
    return found | describe_steps(context, mean)


def example(context: PreflightContext) -> list[tuple[str, bool]]:
    row = context.trainer.train_dataset[0]
    return token_pieces(row["input_ids"], [label != -100 for label in row["labels"]], context.tokenizer)
