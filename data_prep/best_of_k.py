"""Of K responses to a prompt, those worth training on: for SFT, DPO and GRPO from one sampling.

    python data_prep/best_of_k.py --config configs/best_of_k_tiny.yaml

Every response is scored by functions of utils/rewards.py, by reward models, or by an LLM judge. Written, as asked: the
best of K (best_to), distinct right ones (correct_to), best against worst as pairs (pairs_to), prompts that the model
solves sometimes (prompts_to). Held-out prompts are set apart before anything is chosen (heldout_to).
"""

import contextlib
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from data_prep.files.jsonl import Output, check_files, drop, publish, read_rows, stop_if_done, what_is_asked
from data_prep.sampling.replies import WHOLE
from data_prep.sampling.server import FREE
from data_prep.scoring.judge import JudgeConfig
from utils.config import InputFile, OutputFile, Source, UserError, parse_fields, read_config, run_main
from utils.files import say, show

INCOMPLETE = 3  # the exit code when a judge left some responses without a score
NOT_SCORED = "{:,} responses have no score, and were not chosen from"
OUTPUTS = ("best_to", "correct_to", "pairs_to", "prompts_to", "heldout_to")


@dataclass
class BestOfKConfig(JudgeConfig):
    """What is scored, how, and what is written."""

    dataset_name: Annotated[InputFile, Field(description="What generate.py wrote.")] = ""
    score_funcs: Annotated[
        list[str],
        Field(description="Functions of utils/rewards/, dotted paths, reward models (owner/name or a folder), judge."),
    ] = field(default_factory=list)
    score_weights: Annotated[list[float] | None, Field(description="Of each of score_funcs; by default 1.")] = None
    passes_at: Annotated[
        float, Field(description="A response is right if the first of score_funcs gives at least this.")
    ] = 1.0
    keep_truncated: Annotated[
        bool, Field(description="Whether a response that was cut off, or is empty, may be chosen.")
    ] = False
    best_to: Annotated[
        OutputFile | None, Field(description="SFT: the best response to each prompt, the shorter of equals.")
    ] = None
    least_score: Annotated[
        float | None, Field(description="Prompts whose best response scores less are left out of best_to.")
    ] = None
    correct_to: Annotated[
        OutputFile | None, Field(description="SFT: right responses that differ (rejection sampling).")
    ] = None
    correct_per_prompt: Annotated[int, Field(ge=1, description="Right responses to one prompt, at most.")] = 4
    pairs_to: Annotated[OutputFile | None, Field(description="DPO: the best response over the worst.")] = None
    least_margin: Annotated[float, Field(gt=0, description="Between the scores of a pair, at least.")] = 0.5
    prompts_to: Annotated[
        OutputFile | None, Field(description="GRPO: prompts whose share of right responses is in pass_rate.")
    ] = None
    pass_rate: Annotated[
        list[float], Field(description="The least and the greatest share of right responses, for prompts_to.")
    ] = field(default_factory=lambda: [0.1, 0.9])
    heldout_to: Annotated[
        OutputFile | None, Field(description="Held-out prompts with their answers, for heldout_name.")
    ] = None
    heldout_fraction: Annotated[
        float, Field(ge=0, le=0.5, description="The share of prompts held out, by the hash that training uses.")
    ] = 0.0
    dtype: Annotated[str | None, Field(description="Of reward models: bfloat16, float32.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Chooses between responses that are equal in all.")] = 42
    start_over: Annotated[
        bool,
        Field(description="Replace what an earlier run has chosen; scores of judges and reward models are kept."),
    ] = False


