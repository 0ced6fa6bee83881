"""A reward model as a scorer: it reads prompt and completion together, as its chat template renders them."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer

from data_prep.files import digest_of, weights_digest
from data_prep.scoring.judge import Places
from utils.config import UserError
from utils.model import SPARE_PADS, context_length, find_folder, load_reward_model
from utils.run import quiet

TEXTS = 16  # that a reward model reads at once


def model_digest(name: str) -> list[str | None]:
    """Identifies a reward model: its weights, config, tokenizer and template, or the hub's commit."""
    folder = Path(find_folder(name))
    if not folder.is_dir():
        cached = try_to_load_from_cache(name, "config.json")
        return [Path(cached).parent.name if isinstance(cached, str) else None]
    texts = sorted([*folder.glob("*.json"), *folder.glob("*.jinja")])
    return [weights_digest(folder), *map(digest_of, texts)]


def model_scorer(name: str, dtype: str | None, rows: list[dict]) -> Callable[[Places], list[float | None]]:
    """None for what is longer than the model's context."""
    quiet()
    model = load_reward_model(name, dtype, "score_funcs")
    tokenizer = AutoTokenizer.from_pretrained(find_folder(name))
    if not tokenizer.chat_template:
        raise UserError(f"score_funcs: the tokenizer of {name} has no chat template, so it cannot read messages")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"score_funcs: {name} has no tokenizer of its own (transformers made an empty one)")
    # The model scores at each text's last token that is not padding, so EOS must not be padding.
    pads = [tokenizer.pad_token, *SPARE_PADS]
    pad = next((token for token in pads if token in tokenizer.get_vocab() and token != tokenizer.eos_token), None)
    tokenizer.pad_token = pad or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id if pad else None
    size, context = TEXTS if pad else 1, context_length(model)

    def score(places: Places) -> list[float | None]:
        dialogues = [rows[i]["prompt"] + rows[i]["responses"][k]["completion"] for i, k in places]
        texts = tokenizer.apply_chat_template(dialogues, tokenize=False)
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        scores: list[float | None] = [None] * len(places)
        order = sorted(range(len(places)), key=lambda i: len(encoded[i]))  # similar lengths waste no padding
        order = [i for i in order if not context or len(encoded[i]) <= context]
        for first in range(0, len(order), size):
            part = order[first : first + size]
            ids = {"input_ids": [encoded[i] for i in part]}
            inputs = tokenizer.pad(ids, padding_side="right", return_tensors="pt").to(PartialState().device)
            with torch.inference_mode():
                logits = model(**inputs).logits
            for i, value in zip(part, logits[:, 0].float().tolist(), strict=True):
                scores[i] = value
        return scores

    return score
