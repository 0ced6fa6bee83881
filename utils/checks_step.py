"""What the preflight checks of the steps of a run on given rows (SFT, DPO): that there are any, and that one fits."""

import copy
import math

import pyarrow.compute as pc
import torch
from datasets import Dataset

from utils.checks import Look

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def steps_of(look: Look) -> tuple[int, int]:
    """(rows a step, steps)."""
    args, rows = look.args, len(look.trainer.train_dataset)
    batch = args.world_size * args.per_device_train_batch_size
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return batch * args.gradient_accumulation_steps, (
        args.max_steps if args.max_steps > 0 and an_epoch else math.ceil(args.num_train_epochs * an_epoch)
    )


def step_facts(look: Look, tokens_a_row: float) -> dict[str, str]:
    args, (rows_a_step, steps) = look.args, steps_of(look)
    return {
        "a step": f"{args.world_size} x {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} = "
        f"{rows_a_step} rows (processes x rows each x accumulated), about {rows_a_step * tokens_a_row:,.0f} tokens",
        "steps": f"{steps:,} = {steps * rows_a_step / max(1, len(look.trainer.train_dataset)):.2f} epochs, "
        f"about {steps * rows_a_step * tokens_a_row:,.0f} tokens",
    }


def check_steps(look: Look) -> None:
    rows_a_step, steps = steps_of(look)
    if steps < 1 <= len(look.trainer.train_dataset):
        look.found(
            "no_steps",
            f"{len(look.trainer.train_dataset)} rows make no batch of "
            f"{rows_a_step // look.args.gradient_accumulation_steps}, so the run would take no step and call it "
            "success. Lower per_device_train_batch_size, or write dataloader_drop_last: false",
            stops=True,
        )


def check_longest_batch(look: Look) -> None:
    """One forward and backward pass of the longest rows, now and not an hour in: it must fit into memory.

    Not under FSDP or DeepSpeed, which share the model out only once training begins.
    """
    trainer, args = look.trainer, look.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or look.is_stopped():
        return
    rows, model, state, seen = (
        trainer.train_dataset,
        trainer.model,
        copy.copy(trainer.state),
        trainer._total_train_tokens,
    )
    columns = [name for name in ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids") if name in rows.column_names]
    lengths = sum(length_of(rows, name) for name in columns)
    longest = torch.topk(lengths, min(args.per_device_train_batch_size, len(rows))).indices.tolist()
    training = model.training
    model.train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    reserve = []
    try:
        with trainer.compute_loss_context_manager():
            if "adam" in str(args.optim) and torch.accelerator.is_available():  # Adam keeps two numbers a weight
                reserve = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
            batch = trainer._prepare_inputs(trainer.data_collator([rows[i] for i in longest]))
            trainer.compute_loss(model, batch).backward()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(said in str(error) for said in NO_MEMORY):
            raise
        look.found(
            "out_of_memory",
            f"the batch of the {len(longest)} longest rows ({int(lengths[longest].max())} tokens) does not fit into "
            "memory, and would end the run when it comes. Write a smaller per_device_train_batch_size and a larger "
            "gradient_accumulation_steps, gradient_checkpointing: true, or a smaller max_length",
            stops=True,
        )
    finally:
        del reserve
        if args.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.zero_grad(set_to_none=True)
        model.train(training)
        trainer._metrics["train"].clear()
        trainer.state, trainer._total_train_tokens = state, seen


def length_of(rows: Dataset, name: str) -> torch.Tensor:
    """How many tokens each row has in a column, read off the Arrow table: no row is made a Python list."""
    lengths = pc.list_value_length(rows.data.column(name)).to_numpy()
    order = slice(None) if rows._indices is None else rows._indices.column(0).to_numpy()  # rows picked and shuffled
    return torch.from_numpy(lengths[order].copy())