def main() -> None:
    source, began = read_config(__doc__, fields=BestOfKConfig), time.time()
    settings = parse_fields(source, BestOfKConfig)
    outputs = check_together(source, settings)
    asked = what_is_asked(settings, [settings.dataset_name], (*FREE, "dtype"))
    stop_if_done(outputs, asked, start_over=settings.start_over)
    rows = list(read_rows(settings.dataset_name))
    check_rows(rows, settings)
    if settings.start_over:
        drop(outputs)

    from data_prep.scoring.scoring import score_all
    from utils.data import is_held_out, prompt_key

    scored, failed, journals = score_all(rows, settings)
    counts = {"prompts": len(rows), "responses": sum(map(len, scored))}
    counts |= {"not_scored": sum(r["score"] is None for responses in scored for r in responses), "heldout": 0}
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(Output(path, with_manifest=True))
            for name in OUTPUTS
            if (path := vars(settings)[name])
        }
        for number, (row, responses) in enumerate(zip(rows, scored, strict=True)):
            if is_held_out(prompt_key(row), settings.heldout_fraction):
                counts["heldout"] += 1
                made = {"heldout_to": heldout_rows(row, responses)}
            else:
                made = chosen(row, responses, settings, number)
            for name in files.keys() & made.keys():
                for kept in made[name]:
                    files[name].write(kept)
    counts |= {name: file.rows for name, file in files.items()} | summary(scored)
    publish(list(files.values()), source, asked, {"counts": counts}, began, ["trl"], unfinished=bool(failed))
    for journal in journals:
        journal.unlink(missing_ok=True)
    for name, file in files.items():
        say("done" if file.rows else "WARNING", f"{show(file.path)}: {file.rows:,} rows ({name})")
    say("", ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items() if name not in files))
    if failed:
        say("FAILED", f"{len(failed):,} verdicts are missing ({failed[0]}): {NOT_SCORED.format(counts['not_scored'])}")
        sys.exit(INCOMPLETE)
    if counts["not_scored"]:
        say("WARNING", f"{settings.score_funcs[0]} says None: {NOT_SCORED.format(counts['not_scored'])}")


def check_together(source: Source, settings: BestOfKConfig) -> list[str]:
    """The outputs that are asked for. Raises UserError for what does not go together."""
    outputs = [vars(settings)[name] for name in OUTPUTS if vars(settings)[name]]
    if not settings.dataset_name or not settings.score_funcs:
        raise UserError(
            f"{source.path.name}: {'score_funcs' if settings.dataset_name else 'dataset_name'}: is missing"
        )
    if not outputs:
        raise UserError(f"{source.path.name}: name what to write: {', '.join(OUTPUTS)}")
    check_files([settings.dataset_name], {name: vars(settings)[name] for name in OUTPUTS})
    if len(settings.score_weights or settings.score_funcs) != len(settings.score_funcs):
        raise UserError("score_weights: write one number for each of score_funcs")
    low, high = settings.pass_rate if len(settings.pass_rate) == 2 else (1.0, 0.0)
    if not 0 <= low <= high <= 1:
        raise UserError("pass_rate: write the least and the greatest share, as pass_rate: [0.1, 0.9]")
    if bool(settings.heldout_to) != bool(settings.heldout_fraction):
        raise UserError("heldout_to: give it together with heldout_fraction, or neither")
    if "judge" in settings.score_funcs and not (settings.base_urls and settings.judge_model):
        raise UserError("score_funcs: a judge needs judge_model and base_urls")
    return outputs


def check_rows(rows: list[dict], settings: BestOfKConfig) -> None:
    """Raises UserError naming the row that is none of generate.py's."""
    name = Path(settings.dataset_name).name
    if not rows:
        raise UserError(f"{name}: has no rows")
    for number, row in enumerate(rows, 1):
        responses = row.get("responses")
        if not isinstance(row.get("prompt"), list) or not isinstance(responses, list) or not responses:
            raise UserError(f"{name}:{number}: has no prompt and responses. Name a file that generate.py wrote")
        for response in responses:
            completion = response.get("completion") if isinstance(response, dict) else None
            if not completion or not all(is_message(m) for m in [*completion, *row["prompt"]]):
                raise UserError(f"{name}:{number}: a response has no completion. Name a file that generate.py wrote")


def is_message(part: object) -> bool:
    return isinstance(part, dict) and "role" in part and isinstance(part.get("content"), (str, type(None)))


