"""KL divergence of a trained model from its reference, the model it started from."""

import contextlib
from collections.abc import Callable

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from utils import trl_internals
from utils.config import Config
from utils.generation import Dialogue
from utils.model import load_model

MAX_LOGITS = 2**27  # in memory at a time, unless a single answer has more


def find_reference(trainer: Trainer, config: Config) -> tuple[PreTrainedModel, Callable]:
    """The model as it was before training, and a context to use it in.

    With LoRA it is the model itself with its adapter off. Otherwise it is the trainer's reference model, or the base
    model loaded again; the gradients are freed first to make room for it.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        return model, lambda: trl_internals.reference_adapter(model)
    if trainer.ref_model is not None and not trainer.args.sync_ref_model:
        return trainer.ref_model, contextlib.nullcontext
    model.zero_grad(set_to_none=True)
    return load_model(config).to(model.device).eval(), contextlib.nullcontext


@torch.inference_mode()
def kl_from_reference(trainer: Trainer, config: Config, dialogues: list[Dialogue]) -> list[float]:
    """KL(model || reference) of the next-token distributions along the answers, exact over the vocabulary.

    Returns:
        One KL per answer, in nats, summed over the tokens that the model generated (tool results are left out).
    """
    answered = [(dialogue.prompt_ids, dialogue.ids) for dialogue in dialogues]
    model = trainer.accelerator.unwrap_model(trainer.model)
    reference, as_before = find_reference(trainer, config)
    found: list[float] = []
    start = 0
    while start < len(answered):
        longest = max(len(prompt) + len(answer) for prompt, answer in answered[start:])
        size = max(1, MAX_LOGITS // (longest * model.config.get_text_config().vocab_size))
        part = answered[start : start + size]
        start += size
        mine = log_probs(trainer, model, part)
        with as_before():
            theirs = log_probs(trainer, reference, part)
        generated = [torch.tensor(dialogue.own, device=mine[0].device) for dialogue in dialogues[len(found) : start]]
        found += [
            ((own.exp() * (own - other)).sum(-1) * mask).sum().item()
            for own, other, mask in zip(mine, theirs, generated, strict=True)
        ]
    return found


def log_probs(trainer: Trainer, model: PreTrainedModel, part: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    """The log-probability of every token of the vocabulary at each position of each answer (tokens x vocabulary)."""
    ids = [prompt + answer for prompt, answer in part]
    # Padded on the right, so that positions are right even for a model that ignores the attention mask in them.
    inputs = trainer.processing_class.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    inputs = {name: inputs[name].to(trainer.accelerator.device) for name in ("input_ids", "attention_mask")}
    width = inputs["input_ids"].shape[1]
    kept = width - min(len(prompt) for prompt, _ in part) + 1
    with trainer.accelerator.autocast():
        logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits
    first = width - kept
    return [
        logits[i, len(prompt) - 1 - first : len(prompt) + len(answer) - 1 - first].float().log_softmax(-1)
        for i, (prompt, answer) in enumerate(part)
    ]
