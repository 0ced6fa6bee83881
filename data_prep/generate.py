"""Answers to prompts by a strong model, several to each: what best_of_k.py then chooses from.

    python data_prep/generate.py --config configs/generate_tiny.yaml            # a model of this machine
    python data_prep/generate.py --config configs/generate_qwen.yaml            # servers, as `base_urls` names them

Answers are kept as they come: killed and started again, it goes on where it was. Prompts that stay without an answer
are listed beside the output, and the exit code is 3; the same command then asks for these alone.
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

from data_prep.files.journal import Journal
from data_prep.files.jsonl import Output, check_files, drop, publish, stop_if_done, what_is_asked
from data_prep.filters.texts import split_pair
from data_prep.sampling.prompts import fingerprint, read_prompts
from data_prep.sampling.replies import WHOLE
from data_prep.sampling.requests import ask_local_model, ask_servers, load_tools
from data_prep.sampling.server import FREE, ServerConfig
from utils.config import OutputFile, Source, UserError, local_path, missing_model, parse_fields, read_config, run_main
from utils.files import Ticker, say, show

INCOMPLETE = 3  # the exit code when some prompts have no answer


@dataclass
class GenerateConfig(ServerConfig):
    """What is asked of which model."""

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
    temperature: Annotated[float, Field(ge=0, description="Of the sampling; 0: greedy.")] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, description="Nucleus sampling.")] = 1.0
    top_k: Annotated[int | None, Field(ge=1, description="Sample from the k likeliest tokens only.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**32, description="Of the sampling.")] = 42
    backend: Annotated[Literal["transformers", "vllm"], Field(description="For a local model.")] = "transformers"
    chat_template: Annotated[
        str | None,
        Field(description="For a local model without one: a template that TRL ships, or a .jinja file."),
    ] = None
    dtype: Annotated[str | None, Field(description="Of a local model: bfloat16, float32.")] = None
    batch_size: Annotated[int, Field(ge=1, description="Responses that a local model generates at once.")] = 128
    input_price: Annotated[float, Field(ge=0, description="Price of a million prompt tokens.")] = 0.0
    output_price: Annotated[float, Field(ge=0, description="Price of a million response tokens.")] = 0.0
    dry_run: Annotated[bool, Field(description="Count prompts, tokens and cost, send nothing, and stop.")] = False
    start_over: Annotated[bool, Field(description="Drop what an earlier run has generated, and begin again.")] = False


def to_prompt_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, `prompt` (text or messages) and what scores answers out.

    A row of a whole dialogue asks what stands up to its last question; its last answer becomes the column `answer`.
    """
    if "question" in row and "answer" in row:  # openai/gsm8k and its like
        kept = {key: value for key, value in row.items() if key != "question"}
        return {"prompt": [{"role": "user", "content": row["question"]}]} | kept
    kept = {key: value for key, value in row.items() if key not in ("messages", "completion", "chosen", "rejected")}
    if "messages" in row:
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        prompt, reply = row["messages"][:last], row["messages"][last:]
    else:
        prompt, chosen, _ = split_pair(row)
        reply = row.get("completion", chosen)
    if reply is not None and "answer" not in row and "solution" not in row:
        kept["answer"] = reply if isinstance(reply, str) else reply[-1].get("content") or ""
    return kept | {"prompt": until_asked(prompt) if isinstance(prompt, list) else prompt}


def until_asked(prompt: list[dict]) -> list[dict]:
    """Without the tool calls, and what came of them, that stand after the last question: the model makes its own."""
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    return prompt[: last + 1]


def main() -> None:
    source, began = read_config(__doc__, fields=GenerateConfig), time.time()
    settings = parse_fields(source, GenerateConfig)
    check_together(source, settings)
    rows = read_prompts(source, settings, to_prompt_row)
    if settings.dry_run:
        tell_cost(rows, settings)
        return
    asked = what_is_asked(settings, [], (*FREE, "dry_run", "input_price", "output_price"))
    asked |= {"prompts": fingerprint(rows)}
    asked["config"]["model_name_or_path"] = source.values["model_name_or_path"]  # as written, wherever it lies
    if not settings.base_urls:  # a server does not say
        from data_prep.sampling.local import weights_digest

        asked["weights"] = weights_digest(settings.model_name_or_path)
    output = Path(settings.output_file)
    stop_if_done([settings.output_file], asked, start_over=settings.start_over)
    journal = Journal(output, asked, len(rows) * settings.num_responses, start_over=settings.start_over)
    if settings.start_over:
        drop([settings.output_file])
    done = int(journal.answered.sum())
    say("generate", f"{len(rows):,} prompts x {settings.num_responses} responses; {done:,} are there already")
    with Ticker("generate", len(journal.answered), done) as ticker:
        ask = ask_servers if settings.base_urls else ask_local_model
        failed = ask(rows, settings, source, journal, ticker)
    made = Output(output, with_manifest=True)
    counts = write_rows(made, rows, settings, journal, failed)
    if made.rows:
        library = "openai" if settings.base_urls else settings.backend
        publish([made], source, asked, counts, began, [library], unfinished=bool(failed))
    else:
        made.part.unlink()
    journal.close(remove=not failed)
    tell(made, counts)
    if failed:
        sys.exit(INCOMPLETE)


