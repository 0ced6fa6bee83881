"""Samples every response that is missing, from servers or a local model, and keeps each as it comes."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from data_prep.files import Journal
from data_prep.sampling.replies import message_of, response_of
from data_prep.sampling.server import Failed, Refused, Servers
from utils.config import Source
from utils.files import Ticker

if TYPE_CHECKING:
    from data_prep.generate import GenerateConfig


def sample(rows: list[dict], config: "GenerateConfig", source: Source, journal: Journal, ticker: Ticker) -> Failed:
    """Request number n is response n % num_responses to prompt n // num_responses, with a seed of its own.

    Returns the requests that stay without a response, and why.
    """
    if config.base_urls:
        return sample_from_servers(rows, config, journal, ticker)
    return sample_locally(rows, config, source, journal, ticker)


def sample_from_servers(rows: list[dict], config: "GenerateConfig", journal: Journal, ticker: Ticker) -> Failed:
    tools, answered = load_tools(config.tools), journal.answered

    async def answer(servers: Servers, number: int) -> dict:
        return await take_turns(servers, config, rows, number, tools)

    def keep(number: int, response: dict) -> None:
        journal.add([{"request": number} | response])
        ticker.tick()

    async def run() -> Failed:
        servers = Servers(config, config.model_name_or_path, int(answered.sum()))
        await servers.check_models()
        return await servers.ask_all((n for n in range(len(answered)) if not answered[n]), answer, keep)

    return asyncio.run(run())


def load_tools(names: list[str]) -> list[Callable]:
    if not names:
        return []  # without the import, which takes seconds
    from utils.generation import load_tools

    return load_tools(names)


async def take_turns(
    servers: Servers, config: "GenerateConfig", rows: list[dict], number: int, tools: list[Callable]
) -> dict:
    """One response: the model's answer, and if it calls tools, the results and the answers that follow."""
    prompt_number = number // config.num_responses
    row = rows[prompt_number]
    body, sent = request_body(config, row, number, tools), list(row["prompt"])
    completion: list[dict] = []
    counts: list[tuple[int | None, int | None]] = []
    for turn in range(config.max_tool_calling_iterations + 1):
        answer = await servers.ask(prompt_number, body)
        parts = (answer["content"], answer["reasoning"], answer["tool_calls"])
        completion.append(message_of(*parts, keep_thinking=config.thinking == "keep"))
        counts.append((answer["prompt_tokens"], answer["completion_tokens"]))
        if not (tools and answer["tool_calls"]) or turn == config.max_tool_calling_iterations:
            break
        if any(isinstance(call["function"]["arguments"], str) for call in answer["tool_calls"]):
            raise Refused("a tool call whose arguments are not a JSON mapping")
        results = await asyncio.to_thread(call_tools, answer["tool_calls"], tools)
        completion += results
        message = {"role": "assistant", "content": answer["content"], "tool_calls": answer["tool_calls"]}
        if name := answer["reasoning_name"]:  # the field in which this server sends and expects it
            message[name] = answer["reasoning"]
        sent += [message, *results]
        body["messages"] = to_api_messages(sent)
    prompt_tokens, completion_tokens = (
        None if None in column else sum(column) for column in zip(*counts, strict=True)
    )
    return response_of(completion, answer["finish_reason"], prompt_tokens, completion_tokens)


def call_tools(calls: list[dict], tools: list[Callable]) -> list[dict]:
    from utils.generation import call_tools

    return call_tools({"tool_calls": calls}, tools)


def to_api_messages(messages: list[dict]) -> list[dict]:
    """Messages as the API takes them: calls with their arguments as text and an id, tool results with that id."""
    sent: list[dict] = []
    waiting: list[dict] = []  # calls that have no result yet
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls: list[dict] = []
            for k, call in enumerate(message["tool_calls"]):
                function = call.get("function", call)
                arguments = function.get("arguments") or {}
                arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                function = {"name": function["name"], "arguments": arguments}
                calls.append({"type": "function", "id": call.get("id") or f"call_{place}_{k}", "function": function})
            message, waiting = message | {"content": message.get("content") or "", "tool_calls": calls}, calls
        elif message["role"] == "tool" and "tool_call_id" not in message and waiting:
            own = next((call for call in waiting if call["function"]["name"] == message.get("name")), waiting[0])
            waiting = [call for call in waiting if call is not own]
            message = message | {"tool_call_id": own["id"]}
        sent.append(message)
    return sent


def request_body(config: "GenerateConfig", row: dict, number: int, tools: list[Callable]) -> dict:
    """Messages and sampling parameters, as the chat completions API names them."""
    body = {
        "messages": to_api_messages(row["prompt"]), "max_tokens": config.max_new_tokens,
        "temperature": config.temperature, "top_p": config.top_p, "seed": seed_of(config.seed, number),
    }  # fmt: skip
    schemas = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    if tools:
        from transformers.utils import get_json_schema

        schemas = [get_json_schema(tool) for tool in tools]
    extra: dict = {"chat_template_kwargs": config.chat_template_kwargs} if config.chat_template_kwargs else {}
    extra |= {"top_k": config.top_k} if config.top_k else {}
    body |= {"tools": schemas} if schemas else {}
    return body | ({"extra_body": extra} if extra else {})


def seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4]) // 2


def sample_locally(
    rows: list[dict], config: "GenerateConfig", source: Source, journal: Journal, ticker: Ticker
) -> Failed:
    """Batches of batch_size responses, the same in every run, each with a seed of its own and kept as a whole."""
    from utils.run import quiet

    quiet()
    from data_prep.sampling.local import LocalModel

    model, answered, failed = LocalModel(config, source), journal.answered, []
    no_room = f"the prompt leaves no room for {config.max_new_tokens} tokens in the model's context"
    for batch, first in enumerate(range(0, len(answered), config.batch_size)):
        numbers = range(first, min(first + config.batch_size, len(answered)))
        if answered[numbers].any():
            failed += [(number, no_room) for number in numbers if not answered[number]]
            continue
        dialogues = {number: model.begin(number, rows[number // config.num_responses]) for number in numbers}
        fitting = {number: dialogue for number, dialogue in dialogues.items() if model.has_room(dialogue)}
        failed += [(number, no_room) for number in numbers if number not in fitting]
        responses = model.answer(list(fitting.values()), seed_of(config.seed, batch)) if fitting else []
        journal.add([{"request": number} | made for number, made in zip(fitting, responses, strict=True)])
        ticker.tick(len(fitting))
    return failed
