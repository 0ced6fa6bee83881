"""Preflight: looks at the very rows that will be trained on (after template, masks, truncation, packing) and stops a
run that would teach nothing, or never teach the model to stop."""

import math
from dataclasses import dataclass

from datasets import Dataset

from utils.config import Config
from utils.source import UserError
from utils.terminal import console, is_main_process, say

ROWS_READ = 20_000  # of the processed rows, evenly spread: the table is a sample of larger sets


@dataclass
class Preflight:
    """What was found: a table (`facts`) and one row as (text, trained) pieces."""

    facts: dict[str, str]
    example: list[tuple[str, bool]]


def preflight(trainer, config: Config, train: Dataset) -> Preflight:
    """Check the trainer's processed rows against the rows that it was given; print a short table and one rendered row.

    Raises UserError with every fault found.
    """
    tokenizer, args = trainer.processing_class, config.training
    rows = trainer.train_dataset
    dropped = 0 if args.packing else len(train) - len(rows)  # TRL drops what max_length leaves without an answer
    if dropped > len(train) / 2:
        raise UserError(
            f"max_length: {dropped} of {len(train)} rows have no token to learn from: their answers lie past "
            f"max_length = {args.max_length}. Raise it"
        )
    step = max(1, len(rows) // ROWS_READ)
    sample = rows.select(range(0, len(rows), step)).select_columns(["input_ids", "labels"])
    lengths, supervised, ended = [], [], 0
    for row in sample:
        trained = [token for token in row["labels"] if token != -100]
        lengths.append(len(row["input_ids"]))
        supervised.append(len(trained))
        ended += tokenizer.eos_token_id in trained
    n, limit = len(lengths), args.max_length
    full = sum(length >= limit for length in lengths) if limit and not args.packing else 0
    faults = []
    if (empty := supervised.count(0)) > 0 and not args.packing:  # a packed piece may be all question
        faults.append(
            f"assistant_only_loss: {empty} of {n} rows have no token to learn from: the mask covers them. "
            "Check assistant_only_loss and completion_only_loss"
        )
    if ended == 0:
        faults.append(
            f"eos_token: no row trains the end of an answer ({tokenizer.eos_token}), so the model would never stop. "
            "Set eos_token to the token that ends a turn in the chat template, or raise max_length"
        )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        faults.append(f"eos_token: PAD and EOS are both {tokenizer.eos_token}, so the end of an answer is masked out")
    context = trainer.model.config.get_text_config().max_position_embeddings
    if limit and limit > context:
        faults.append(f"max_length: {limit} is more than the model's context. Write at most {context}")
    if faults:
        raise UserError("The preflight stopped this run before its first step:\n  " + "\n  ".join(faults))

    lengths.sort()
    processes = args.world_size
    rows_a_step = processes * args.per_device_train_batch_size * args.gradient_accumulation_steps
    batches = math.ceil(len(rows) / (processes * args.per_device_train_batch_size))
    steps_an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_an_epoch)
    share, mean = sum(supervised) / sum(lengths), sum(lengths) / n
    middle, most = lengths[n // 2], lengths[min(n - 1, n * 99 // 100)]
    facts = {
        "rows": f"{len(rows):,} to train on, {len(trainer.eval_dataset or []):,} held out",
        "tokens a row": f"median {middle}, 99% at most {most}, longest {lengths[-1]}",
        "trained on": f"{share:.0%} of the tokens; {ended / n:.1%} of the rows end with {tokenizer.eos_token}",
        "cut": f"{full / n:.1%} of the rows reach max_length = {limit}; {dropped} rows dropped, their answers past it"
        if limit
        else "nothing (no max_length)",
        "a step": f"{processes} x {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} = "
        f"{rows_a_step} rows (processes x rows each x accumulated), about {rows_a_step * mean:,.0f} tokens",
        "steps": f"{steps:,} = {steps * rows_a_step / len(rows):.2f} epochs, "
        f"about {steps * rows_a_step * mean:,.0f} tokens",
    }
    if step > 1:
        facts["rows"] += f"; the figures below are of {n:,} of them"
    example = pieces(sample[0], tokenizer)
    for name, text in facts.items():
        say("preflight" if name == "rows" else "", f"{name}: {text}")
    if is_main_process():
        show_example(example)
    return Preflight(facts, example)


def pieces(row: dict, tokenizer, most: int = 400) -> list[tuple[str, bool]]:
    """A processed row as text, cut where training begins and ends; the first `most` tokens."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in list(zip(row["input_ids"], row["labels"], strict=True))[:most]:
        trained = label != -100
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids), trained) for ids, trained in runs]


def show_example(example: list[tuple[str, bool]]) -> None:
    """One row on the terminal: trained tokens green, or in ⟦brackets⟧ where there is no colour."""
    console.print("           one row, trained tokens marked:", style="dim")
    for text, trained in example:
        if console.color_system:
            console.print(text, end="", markup=False, style="green" if trained else "dim")
        else:
            console.print(f"⟦{text}⟧" if trained else text, end="", markup=False)
    console.print()
