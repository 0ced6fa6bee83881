"""The steps of a run on given rows: that there are any, and that the longest batch fits into memory."""

import math

import torch

from utils import trl_internals
from utils.preflight.context import PreflightContext

ID_COLUMNS = ("input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids")  # of a trainer's rows
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def steps_of(context: PreflightContext) -> tuple[int, int]:
    """(rows a step, steps)."""
    args, rows = context.args, len(context.trainer.train_dataset)
    batch = args.world_size * args.per_device_train_batch_size
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    an_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    return batch * args.gradient_accumulation_steps, (
        args.max_steps if args.max_steps > 0 and an_epoch else math.ceil(args.num_train_epochs * an_epoch)
    )


def describe_steps(context: PreflightContext, tokens_a_row: float) -> dict[str, str]:
    args, (rows_a_step, steps) = context.args, steps_of(context)
    return {
        "a step": f"{args.world_size} x {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} = "
        f"{rows_a_step} rows (processes x rows each x accumulated), about {rows_a_step * tokens_a_row:,.0f} tokens",
        "steps": f"{steps:,} = {steps * rows_a_step / max(1, len(context.trainer.train_dataset)):.2f} epochs, "
        f"about {steps * rows_a_step * tokens_a_row:,.0f} tokens",
    }


def check_steps(context: PreflightContext) -> None:
    rows_a_step, steps = steps_of(context)
    if steps < 1 <= len(context.trainer.train_dataset):
        context.report(
            "no_steps",
            f"{len(context.trainer.train_dataset)} rows make no batch of "
            f"{rows_a_step // context.args.gradient_accumulation_steps}, so the run would take no step and still "
            "report success. Lower per_device_train_batch_size, or write dataloader_drop_last: false",
            stops=True,
        )


def check_longest_batch(context: PreflightContext) -> None:
    """One forward and backward pass of the longest rows, now and not an hour in: it must fit into memory.

    Not under FSDP or DeepSpeed, which share the model out only once training begins.
    """
    trainer, args = context.trainer, context.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or context.is_stopped():
        return
    rows, model = trainer.train_dataset, trainer.model
    columns = [name for name in ID_COLUMNS if name in rows.column_names]
    lengths = sum(trl_internals.token_counts(rows, name) for name in columns)
    longest = torch.topk(lengths, min(args.per_device_train_batch_size, len(rows))).indices.tolist()
    training = model.training
    model.train()
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    reserve = []
    try:
        with trainer.compute_loss_context_manager(), trl_internals.untouched_counters(trainer):
            if "adam" in str(args.optim) and torch.accelerator.is_available():  # Adam keeps two numbers a weight
                reserve = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
            trl_internals.try_backward(trainer, [rows[i] for i in longest])
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        context.report(
            "out_of_memory",
            f"the batch of the {len(longest)} longest rows ({int(lengths[longest].max())} tokens) does not fit into "
            "memory, and would end the run when its turn comes. Write a smaller per_device_train_batch_size and a "
            "larger gradient_accumulation_steps, gradient_checkpointing: true, or a smaller max_length",
            stops=True,
        )
    finally:
        del reserve
        if args.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.zero_grad(set_to_none=True)
        model.train(training)
