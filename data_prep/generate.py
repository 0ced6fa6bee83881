"""Samples several responses to each prompt from a strong model, for best_of_k.py to choose from.

    python data_prep/generate.py --config configs/generate_tiny.yaml            # a local model
    python data_prep/generate.py --config configs/generate_qwen.yaml            # the servers of `base_urls`

Responses are kept as they come: a run that was killed resumes where it was. Prompts that stay without a response are
listed beside the output, and the exit code is 3; the same command then requests only these.
"""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from data_prep.files import (
    Journal,
    Output,
    check_outputs,
    made_from,
    publish,
    remove_outputs,
    stop_if_done,
    weights_digest,
)
from data_prep.sampling import COMPLETE, FREE, Failed, ServerConfig, load_tools, read_prompts, sample
from utils.config import OutputFile, Source, UserError, local_path, missing_model, parse_fields, read_config, run_main
from utils.data import fingerprint, split_prompt
from utils.files import Ticker, say, show

INCOMPLETE = 3  # the exit code when some prompts have no answer


@dataclass
class GenerateConfig(ServerConfig):
    """Which prompts go to which model, and how it samples."""

    model_name_or_path: Annotated[str, Field(description="The strong model: a folder, or its name.")] = ""
    dataset_name: Annotated[
        str,
        Field(description="Prompts: rows in any of TRL's formats, or question and answer; a file or a hub name."),
    ] = ""
    dataset_config: Annotated[str | None, Field(description="The hub data set's configuration.")] = None
    dataset_train_split: Annotated[str, Field(description="The hub data set's split.")] = "train"
    output_file: Annotated[OutputFile, Field(description="The JSONL file to write.")] = ""
    prompts: Annotated[int | None, Field(ge=1, description="How many prompts, at most.")] = None
    num_responses: Annotated[int, Field(ge=1, le=1024, description="Responses to each prompt (K).")] = 4
    system_prompt: Annotated[
        str | None, Field(description="Put before every prompt that has no system message of its own.")
    ] = None
    keep_system_prompt: Annotated[
        bool, Field(description="Keep it in the rows. If not, the model learns to behave so without it.")
    ] = True
    thinking: Annotated[Literal["keep", "drop"], Field(description="The reasoning in <think>.")] = "keep"
    tools: Annotated[
        list[str],
        Field(description="What the model may call: functions of utils/generation/tools.py, or dotted paths."),
    ] = field(default_factory=list)
    max_tool_calling_iterations: Annotated[
        int, Field(ge=1, le=100, description="How often one response may call tools.")
    ] = 8
    chat_template_kwargs: Annotated[
        dict, Field(description="Variables of the chat template: {enable_thinking: false}.")
    ] = field(default_factory=dict)
    max_new_tokens: Annotated[int, Field(ge=1, description="Tokens of a response, at most.")] = 1024
    temperature: Annotated[float, Field(ge=0, description="Sampling temperature; 0: greedy.")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="Nucleus sampling.")] = 1.0
    top_k: Annotated[int | None, Field(ge=1, description="Sample from the k likeliest tokens only.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Seed of the sampling.")] = 42
    backend: Annotated[Literal["transformers", "vllm"], Field(description="For a local model.")] = "transformers"
    chat_template: Annotated[
        str | None,
        Field(description="For a local model without one: a template that TRL ships, or a .jinja file."),
    ] = None
    dtype: Annotated[str | None, Field(description="Data type of a local model: bfloat16, float32.")] = None
    batch_size: Annotated[int, Field(ge=1, description="Responses that a local model generates at once.")] = 128
    input_price: Annotated[float, Field(ge=0, description="Price of a million prompt tokens.")] = 0.0
    output_price: Annotated[float, Field(ge=0, description="Price of a million response tokens.")] = 0.0
    dry_run: Annotated[bool, Field(description="Count prompts, tokens and cost, send nothing, and stop.")] = False
    start_over: Annotated[bool, Field(description="Drop what an earlier run has generated, and begin again.")] = False


