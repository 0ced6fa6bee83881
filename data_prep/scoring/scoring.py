"""Scores of responses: by functions, by reward models, by a judge. One number each, and whether it is right."""

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer

from data_prep.files.journal import Journal
from data_prep.files.jsonl import digest_of
from data_prep.sampling.local import weights_digest
from data_prep.scoring.judge import judge_all, make_questions
from utils.config import UserError
from utils.files import Ticker
from utils.model import SPARE_PADS, context_length, find_folder, load_reward_model
from utils.rewards import NOT_ARGUMENTS, call_reward, find_reward
from utils.run import quiet

LOT = 1024  # responses that are scored and kept at once
TEXTS = 16  # that a reward model reads at once
Score = Callable[[list[tuple[int, int]]], list[float | None]]  # (row, response) each -> a score each
OF_TRAINING = ("completion_ids", "max_completion_length", "environments")  # what only a trainer can give


def score_all(rows: list[dict], settings) -> tuple[list[list[dict]], list[str], list[Path]]:
    """Each row's responses with `score` and `right`; why the judge gave some none; and the journals of functions, to
    be removed when the outputs are written.

    Scores are kept beside the data set, by what they hang on: killed and started again, nothing is scored twice, and
    what a judge or a reward model said serves later choices too. `score` is the weighted sum; it and `right` are None
    where the judge failed or a function does not apply.

    Raises:
        UserError: a function or model that cannot score the responses.
    """
    quiet()
    places = [(i, k) for i, row in enumerate(rows) for k in range(len(row["responses"]))]
    columns, failed, journals = [], [], []
    for name in settings.score_funcs:
        if name != "judge" and not is_model(name):
            find_reward("score_funcs", name)  # told before anything is scored
    for name in settings.score_funcs:
        questions = make_questions(rows, places, settings.judge_mode) if name == "judge" else places
        journal = open_journal(name, settings, len(questions))
        if name == "judge":
            scores, failed = judge_all(rows, places, questions, settings, journal)
        else:
            scores = score_lots(name, settings.dtype, rows, places, journal)
        columns.append(scores)
        journal.close(remove=False)
        journals += [] if name == "judge" or is_model(name) else [journal.path]
    weights = settings.score_weights or [1.0] * len(columns)
    made: list[list[dict]] = [[] for _ in rows]
    for (i, k), *parts in zip(places, *columns, strict=True):
        known = None not in parts
        score = round(sum(w * part for w, part in zip(weights, parts, strict=True)), 6) if known else None
        right = parts[0] >= settings.passes_at if known else None
        made[i].append(rows[i]["responses"][k] | {"score": score, "right": right})
    return made, failed, journals


def open_journal(name: str, settings, requests: int) -> Journal:
    """DATASET.scores_….journal.jsonl, named by what these scores hang on."""
    asked = {"responses": digest_of(settings.dataset_name), "by": name}
    if name == "judge":
        config = asdict(settings)
        asked |= {key: config[key] for key in ("judge_model", "judge_mode", "judge_rubric", "judge_max_tokens")}
        asked |= {"extra_body": config["extra_body"]}
    elif is_model(name):
        asked |= {"model": model_digest(name), "dtype": settings.dtype}
    else:
        module = importlib.import_module(name.rpartition(".")[0] if "." in name else "utils.rewards")
        asked |= {"code": digest_of(module.__file__)}
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    dataset, kept = Path(settings.dataset_name), name == "judge" or is_model(name)
    path = dataset.with_name(f"{dataset.stem}.scores_{mark}.jsonl")
    return Journal(path, asked, requests, start_over=settings.start_over and not kept)


def model_digest(name: str) -> list[str | None]:
    """What tells one reward model from another: weights, config, tokenizer and template, or the hub's commit."""
    folder = Path(find_folder(name))
    if not folder.is_dir():
        cached = try_to_load_from_cache(name, "config.json")
        return [Path(cached).parent.name if isinstance(cached, str) else None]
    texts = sorted([*folder.glob("*.json"), *folder.glob("*.jinja")])
    return [weights_digest(str(folder)), *(digest_of(path) for path in texts)]


def is_model(name: str) -> bool:
    return "/" in name or Path(find_folder(name)).is_dir()


