"""What the preflight checks of supervised fine-tuning."""

from datasets import Dataset

from utils.checks import Look, evenly, spread, token_pieces
from utils.checks_step import check_longest_batch, check_steps, step_facts

READ = 20_000  # of the trainer's rows, evenly spread


def prepare(trainer, rows: Dataset) -> list[dict]:
    """Rows through the trainer's own preparation: input_ids, and which of them are trained."""
    made = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, False, None, "preflight")
    return [
        {"input_ids": row["input_ids"], "trained": [label != -100 for label in row["labels"]]}
        for row in made.select_columns(["input_ids", "labels"])
    ]


def check_masks(look: Look) -> None:
    """The loss falls on the answers, and on nothing else that the user did not mean."""
    args, columns = look.args, look.train.column_names
    if args.completion_only_loss and "completion" not in columns:
        look.found(
            "mask_without_effect",
            f"completion_only_loss: true masks nothing in rows with the columns {', '.join(columns)}, so the prompts "
            "would be learnt too. Write assistant_only_loss: true, or split the rows into prompt and completion",
            stops=True,
        )
    everything = all(all(row["trained"]) for row in look.whole)
    if everything and args.assistant_only_loss:
        look.found(
            "mask_without_effect",
            "assistant_only_loss: true masks nothing: the chat template marks every token as the assistant's. Put "
            "{% generation %} around the assistant's turns in chat_template",
            stops=True,
        )
    elif everything and "text" not in columns and not args.completion_only_loss:
        mend = "completion_only_loss: true" if "completion" in columns else "assistant_only_loss: true"
        look.found(
            "prompts_trained",
            "every token is learnt, the users' turns as well as the answers: the model also learns to ask. Write "
            f"{mend}",
        )
    empty = [i for i, row in enumerate(look.whole) if not any(row["trained"])]
    if empty:
        look.found(
            "no_supervised_tokens",
            f"{look.rows(empty)} have no token to learn from: the mask covers them. Look at assistant_only_loss and "
            "completion_only_loss",
            stops=True,
        )


def check_packing(look: Look) -> None:
    if look.args.packing and look.args.packing_strategy == "wrapped":
        look.found(
            "wrapped_packing",
            "packing_strategy: wrapped lets an example see the one before it, and learn from it. Write "
            "packing_strategy: bfd_split",
            stops=True,
        )


CHECKS = (check_masks, check_packing, check_steps, check_longest_batch)


def facts(look: Look) -> dict[str, str]:
    """The table."""
    rows, args, eos = look.trainer.train_dataset, look.args, look.tokenizer.eos_token_id
    lengths = sorted(len(row["input_ids"]) for row in look.whole)
    sample = rows.select(evenly(len(rows), READ)).select_columns(["input_ids", "labels"])
    tokens = supervised = ended = after = 0
    for row in sample:
        tokens += len(row["input_ids"])
        supervised += sum(label != -100 for label in row["labels"])
        ended += eos in row["labels"]
        after += any(a == eos and b not in (-100, eos) for a, b in zip(row["labels"], row["labels"][1:], strict=False))
    mean = tokens / len(sample)
    found = {
        "rows": f"{len(look.train):,} to train on, {len(look.heldout):,} held out"
        + (f"; the figures are of {len(look.whole):,} of them" if len(look.whole) < len(look.train) else ""),
        "tokens a row": spread(lengths),
        "trained on": f"{supervised / tokens:.0%} of the tokens; {ended / len(sample):.1%} of the "
        f"{'packed rows hold' if args.packing else 'rows end with'} {look.tokenizer.eos_token}"
        + (", and the template's newline after it is learnt too" if after and not args.packing else ""),
        "cut": f"{sum(n > (args.max_length or n) for n in lengths) / len(lengths):.1%} of the rows are longer than "
        f"max_length = {args.max_length}"
        if args.max_length
        else "nothing (no max_length)",
    }
    if args.packing:
        found["packed"] = f"{len(rows):,} rows of {mean:.0f} tokens ({args.packing_strategy})"
    return found | step_facts(look, mean)


def example(look: Look) -> list[tuple[str, bool]]:
    row = look.trainer.train_dataset[0]
    return token_pieces(row["input_ids"], [label != -100 for label in row["labels"]], look.tokenizer)