def check_together(source: Source, settings: GenerateConfig) -> None:
    missing = [name for name in ("model_name_or_path", "dataset_name", "output_file") if not vars(settings)[name]]
    if missing:
        raise UserError(f"{source.path.name}: {missing[0]}: is missing")
    if not settings.base_urls and (said := missing_model(source, settings.model_name_or_path)):
        raise UserError(f"{source.where['model_name_or_path']}: model_name_or_path: {said}")
    if not settings.base_urls and (folder := local_path(source, "model_name_or_path", settings.model_name_or_path)):
        settings.model_name_or_path = str(folder)
    path = local_path(source, "dataset_name", settings.dataset_name)
    check_files([str(path)] if path else [], {"output_file": settings.output_file})
    if settings.tools and settings.chat_template_kwargs.get("tools"):
        raise UserError("chat_template_kwargs: tools have a key of their own. Write tools: [...]")
    if settings.num_responses > 1 and settings.temperature == 0:
        raise UserError("temperature: 0 gives the same response every time. Write temperature: 1, or num_responses: 1")


def write_rows(output: Output, rows: list[dict], settings: GenerateConfig, journal, failed: list) -> dict:
    """The rows that have responses, in the order of the prompts; the others, with the reason, in OUTPUT.failed.jsonl.

    Returns what the manifest says.
    """
    count, why = settings.num_responses, {}
    for number, reason in failed:
        why.setdefault(number // count, []).append(reason)
    counts = {"prompts": len(rows), "responses": 0, "failed_responses": len(failed), "failed_prompts": len(why)}
    counts |= {"truncated": 0, "prompt_tokens": 0, "completion_tokens": 0, "uncounted": 0, "all_alike": 0}
    system = settings.system_prompt and not settings.keep_system_prompt
    with output as file:
        for i, row in enumerate(rows):
            found = [journal.get(i * count + k) for k in range(count)]
            responses = [{key: part for key, part in made.items() if key != "request"} for made in found if made]
            for made in responses:
                counts["truncated"] += made["finish_reason"] not in WHOLE
                counts["uncounted"] += made["completion_tokens"] is None
                counts["prompt_tokens"] += made["prompt_tokens"] or 0
                counts["completion_tokens"] += made["completion_tokens"] or 0
            counts["responses"] += len(responses)
            counts["all_alike"] += len(responses) > 1 and all(
                r["completion"] == responses[0]["completion"] for r in responses
            )
            shown = (
                row | {"prompt": row["prompt"][1:]}
                if system and row["prompt"][0]["content"] == settings.system_prompt
                else row
            )
            if responses:
                file.write(shown | tool_column(settings) | {"responses": responses})
    listed = output.path.with_suffix(".failed.jsonl")
    with Output(listed) as file:
        for i, reasons in sorted(why.items()):
            file.write(
                {
                    "row": i + 1,
                    "reasons": sorted(set(reasons)),
                    "responses_missing": len(reasons),
                    "prompt": rows[i]["prompt"],
                }
            )
    if not why:
        listed.unlink()
    reasons = dict(Counter(reason for _, reason in failed).most_common(5))
    if settings.input_price or settings.output_price:
        counts["cost"] = cost(settings, counts["prompt_tokens"], counts["completion_tokens"])
    return {"counts": counts, "why_failed": reasons}


def tool_column(settings: GenerateConfig) -> dict:
    """The column by which a chat template shows a row's tools while it is trained on."""
    if not settings.tools:
        return {}
    from transformers.utils import get_json_schema

    return {"tools": json.dumps([get_json_schema(tool) for tool in load_tools(settings.tools)])}


def cost(settings: GenerateConfig, prompt_tokens: int, completion_tokens: int) -> float:
    return round((prompt_tokens * settings.input_price + completion_tokens * settings.output_price) / 1e6, 6)


def tell_cost(rows: list[dict], settings: GenerateConfig) -> None:
    """What --dry_run says: requests, prompt tokens, response tokens at most, and what they cost."""
    text = sum(
        len("".join(str(m.get("content") or "") for m in row["prompt"]).encode(errors="replace")) for row in rows
    )
    count = settings.num_responses * len(rows)
    tokens, most = settings.num_responses * text // 4, count * settings.max_new_tokens
    say("dry run", f"{len(rows):,} prompts x {settings.num_responses} = {count:,} responses; nothing was asked")
    say("", f"about {tokens:,} prompt tokens (4 bytes a token; templates and tools not counted)")
    say("", f"at most {most:,} response tokens (max_new_tokens = {settings.max_new_tokens})")
    if settings.input_price or settings.output_price:
        say("", f"costs at most about {cost(settings, tokens, most):,.2f}, in the money of the prices")


def tell(output: Output, found: dict) -> None:
    counts = found["counts"]
    text = f"{counts['responses']:,} responses to {output.rows:,} prompts, {counts['truncated']:,} cut off"
    text += f", {counts['completion_tokens']:,} tokens" + (f", cost {counts['cost']:,.2f}" if "cost" in counts else "")
    if counts["responses"]:
        say("done", f"{show(output.path)}: {text}")
    if counts["all_alike"] > output.rows / 2:
        alike = f"{counts['all_alike']:,} of {output.rows:,} prompts"
        say(
            "WARNING",
            f"all responses to {alike} are alike: there is nothing to choose from. Is the server sampling? "
            "(transformers serve does so only where a generation "
            "config says do_sample; see configs/generate_tiny_served.yaml.) Or raise the temperature",
        )
    if counts["failed_prompts"]:
        say(
            "FAILED",
            f"{counts['failed_prompts']:,} prompts lack {counts['failed_responses']:,} responses, most often: "
            f"{next(iter(found['why_failed']))}. See {show(output.path.with_suffix('.failed.jsonl'))}. "
            "The same command asks for these again",
        )


if __name__ == "__main__":
    run_main(main)