def score_lots(
    name: str, dtype: str | None, rows: list[dict], places: list[tuple[int, int]], journal: Journal
) -> list[float | None]:
    """What a function or a reward model gives to each response, lot by lot; what the journal has is not done again."""
    lots = [range(first, min(first + LOT, len(places))) for first in range(0, len(places), LOT)]
    missing = [lot for lot in lots if not journal.answered[lot].all()]
    if missing:
        score = by_model(name, dtype, rows) if is_model(name) else by_function(name, rows)
        with Ticker("score", len(places), int(journal.answered.sum())) as ticker:
            for lot in missing:
                found = score([places[number] for number in lot])
                journal.add([{"request": n, "score": part} for n, part in zip(lot, found, strict=True)])
                ticker.tick(len(lot))
    return [journal.get(number)["score"] for number in range(len(places))]


def by_function(name: str, rows: list[dict]) -> Score:
    """A reward function, called as TRL calls it; None from it means that it does not apply."""
    function = find_reward("score_funcs", name)
    wanted = [key for key in OF_TRAINING if key in inspect.signature(function).parameters]
    if wanted:
        raise UserError(f"score_funcs: {name} needs {wanted[0]}, which there is in training alone")
    columns = sorted({key for row in rows for key in row} - {*NOT_ARGUMENTS, "responses"})

    def score(places: list[tuple[int, int]]) -> list[float | None]:
        arguments = {key: [rows[i].get(key) for i, _ in places] for key in columns}
        arguments["prompts"] = [rows[i]["prompt"] for i, _ in places]
        arguments["completions"] = [rows[i]["responses"][k]["completion"] for i, k in places]
        try:
            found = call_reward(function, arguments)
        except Exception as error:  # it may be the user's own function, and is told of the row that it cannot score
            raise UserError(f"score_funcs: {fault(function, name, rows, places) or error}") from None
        if len(found) != len(places):
            raise UserError(f"score_funcs: {name} gives {len(found)} scores for {len(places)} responses")
        for (i, _), part in zip(places, found, strict=True):
            if not (part is None or (isinstance(part, (int, float)) and math.isfinite(part))):
                raise UserError(f"score_funcs: {name} gives {part!r} to row {i + 1}, which is no score")
        return found

    return score


def fault(function, name: str, rows: list[dict], part: list[tuple[int, int]]) -> str | None:
    """The first row that a function cannot score, and why."""
    for i, k in part:
        columns = {key: [value] for key, value in rows[i].items() if key not in NOT_ARGUMENTS and key != "responses"}
        asked = {"prompts": [rows[i]["prompt"]], "completions": [rows[i]["responses"][k]["completion"]]}
        try:
            call_reward(function, columns | asked)
        except Exception as error:  # as above
            return f"{name} cannot score row {i + 1}: {type(error).__name__}: {error}. Mend or remove the row"
    return None


def by_model(name: str, dtype: str | None, rows: list[dict]) -> Score:
    """A reward model, which reads prompt and completion together, as its chat template writes them; None for what is
    longer than its context."""
    model = load_reward_model(name, dtype, "score_funcs")
    tokenizer = AutoTokenizer.from_pretrained(find_folder(name))
    if not tokenizer.chat_template:
        raise UserError(f"score_funcs: the tokenizer of {name} has no chat template, so it cannot read messages")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"score_funcs: {name} has no tokenizer of its own (transformers made an empty one)")
    # The model scores at each text's last token that is no padding, so EOS must not be it.
    pads = [tokenizer.pad_token, *SPARE_PADS]
    pad = next((token for token in pads if token in tokenizer.get_vocab() and token != tokenizer.eos_token), None)
    tokenizer.pad_token = pad or tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id if pad else None
    size, context = TEXTS if pad else 1, context_length(model)

    def score(places: list[tuple[int, int]]) -> list[float | None]:
        dialogues = [rows[i]["prompt"] + rows[i]["responses"][k]["completion"] for i, k in places]
        texts = tokenizer.apply_chat_template(dialogues, tokenize=False)
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        scores: list[float | None] = [None] * len(places)
        order = sorted(range(len(places)), key=lambda i: len(encoded[i]))  # like lengths waste no padding
        order = [i for i in order if not context or len(encoded[i]) <= context]
        for first in range(0, len(order), size):
            part = order[first : first + size]
            inputs = tokenizer.pad(
                {"input_ids": [encoded[i] for i in part]}, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                logits = model(**{key: value.to(PartialState().device) for key, value in inputs.items()}).logits
            for i, found in zip(part, logits[:, 0].float().tolist(), strict=True):
                scores[i] = found
        return scores

    return score