def chosen(row: dict, responses: list[dict], settings: BestOfKConfig, number: int) -> dict[str, list[dict]]:
    """What a prompt gives to each output. `responses` have `score` and `right`, None where they are not known."""
    base = {key: value for key, value in row.items() if key != "responses"}
    scored = [response for response in responses if response["score"] is not None]
    whole = [response for response in scored if settings.keep_truncated or is_whole(response)]
    draw = random.Random(f"{settings.seed} {number}")
    ranked = sorted(whole, key=lambda r: (-r["score"], length(r), draw.random()))
    found: dict[str, list[dict]] = {"best_to": [], "correct_to": [], "pairs_to": [], "prompts_to": []}
    if ranked and (settings.least_score is None or ranked[0]["score"] >= settings.least_score):
        found["best_to"] = [sft_row(base, ranked[0])]
    found["correct_to"] = [sft_row(base, response) for response in distinct(ranked)][: settings.correct_per_prompt]
    if ranked:
        worst = min(ranked, key=lambda r: (r["score"], draw.random()))
        if round(ranked[0]["score"] - worst["score"], 6) >= settings.least_margin:
            sides = {"chosen": ranked[0]["completion"], "rejected": worst["completion"]}
            scores = {"score_chosen": ranked[0]["score"], "score_rejected": worst["score"]}
            found["pairs_to"] = [base | sides | scores]
    judged = [response for response in scored if response["right"] is not None]
    if judged:
        rate = sum(response["right"] and is_whole(response) for response in judged) / len(judged)
        low, high = settings.pass_rate
        if low <= rate <= high:
            found["prompts_to"] = [base | {"pass_rate": round(rate, 4)}]
    return found


def is_whole(response: dict) -> bool:
    """Whether it ends with an answer: not cut off or filtered, not empty, no call that no tool answered."""
    last = response["completion"][-1]
    said = (last.get("content") or "").strip() and last["role"] == "assistant" and not last.get("tool_calls")
    return bool(said) and response.get("finish_reason") in WHOLE


def length(response: dict) -> int:
    """In tokens where they were counted, else in characters."""
    tokens = response.get("completion_tokens")
    return tokens if tokens is not None else sum(len(m.get("content") or "") for m in response["completion"])


def distinct(ranked: list[dict]) -> Iterator[dict]:
    """The right ones, of those that say the same the first."""
    seen = set()
    for response in ranked:
        text = " ".join(str(message.get("content")) for message in response["completion"]).lower().split()
        if response["right"] and tuple(text) not in seen:
            seen.add(tuple(text))
            yield response


def sft_row(base: dict, response: dict) -> dict:
    return base | {"completion": response["completion"], "score": response["score"]}


def heldout_rows(row: dict, responses: list[dict]) -> list[dict]:
    """With the gold answer where there is one: a model's own is no reference."""
    base = {key: value for key, value in row.items() if key != "responses"}
    if row.get("answer"):
        return [base | {"completion": [{"role": "assistant", "content": str(row["answer"])}]}]
    ranked = sorted((r for r in responses if r["score"] is not None), key=lambda r: (-r["score"], length(r)))
    return [base | {"completion": ranked[0]["completion"]}] if ranked else []


def summary(scored: list[list[dict]]) -> dict:
    """How much choosing gains: the mean score and share of right ones of all responses, and of the best of each K."""
    known = [[r for r in responses if r["score"] is not None] for responses in scored]
    known = [responses for responses in known if responses]
    every = [response for responses in known for response in responses]
    if not every:
        return {}
    best = [max(responses, key=lambda r: r["score"]) for responses in known]
    return {
        "mean_score": round(sum(r["score"] for r in every) / len(every), 4),
        "mean_best_score": round(sum(r["score"] for r in best) / len(best), 4),
        "right": round(sum(bool(r["right"]) for r in every) / len(every), 4),
        "prompts_with_a_right_one": round(sum(any(r["right"] for r in rs) for rs in known) / len(known), 4),
    }


if __name__ == "__main__":
    run_main(main)
