"""Scores of responses: by functions, by reward models, by a judge. One number each, and whether it is right."""

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.files import Journal, digest_of
from data_prep.scoring.judge import Places, judge_all, make_questions
from utils.config import ROOT, UserError, describe_error
from utils.files import Ticker
from utils.rewards import NOT_ARGUMENTS, call_reward, find_reward, is_shipped

if TYPE_CHECKING:
    from data_prep.best_of_k import BestOfKConfig

BATCH = 1024  # responses that are scored and kept at once
TRAINING_ONLY = ("completion_ids", "max_completion_length", "environments")  # arguments that only a trainer has
Scorer = Callable[[Places], list[float | None]]


def score_all(rows: list[dict], config: "BestOfKConfig") -> tuple[list[list[dict]], list[str], list[Path]]:
    """Each row's responses with `score` and `right`; why verdicts of the judge are missing; and the journals of
    functions, to be removed once the outputs are written.

    Scores are kept beside the data set, by what they depend on: a run that was killed scores nothing twice, and the
    scores of a judge or reward model serve later selections too. `score` is the weighted sum; it and `right` are None
    where a verdict is missing or a function does not apply.

    Raises:
        UserError: a function or model that cannot score the responses.
    """
    places = [(i, k) for i, row in enumerate(rows) for k in range(len(row["responses"]))]
    columns: list[list[float | None]] = []
    failed: list[str] = []
    journals: list[Path] = []
    for name in config.score_funcs:
        if name != "judge" and not is_model(name):
            find_reward("score_funcs", name)  # so that a mistake is reported before anything is scored
    for name in config.score_funcs:
        if name == "judge":
            questions = make_questions(rows, places, config.judge_mode)
            journal = open_journal(name, config, len(questions))
            scores, failed = judge_all(rows, places, questions, config, journal)
        else:
            journal = open_journal(name, config, len(places))
            scores = score_batches(name, config.dtype, rows, places, journal)
        columns.append(scores)
        journal.close(remove=False)
        journals += [] if is_costly(name) else [journal.path]
    weights = config.score_weights or [1.0] * len(columns)
    scored: list[list[dict]] = [[] for _ in rows]
    for (i, k), *parts in zip(places, *columns, strict=True):
        known = None not in parts
        score = round(sum(w * part for w, part in zip(weights, parts, strict=True)), 6) if known else None
        right = parts[0] >= config.passes_at if known else None
        scored[i].append(rows[i]["responses"][k] | {"score": score, "right": right})
    return scored, failed, journals


def is_costly(name: str) -> bool:
    return name == "judge" or is_model(name)


def is_model(name: str) -> bool:
    return "/" in name or Path(name).is_dir() or (ROOT / name).is_dir()


def open_journal(name: str, config: "BestOfKConfig", requests: int) -> Journal:
    """DATASET.scores_….journal.jsonl, named by a hash of what these scores depend on."""
    settings: dict = {"responses": digest_of(config.dataset_name), "by": name}
    if name == "judge":
        fields = ("judge_model", "judge_mode", "judge_rubric", "judge_max_tokens", "extra_body")
        settings |= {key: value for key, value in asdict(config).items() if key in fields}
    elif is_model(name):
        from data_prep.scoring.reward_model import model_digest

        settings |= {"model": model_digest(name), "dtype": config.dtype}
    else:
        own = sorted((ROOT / "utils/rewards").glob("*.py"))
        files = own if is_shipped(name) else [inspect.getfile(importlib.import_module(name.rpartition(".")[0]))]
        settings |= {"code": list(map(digest_of, files))}
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    dataset = Path(config.dataset_name)
    path = dataset.with_name(f"{dataset.stem}.scores_{mark}.jsonl")
    return Journal(path, settings, requests, start_over=config.start_over and not is_costly(name))


def score_batches(
    name: str, dtype: str | None, rows: list[dict], places: Places, journal: Journal
) -> list[float | None]:
    """The scores of a function or a reward model, batch by batch, except for those that the journal has."""
    batches = [range(first, min(first + BATCH, len(places))) for first in range(0, len(places), BATCH)]
    missing = [batch for batch in batches if not journal.answered[batch].all()]
    if missing:
        score = scorer_of(name, dtype, rows)
        with Ticker("score", len(places), int(journal.answered.sum())) as ticker:
            for batch in missing:
                scores = score([places[number] for number in batch])
                journal.add([{"request": n, "score": part} for n, part in zip(batch, scores, strict=True)])
                ticker.tick(len(batch))
    return [journal[number]["score"] for number in range(len(places))]


def scorer_of(name: str, dtype: str | None, rows: list[dict]) -> Scorer:
    if not is_model(name):
        return function_scorer(name, rows)
    from data_prep.scoring.reward_model import model_scorer

    return model_scorer(name, dtype, rows)


def function_scorer(name: str, rows: list[dict]) -> Scorer:
    """A reward function, called as TRL calls it; None from it means that it does not apply."""
    function = find_reward("score_funcs", name)
    missing = [key for key in TRAINING_ONLY if key in inspect.signature(function).parameters]
    if missing:
        raise UserError(f"score_funcs: {name} needs {missing[0]}, which exists only in training")
    columns = sorted({key for row in rows for key in row} - {*NOT_ARGUMENTS, "responses"})

    def arguments(places: Places, columns: list[str]) -> dict[str, list]:
        return {key: [rows[i].get(key) for i, _ in places] for key in columns} | {
            "prompts": [rows[i]["prompt"] for i, _ in places],
            "completions": [rows[i]["responses"][k]["completion"] for i, k in places],
        }

    def score(places: Places) -> list[float | None]:
        try:
            scores = call_reward(function, arguments(places, columns))
        except Exception as error:  # it may be the user's own function; find the row that it cannot score
            raise UserError(f"score_funcs: {first_fault(places) or error}") from None
        if len(scores) != len(places):
            raise UserError(f"score_funcs: {name} returns {len(scores)} scores for {len(places)} responses")
        for (i, _), part in zip(places, scores, strict=True):
            if not (part is None or (isinstance(part, (int, float)) and math.isfinite(part))):
                raise UserError(f"score_funcs: {name} returns {part!r} for row {i + 1}, which is not a score")
        return scores

    def first_fault(places: Places) -> str | None:
        for place in places:
            own = [key for key in columns if key in rows[place[0]]]
            try:
                call_reward(function, arguments([place], own))
            except Exception as error:  # as above
                return f"{name} cannot score row {place[0] + 1}: {describe_error(error)}. Correct or remove the row"
        return None

    return score
