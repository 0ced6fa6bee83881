"""Scores of responses: by functions, by reward models, by a judge. One number each, and whether it is right."""

import inspect
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedModel

from data_prep.judging import judge_all
from utils.model import find_folder, load_reward_model
from utils.named import PARTS, called, find_reward
from utils.run import quiet
from utils.source import Source, UserError

BATCH = 1024  # responses that a function scores at once
TEXTS = 16  # that a reward model reads at once
OF_TRAINING = ("completion_ids", "max_completion_length", "environments")  # what only a trainer can give


def score_all(rows: list[dict], settings, source: Source, asked: dict) -> tuple[list[list[dict]], list[str]]:
    """Each row's responses with `score` (the weighted sum, or None where the judge gave none) and `right`; and why
    those have none. Raises UserError for a function that cannot score them.
    """
    quiet()
    places = [(i, k) for i, row in enumerate(rows) for k in range(len(row["responses"]))]
    columns, failed = [], []
    for name in settings.score_funcs:
        if name == "judge":
            scores, failed = judge_all(rows, places, settings, asked, start_over=settings.start_over)
        elif "/" in name or Path(find_folder(name)).is_dir():
            scores = by_model(name, settings.dtype, rows, places)
        else:
            scores = by_function(name, rows, places)
        columns.append(scores)
    weights = settings.score_weights or [1.0] * len(columns)
    made: list[list[dict]] = [[] for _ in rows]
    for (i, k), *parts in zip(places, *columns, strict=True):
        known = None not in parts
        score = round(sum(w * part for w, part in zip(weights, parts, strict=True)), 6) if known else None
        right = known and parts[0] >= settings.passes_at
        made[i].append(rows[i]["responses"][k] | {"score": score, "right": right})
    return made, failed


def by_function(name: str, rows: list[dict], places: list[tuple[int, int]]) -> list[float]:
    """A reward function's scores; called as TRL calls it. A score of None, which does not apply, counts 0."""
    function, scores = find_reward("score_funcs", name), []
    wanted = [key for key in OF_TRAINING if key in inspect.signature(function).parameters]
    if wanted:
        raise UserError(f"score_funcs: {name} needs {wanted[0]}, which there is in training alone")
    for first in range(0, len(places), BATCH):
        part = places[first : first + BATCH]
        shared = [key for key in rows[0] if key not in PARTS and key != "responses"]
        arguments = {key: [rows[i].get(key) for i, _ in part] for key in shared}
        arguments["prompts"] = [rows[i]["prompt"] for i, _ in part]
        arguments["completions"] = [rows[i]["responses"][k]["completion"] for i, k in part]
        try:
            found = called(function, arguments)
        except Exception as error:  # it may be the user's own function, and is told of the row that it cannot score
            raise UserError(f"score_funcs: {fault(function, name, rows, part) or error}") from None
        scores += [score or 0.0 for score in found]
    return scores


def fault(function, name: str, rows: list[dict], part: list[tuple[int, int]]) -> str | None:
    """The first row that a function cannot score, and why."""
    for i, k in part:
        columns = {key: [value] for key, value in rows[i].items() if key not in PARTS and key != "responses"}
        asked = {"prompts": [rows[i]["prompt"]], "completions": [rows[i]["responses"][k]["completion"]]}
        try:
            called(function, columns | asked)
        except Exception as error:  # as above
            return f"{name} cannot score row {i + 1}: {type(error).__name__}: {error}. Mend or remove the row"
    return None


def by_model(name: str, dtype: str | None, rows: list[dict], places: list[tuple[int, int]]) -> list[float]:
    """A reward model's scores of prompt and completion together, as its chat template writes them."""
    model = load_reward_model(name, dtype, "score_funcs")
    tokenizer = AutoTokenizer.from_pretrained(find_folder(name))
    if not tokenizer.chat_template:
        raise UserError(f"score_funcs: the tokenizer of {name} has no chat template, so it cannot read messages")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # by which the model finds each text's last token
    return read_by(model, tokenizer, [rows[i]["prompt"] + rows[i]["responses"][k]["completion"] for i, k in places])


@torch.inference_mode()
def read_by(model: PreTrainedModel, tokenizer, dialogues: list[list[dict]]) -> list[float]:
    order = sorted(range(len(dialogues)), key=lambda i: len(str(dialogues[i])))  # like lengths waste no padding
    scores = [0.0] * len(dialogues)
    for first in range(0, len(order), TEXTS):
        part = order[first : first + TEXTS]
        texts = [tokenizer.apply_chat_template(dialogues[i], tokenize=False) for i in part]
        inputs = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
        logits = model(**{key: value.to(PartialState().device) for key, value in inputs.items()}).logits
        for i, score in zip(part, logits[:, 0].float().tolist(), strict=True):
            scores[i] = score
    return scores
