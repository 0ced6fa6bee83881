"""Train the tiny base model (`tiny/base/`) and its tokenizer from scratch on plain text of the tiny world.

    python tiny/make_base.py --output_dir /tmp/base        # takes long; see tiny/README.md

Left out of a real pre-training run: validation during training, checkpoints, weight decay, mixed precision. The model
is so small that a failed run is repeated, not resumed. Matrices are trained with Muon and the rest with AdamW
(https://kellerjordan.github.io/posts/muon/), a strong optimiser for short runs of small models.
"""

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from world import base_documents, make_problems

SEED = 20261122
DOCUMENTS = 400_000
CONTEXT = 256
PAD, EOS = "<|endoftext|>", "<|im_end|>"
SPECIAL = [PAD, "<|im_start|>", EOS]
# Single tokens, but not special ones: they are part of what a model says, as in Qwen3.
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
# Qwen's split: words with their leading space, single digits, runs of punctuation, line ends.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 768 tokens. The words of the chat template (its tool instructions) are learnt too."""
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    tool = '{"type": "function", "function": {"name": "calculator", "description": "Works out one sum.", '
    tool += '"parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, '
    tool += '"required": ["expression"]}}}'
    answers = "The answer is 1. The answer cannot be known, because it is not said how many there are.\n\n"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768 - len(SPECIAL) - len(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(documents[:20_000] + [template, tool, answers] * 50, trainer)
    bpe.add_special_tokens(SPECIAL)
    bpe.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, model_max_length=1024, clean_up_tokenization_spaces=False
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def pack(documents: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All documents in a row, each ended by PAD's token as real base models do, cut in blocks of CONTEXT + 1."""
    ids = []
    for row in tokenizer(documents)["input_ids"]:
        ids += [*row, tokenizer.pad_token_id]
    blocks = len(ids) // (CONTEXT + 1)
    return torch.tensor(ids[: blocks * (CONTEXT + 1)], dtype=torch.int16).view(blocks, CONTEXT + 1)


def train(model: Qwen3ForCausalLM, blocks: torch.Tensor, steps: int, batch: int) -> None:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=8e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: min((s + 1) / 100, max(0.02, 1.0 - s / steps)))
        for o in optimizers
    ]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(SEED))
    started = time.perf_counter()
    for step in range(steps):
        rows = blocks[order[torch.arange(step * batch, (step + 1) * batch) % len(blocks)]].long()
        loss = torch.nn.functional.cross_entropy(
            model(rows[:, :-1], use_cache=False).logits.flatten(0, 1), rows[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            tokens = (step + 1) * batch * CONTEXT
            print(f"step {step:5d}  loss {loss.item():.4f}  {tokens / seconds:,.0f} tokens/s", flush=True)


@torch.inference_mode()
def plain_text_accuracy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 400) -> float:
    """The share of held-out problems that the base solves as it knows them: as plain text, greedy."""
    problems = make_problems(SEED + 2, count, reserved=True)
    tokenizer.padding_side = "left"
    right = 0
    for start in range(0, count, 100):
        some = problems[start : start + 100]
        inputs = tokenizer([p.question for p in some], return_tensors="pt", padding=True, return_token_type_ids=False)
        made = model.generate(
            **inputs, max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.pad_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(f" {p.answer} {p.unit}." in text for p, text in zip(some, texts, strict=True))
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent / "base")
    parser.add_argument("--steps", type=int, default=4500, help="optimiser steps of --batch blocks of 256 tokens")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()

    random.seed(SEED)
    torch.manual_seed(SEED)
    documents = base_documents(SEED, DOCUMENTS)
    tokenizer = make_tokenizer(documents)
    model = make_model(tokenizer)
    blocks = pack(documents, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {blocks.numel():,} tokens of text")
    train(model.train(), blocks, args.steps, args.batch)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.eval().save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    AutoTokenizer.from_pretrained(args.output_dir)  # as a user will load it
    print(f"solves {plain_text_accuracy(model, tokenizer):.3f} of 400 held-out problems as plain text")


if __name__ == "__main__":
    main()