def to_prompt_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, `prompt` (text or messages) and the columns that score the
    answers out.

    The prompt of a whole dialogue ends with its last question; its last answer becomes the column `answer`.
    """
    if "question" in row and "answer" in row:  # openai/gsm8k and the like
        rest = {key: value for key, value in row.items() if key != "question"}
        return {"prompt": [{"role": "user", "content": row["question"]}]} | rest
    prompt, reference = split_prompt(row)
    if isinstance(prompt, list):  # without the tool calls after the last question: the model makes its own
        last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
        prompt = prompt[: last + 1]
    rest = {key: value for key, value in row.items() if key not in ("messages", "completion", "chosen", "rejected")}
    if reference and "answer" not in row and "solution" not in row:
        rest["answer"] = reference
    return rest | {"prompt": prompt}


def main() -> None:
    source, began = read_config(__doc__, fields=GenerateConfig), time.time()
    config = parse_fields(source, GenerateConfig)
    check_config(source, config)
    rows = read_prompts(source, config, to_prompt_row)
    if config.dry_run:
        say_cost(rows, config)
        return
    settings = made_from(config, [], (*FREE, "dry_run", "input_price", "output_price"))
    settings |= {"prompts": fingerprint(rows, most=len(rows))}
    settings["config"]["model_name_or_path"] = source.values["model_name_or_path"]  # as written, wherever it is
    if not config.base_urls:  # a server does not report its own
        settings["weights"] = weights_digest(config.model_name_or_path)
    stop_if_done([config.output_file], settings, start_over=config.start_over)
    requests = len(rows) * config.num_responses
    journal = Journal(config.output_file, settings, requests, start_over=config.start_over)
    if config.start_over:
        remove_outputs([config.output_file])
    done = int(journal.answered.sum())
    say("generate", f"{len(rows):,} prompts x {config.num_responses} responses; {done:,} already done")
    with Ticker("generate", requests, done) as ticker:
        failed = sample(rows, config, source, journal, ticker)
    output = Output(config.output_file, with_manifest=True)
    results = write_rows(output, rows, config, journal, failed)
    if output.rows:
        library = "openai" if config.base_urls else config.backend
        publish([output], source, settings, results, began, [library], unfinished=bool(failed))
    else:
        output.part.unlink()
    journal.close(remove=not failed)
    say_results(output, results)
    if failed:
        sys.exit(INCOMPLETE)


def check_config(source: Source, config: GenerateConfig) -> None:
    missing = [name for name in ("model_name_or_path", "dataset_name", "output_file") if not vars(config)[name]]
    if missing:
        raise UserError(f"{source.path.name}: {missing[0]}: is missing")
    if not config.base_urls:
        if fault := missing_model(source, config.model_name_or_path):
            raise UserError(f"{source.where['model_name_or_path']}: model_name_or_path: {fault}")
        if folder := local_path(source, "model_name_or_path", config.model_name_or_path):
            config.model_name_or_path = str(folder)
    path = local_path(source, "dataset_name", config.dataset_name)
    check_outputs([str(path)] if path else [], {"output_file": config.output_file})
    if config.tools and config.chat_template_kwargs.get("tools"):
        raise UserError("chat_template_kwargs: tools have a key of their own. Write tools: [...]")
    if config.num_responses > 1 and config.temperature == 0:
        raise UserError("temperature: 0 gives the same response every time. Write temperature: 1, or num_responses: 1")


def write_rows(output: Output, rows: list[dict], config: GenerateConfig, journal: Journal, failed: Failed) -> dict:
    """Writes the rows that have responses, in the order of the prompts. Returns counts for the manifest."""
    k, tools = config.num_responses, tool_column(config)
    counts = {"prompts": len(rows), "responses": 0, "failed_responses": len(failed), "failed_prompts": 0}
    counts |= {"truncated": 0, "prompt_tokens": 0, "completion_tokens": 0, "uncounted": 0, "all_alike": 0}
    with output as file:
        for i, row in enumerate(rows):
            found = filter(None, map(journal.get, range(i * k, (i + 1) * k)))
            responses = [{key: value for key, value in r.items() if key != "request"} for r in found]
            counts["responses"] += len(responses)
            counts["truncated"] += sum(r["finish_reason"] not in COMPLETE for r in responses)
            counts["uncounted"] += sum(r["completion_tokens"] is None for r in responses)
            for name in ("prompt_tokens", "completion_tokens"):
                counts[name] += sum(r[name] or 0 for r in responses)
            first = responses[0]["completion"] if responses else None
            counts["all_alike"] += len(responses) > 1 and all(r["completion"] == first for r in responses)
            if responses:
                file.write(row | {"prompt": kept_prompt(row["prompt"], config)} | tools | {"responses": responses})
    counts["failed_prompts"] = write_failed(output.path.with_suffix(".failed.jsonl"), rows, failed, k)
    price = {}
    if config.input_price or config.output_price:
        price = {"cost": cost(config, counts["prompt_tokens"], counts["completion_tokens"])}
    return {"counts": counts | price, "why_failed": dict(Counter(reason for _, reason in failed).most_common(5))}


def kept_prompt(prompt: list[dict], config: GenerateConfig) -> list[dict]:
    added = config.system_prompt and prompt[0]["content"] == config.system_prompt
    return prompt[1:] if added and not config.keep_system_prompt else prompt


def write_failed(path: Path, rows: list[dict], failed: Failed, k: int) -> int:
    """Lists the prompts that lack responses, with the reasons. Returns how many there are."""
    reasons: dict[int, list[str]] = {}
    for number, reason in sorted(failed):
        reasons.setdefault(number // k, []).append(reason)
    path.unlink(missing_ok=True)
    if reasons:
        with Output(path) as file:
            for i, found in reasons.items():
                listed = {"row": i + 1, "reasons": sorted(set(found)), "responses_missing": len(found)}
                file.write(listed | {"prompt": rows[i]["prompt"]})
    return len(reasons)


def tool_column(config: GenerateConfig) -> dict:
    """The column by which a chat template shows the tools in training."""
    if not config.tools:
        return {}
    from transformers.utils import get_json_schema

    return {"tools": json.dumps([get_json_schema(tool) for tool in load_tools(config.tools)])}


def cost(config: GenerateConfig, prompt_tokens: int, completion_tokens: int) -> float:
    return round((prompt_tokens * config.input_price + completion_tokens * config.output_price) / 1e6, 6)


def say_cost(rows: list[dict], config: GenerateConfig) -> None:
    """For --dry_run: requests, prompt tokens, response tokens at most, and their cost."""
    texts = (message.get("content") or "" for row in rows for message in row["prompt"])
    count = config.num_responses * len(rows)
    tokens = config.num_responses * sum(len(text.encode(errors="replace")) for text in texts) // 4
    most = count * config.max_new_tokens
    say("dry run", f"{len(rows):,} prompts x {config.num_responses} = {count:,} responses; nothing was sent")
    say("", f"about {tokens:,} prompt tokens (4 bytes a token; templates and tools not counted)")
    say("", f"at most {most:,} response tokens (max_new_tokens = {config.max_new_tokens})")
    if config.input_price or config.output_price:
        say("", f"costs at most about {cost(config, tokens, most):,.2f}, in the currency of the prices")


def say_results(output: Output, results: dict) -> None:
    counts = results["counts"]
    text = f"{counts['responses']:,} responses to {output.rows:,} prompts, {counts['truncated']:,} cut off"
    text += f", {counts['completion_tokens']:,} tokens" + (f", cost {counts['cost']:,.2f}" if "cost" in counts else "")
    if counts["responses"]:
        say("done", f"{show(output.path)}: {text}")
    if counts["all_alike"] > output.rows / 2:
        say(
            "WARNING",
            f"{counts['all_alike']:,} of {output.rows:,} prompts got the same response every time: there is nothing "
            "to choose from. Is the server sampling? (transformers serve samples only where a generation config has "
            "do_sample; see configs/generate_tiny_served.yaml.) Or raise the temperature",
        )
    if counts["failed_prompts"]:
        say(
            "FAILED",
            f"{counts['failed_prompts']:,} prompts lack {counts['failed_responses']:,} responses, most often: "
            f"{next(iter(results['why_failed']))}. See {show(output.path.with_suffix('.failed.jsonl'))}. "
            "The same command requests these again",
        )


if __name__ == "__main__":
    run_main(main)
