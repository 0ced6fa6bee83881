"""Selects the responses worth training on out of K to each prompt: for SFT, DPO and GRPO from one sampling.

    python data_prep/best_of_k.py --config configs/best_of_k_tiny.yaml

Every response is scored by functions of utils/rewards, by reward models, or by an LLM judge. The config names what is
written: the best of K (best_to), distinct right ones (correct_to), best against worst as pairs (pairs_to), prompts
that the model solves sometimes (prompts_to). Held-out prompts are set apart before anything is selected (heldout_to).
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

from data_prep.files import Output, check_outputs, made_from, publish, read_rows, remove_outputs, stop_if_done
from data_prep.sampling import COMPLETE, FREE
from data_prep.scoring import JudgeConfig, score_all
from utils.config import InputFile, OutputFile, Source, UserError, parse_fields, read_config, run_main
from utils.data import is_held_out, messages_text, prompt_key
from utils.files import say, show

INCOMPLETE = 3  # the exit code when a judge left some responses without a score
NOT_SCORED = "{:,} responses have no score and were left out"
OUTPUTS = ("best_to", "correct_to", "pairs_to", "prompts_to", "heldout_to")


@dataclass
class BestOfKConfig(JudgeConfig):
    """What is scored, how, and what is written."""

    dataset_name: Annotated[InputFile, Field(description="What generate.py wrote.")] = ""
    score_funcs: Annotated[
        list[str],
        Field(description="Functions of utils/rewards/, dotted paths, reward models (owner/name or a folder), judge."),
    ] = field(default_factory=list)
    score_weights: Annotated[list[float] | None, Field(description="Weights of score_funcs; by default 1.")] = None
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
    least_margin: Annotated[float, Field(gt=0, description="Difference of the scores of a pair, at least.")] = 0.5
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
    dtype: Annotated[str | None, Field(description="Data type of reward models: bfloat16, float32.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Chooses between responses that are equal in all.")] = 42
    start_over: Annotated[
        bool,
        Field(description="Replace what an earlier run has chosen; scores of judges and reward models are kept."),
    ] = False


def main() -> None:
    source, began = read_config(__doc__, fields=BestOfKConfig), time.time()
    config = parse_fields(source, BestOfKConfig)
    outputs = check_config(source, config)
    settings = made_from(config, [config.dataset_name], (*FREE, "dtype"))
    stop_if_done(list(outputs.values()), settings, start_over=config.start_over)
    rows = list(read_rows(config.dataset_name))
    check_rows(rows, config)
    if config.start_over:
        remove_outputs(list(outputs.values()))
    scored, failed, journals = score_all(rows, config)
    counts = {"prompts": len(rows), "responses": sum(map(len, scored))}
    counts |= {"not_scored": sum(r["score"] is None for responses in scored for r in responses), "heldout": 0}
    with contextlib.ExitStack() as stack:
        files = {key: stack.enter_context(Output(path, with_manifest=True)) for key, path in outputs.items()}
        for number, (row, responses) in enumerate(zip(rows, scored, strict=True)):
            if is_held_out(prompt_key(row), config.heldout_fraction):
                counts["heldout"] += 1
                selected = {"heldout_to": heldout_rows(row, responses)}
            else:
                selected = select(row, responses, config, number)
            for key in files.keys() & selected.keys():
                for kept in selected[key]:
                    files[key].write(kept)
    others = counts | summary(scored)
    counts = counts | {key: file.rows for key, file in files.items()} | summary(scored)
    publish(list(files.values()), source, settings, {"counts": counts}, began, ["trl"], unfinished=bool(failed))
    for journal in journals:
        journal.unlink(missing_ok=True)
    for key, file in files.items():
        say("done" if file.rows else "WARNING", f"{show(file.path)}: {file.rows:,} rows ({key})")
    say("", ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in others.items()))
    if failed:
        say("FAILED", f"{len(failed):,} verdicts are missing ({failed[0]}): {NOT_SCORED.format(counts['not_scored'])}")
        sys.exit(INCOMPLETE)
    if counts["not_scored"]:
        say("WARNING", f"{config.score_funcs[0]} returned None: {NOT_SCORED.format(counts['not_scored'])}")


def check_config(source: Source, config: BestOfKConfig) -> dict[str, str]:
    """The outputs by their keys. Raises UserError for settings that contradict each other."""
    for key in ("dataset_name", "score_funcs"):
        if not vars(config)[key]:
            raise UserError(f"{source.path.name}: {key}: is missing")
    outputs = {key: vars(config)[key] for key in OUTPUTS if vars(config)[key]}
    if not outputs:
        raise UserError(f"{source.path.name}: name what to write: {', '.join(OUTPUTS)}")
    check_outputs([config.dataset_name], outputs)
    if len(config.score_weights or config.score_funcs) != len(config.score_funcs):
        raise UserError("score_weights: write one number for each of score_funcs")
    low, high = config.pass_rate if len(config.pass_rate) == 2 else (1.0, 0.0)
    if not 0 <= low <= high <= 1:
        raise UserError("pass_rate: write the least and the greatest share, for example pass_rate: [0.1, 0.9]")
    if bool(config.heldout_to) != bool(config.heldout_fraction):
        raise UserError("heldout_to: write it together with heldout_fraction, or neither")
    if "judge" in config.score_funcs and not (config.base_urls and config.judge_model):
        raise UserError("score_funcs: a judge needs judge_model and base_urls")
    return outputs


def check_rows(rows: list[dict], config: BestOfKConfig) -> None:
    """Raises UserError naming the row that generate.py did not write."""
    name = Path(config.dataset_name).name
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


def select(row: dict, responses: list[dict], config: BestOfKConfig, number: int) -> dict[str, list[dict]]:
    """The rows of a prompt for each output. `responses` have `score` and `right`, None where they are not known."""
    base = without_responses(row)
    scored = [response for response in responses if response["score"] is not None]
    candidates = [response for response in scored if config.keep_truncated or is_complete(response)]
    rng = random.Random(f"{config.seed} {number}")
    ranked = sorted(candidates, key=lambda r: (-r["score"], length(r), rng.random()))
    rows: dict[str, list[dict]] = {"best_to": [], "correct_to": [], "pairs_to": [], "prompts_to": []}
    if ranked:
        best, worst = ranked[0], min(ranked, key=lambda r: (r["score"], rng.random()))
        if config.least_score is None or best["score"] >= config.least_score:
            rows["best_to"] = [sft_row(base, best)]
        rows["correct_to"] = [sft_row(base, response) for response in distinct(ranked)][: config.correct_per_prompt]
        if round(best["score"] - worst["score"], 6) >= config.least_margin:
            sides = {"chosen": best["completion"], "rejected": worst["completion"]}
            rows["pairs_to"] = [base | sides | {"score_chosen": best["score"], "score_rejected": worst["score"]}]
    judged = [response for response in scored if response["right"] is not None]
    if judged:
        rate = sum(response["right"] and is_complete(response) for response in judged) / len(judged)
        low, high = config.pass_rate
        if low <= rate <= high:
            rows["prompts_to"] = [base | {"pass_rate": round(rate, 4)}]
    return rows


def without_responses(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "responses"}


def is_complete(response: dict) -> bool:
    """Whether it ends with an answer: not cut off or filtered, not empty, no call without a result."""
    last = response["completion"][-1]
    answers = (last.get("content") or "").strip() and last["role"] == "assistant" and not last.get("tool_calls")
    return bool(answers) and response.get("finish_reason") in COMPLETE


def length(response: dict) -> int:
    """In tokens where they were counted, else in characters."""
    tokens = response.get("completion_tokens")
    return tokens if tokens is not None else sum(len(m.get("content") or "") for m in response["completion"])


def distinct(ranked: list[dict]) -> Iterator[dict]:
    """The right ones; of those with the same words, the first."""
    seen = set()
    for response in ranked:
        words = tuple(messages_text(response["completion"]).lower().split())
        if response["right"] and words not in seen:
            seen.add(words)
            yield response


def sft_row(base: dict, response: dict) -> dict:
    return base | {"completion": response["completion"], "score": response["score"]}


def heldout_rows(row: dict, responses: list[dict]) -> list[dict]:
    """With the reference answer where there is one: a model's own is not a reference."""
    base = without_responses(row)
    if row.get("answer"):
        return [base | {"completion": [{"role": "assistant", "content": str(row["answer"])}]}]
    ranked = sorted((r for r in responses if r["score"] is not None), key=lambda r: (-r["score"], length(r)))
    return [base | {"completion": ranked[0]["completion"]}] if ranked else []


def summary(scored: list[list[dict]]) -> dict:
    """The gain of selecting: mean score and share of right ones of all responses, and of the best of each K."""
    known = [found for responses in scored if (found := [r for r in responses if r["score"] is not None])]
    every = [response for responses in known for response in responses]
    if not every:
        return {}
    best = [max(r["score"] for r in responses) for responses in known]
    return {
        "mean_score": round(sum(r["score"] for r in every) / len(every), 4),
        "mean_best_score": round(sum(best) / len(best), 4),
        "right": round(sum(bool(r["right"]) for r in every) / len(every), 4),
        "prompts_with_a_right_one": round(sum(any(r["right"] for r in rs) for rs in known) / len(known), 4),
    }


if __name__ == "__main__":
    run_main(main)
