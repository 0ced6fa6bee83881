"""Every private or undocumented name of TRL, transformers and datasets that this repository touches.

One function for each purpose. tests/test_trl_internals.py has a contract test for every function, so a new version
breaks there, by name ("Moving to the next TRL" in CONTRIBUTING.md). Written for trl 1.16, transformers 5.23 and
datasets 5.2.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState
from trl import chat_template_utils
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import use_adapter

SHIPPED_TEMPLATES = Path(trl.__file__).parent / "chat_templates"


# --- chat templates ---


def can_call_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's chat template renders tool calls and their results."""
    return chat_template_utils.supports_tool_calling(tokenizer)


def add_response_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer parse tool calls in the format of its chat template.

    Raises ValueError for a template that TRL does not know; nothing has changed then.

    TRL knows the templates that it ships, but not its own training variants, which write calls as their originals do.
    """
    if tokenizer.response_template is not None:
        return
    template = tokenizer.chat_template
    for path in SHIPPED_TEMPLATES.glob("*_training.jinja"):
        original = path.with_name(path.name.replace("_training", ""))
        if path.read_text(encoding="utf-8") == template and original.is_file():
            tokenizer.chat_template = original.read_text(encoding="utf-8")
    try:
        chat_template_utils.add_response_schema(tokenizer)
    finally:
        tokenizer.chat_template = template


def parse_response(tokenizer: PreTrainedTokenizerBase, ids: list[int], prefix: list[int], tools: list) -> dict:
    """The assistant message, with its tool calls, in the generated tokens `ids`, which follow the tokens `prefix`."""
    return chat_template_utils.parse_response(tokenizer, ids, prefix=prefix, tools=tools)


def template_for_more_turns(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A template that renders earlier turns alike when others follow; None if the tokenizer's own does."""
    if chat_template_utils.is_chat_template_prefix_preserving(tokenizer):
        return None
    return chat_template_utils.get_training_chat_template(tokenizer)


def training_template(trainer: Trainer) -> str | None:
    """The template with which a trainer renders rows in place of the tokenizer's own; None if it uses that."""
    return vars(trainer).get("chat_template")


# --- rows as a trainer prepares them ---


def prepare_sft_rows(trainer: Trainer, rows: Dataset) -> Dataset:
    """Rows through SFTTrainer's preparation, unpacked: columns input_ids and labels."""
    prepared = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, False, None, "preflight")
    return prepared.select_columns(["input_ids", "labels"])


def prepare_answers(trainer: Trainer, rows: Dataset, columns: list[str]) -> Dataset:
    """Rows through the preparation of a trainer on given answers (DPOTrainer, KTOTrainer): these columns, for example
    prompt_ids, chosen_ids and rejected_ids.
    """
    prepared = trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, "preflight")
    return prepared.select_columns(columns)


def prepare_prompts(trainer: Trainer, rows: Dataset) -> list[list[int]]:
    """Token ids of prompts as GRPOTrainer renders them for generation, with the tools of their environments."""
    if trainer.environment_factories is not None:
        trainer._batch_environments = rows["environment"][:] if trainer._multi_environment else [None] * len(rows)
    ids, *_ = trainer._tokenize_prompts(rows["prompt"][:])
    return [list(prompt) for prompt in ids]


def token_counts(rows: Dataset, column: str) -> torch.Tensor:
    """(rows,) the number of tokens of each row in a column, from the Arrow table: no row becomes a Python list."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(rows.data.column(column)).to_numpy()
    order = slice(None) if rows._indices is None else rows._indices.column(0).to_numpy()  # selected and shuffled rows
    return torch.from_numpy(lengths[order].copy())


# --- a step tried before training ---


@contextlib.contextmanager
def untouched_counters(trainer: Trainer) -> Iterator[None]:
    """Undo what a trial step adds to the trainer's state, token count, metrics and logs."""
    state, tokens = copy.copy(trainer.state), trainer._total_train_tokens
    try:
        yield
    finally:
        trainer.state, trainer._total_train_tokens = state, tokens
        trainer._metrics["train"].clear()
        for log in vars(trainer).get("_logs", {}).values():  # GRPOTrainer alone keeps what was generated
            log.clear()


def try_backward(trainer: Trainer, rows: list[dict]) -> None:
    """Loss and gradients of one batch, as a training step computes them."""
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    trainer.compute_loss(trainer.model, batch).backward()


def try_rollout(trainer: Trainer, rows: list[dict]) -> tuple[list[int], dict[str, float]]:
    """Generate and score completions as GRPOTrainer does: (tokens of the first completion, metrics of them all)."""
    made = trainer._generate_and_score_completions(rows)
    ids, mask = made["completion_ids"][0].tolist(), made["completion_mask"][0].tolist()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return [token for token, kept in zip(ids, mask, strict=True) if kept], metrics


def rollout_logs(trainer: Trainer) -> dict:
    """GRPOTrainer's newest generation, of all processes: prompt, completion, advantages, and rewards by function."""
    return trainer._logs


# --- models ---


@contextlib.contextmanager
def generation_model(trainer: Trainer) -> Iterator[PreTrainedModel]:
    """The trainer's model gathered and unwrapped for generate(), gradient checkpointing off meanwhile."""
    kwargs = trainer.args.gradient_checkpointing_kwargs
    with unwrap_model_for_generation(
        trainer.model_wrapped, trainer.accelerator, gradient_checkpointing_kwargs=kwargs
    ) as model:
        yield model


@contextlib.contextmanager
def reference_adapter(model: PreTrainedModel) -> Iterator[None]:
    """A PEFT model as it was before training: with its new adapter off, or with TRL's copy of the one it came with."""
    with use_adapter(model, "ref" if "ref" in model.peft_config else None):
        yield


def answer_log_probs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows,) summed log-probabilities of the labelled tokens, and (rows,) their number, without the full logits.

    Of a trainer's model alone: TRL's trainers patch its forward with a fused head that gives both.
    """
    output = model(**batch, fused_lm_head=True)
    return output.log_probs.float().sum(-1), output.label_mask.sum(-1)


def load_finished(trainer: Trainer, checkpoint: str, state: TrainerState) -> None:
    """Load weights and state of a checkpoint of the last step, from which Trainer.train would take one more."""
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
