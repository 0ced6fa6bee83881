"""Every response that is still missing is asked for, of servers or of a local model, and kept as it comes."""

import asyncio
import hashlib
import json
from collections.abc import Iterator

from data_prep.files.journal import Journal
from data_prep.sampling.replies import message_of, reply
from utils.config import Source
from utils.files import Ticker


def missing_requests(journal: Journal, rows: list[dict], settings) -> Iterator[int]:
    """The numbers of the requests without an answer: prompt x num_responses + response."""
    answered = journal.answered
    return (number for number in range(len(rows) * settings.num_responses) if not answered[number])


def ask_servers(rows: list[dict], settings, source: Source, journal: Journal, ticker: Ticker) -> list:
    """Each missing response is a request with a seed of its own. Returns (number, why) of those that did not come."""
    from data_prep.sampling.server import Servers

    called = load_tools(settings.tools)

    async def answer(servers: Servers, number: int) -> dict:
        return await take_turns(servers, settings, rows, number, called)

    def keep(number: int, response: dict) -> None:
        journal.add([{"request": number} | response])
        ticker.tick()

    async def run() -> list:
        servers = Servers(settings, settings.model_name_or_path, int(journal.answered.sum()))
        await servers.warn_of_other_models()
        return await servers.ask_all(missing_requests(journal, rows, settings), answer, keep)

    return asyncio.run(run())


def load_tools(names: list[str]) -> list:
    if not names:
        return []
    from utils.generation import load_tools

    return load_tools(names)


async def take_turns(servers, settings, rows: list[dict], number: int, tools: list) -> dict:
    """One response: the model's answer, and those after what its tool calls gave."""
    from data_prep.sampling.server import Refused

    row = rows[number // settings.num_responses]
    body, turns = request_body(settings, row, number, tools), []
    completion, used, made = [], [], []
    for turn in range(settings.max_tool_calling_iterations + 1):
        answer = await servers.ask(number // settings.num_responses, body)
        parts = (answer["content"], answer["reasoning"], answer["tool_calls"])
        completion.append(message_of(*parts, keep_thinking=settings.thinking == "keep"))
        used.append(answer["prompt_tokens"])
        made.append(answer["completion_tokens"])
        if not (tools and answer["tool_calls"]) or turn == settings.max_tool_calling_iterations:
            break
        if any(isinstance(call["function"]["arguments"], str) for call in answer["tool_calls"]):
            raise Refused("a tool call whose arguments are no JSON mapping")
        results = await asyncio.to_thread(use_tools, answer["tool_calls"], tools)
        completion += results
        said = {"role": "assistant", "content": answer["content"], "tool_calls": answer["tool_calls"]}
        if name := answer["reasoning_name"]:  # under the name by which this server knows it
            said[name] = answer["reasoning"]
        turns += [said, *results]
        body["messages"] = as_sent([*row["prompt"], *turns])
    return reply(completion, answer["finish_reason"], total(used), total(made))


def use_tools(calls: list[dict], tools: list) -> list[dict]:
    from utils.generation import call_tools

    return call_tools({"tool_calls": calls}, tools)


def as_sent(messages: list[dict]) -> list[dict]:
    """Messages as the API takes them: a call's arguments as text, calls with ids, and what tools said by these."""
    sent, waiting = [], []
    for place, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = []
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


def request_body(settings, row: dict, number: int, tools: list) -> dict:
    """Messages and sampling settings, as the chat completions API names them."""
    body = {
        "messages": as_sent(row["prompt"]), "max_tokens": settings.max_new_tokens, "temperature": settings.temperature,
        "top_p": settings.top_p, "seed": seed_of(settings.seed, number),
    }  # fmt: skip
    schemas = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    if tools:
        from transformers.utils import get_json_schema

        schemas = [get_json_schema(tool) for tool in tools]
    more = {"chat_template_kwargs": settings.chat_template_kwargs} if settings.chat_template_kwargs else {}
    more |= {"top_k": settings.top_k} if settings.top_k else {}
    body |= {"tools": schemas} if schemas else {}
    return body | ({"extra_body": more} if more else {})


def seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4]) // 2


def total(counts: list[int | None]) -> int | None:
    return None if None in counts else sum(counts)


def ask_local_model(rows: list[dict], settings, source: Source, journal: Journal, ticker: Ticker) -> list:
    """Lots of batch_size responses, the same in every run, each with a seed of its own and kept as a whole."""
    from utils.run import quiet

    quiet()
    from data_prep.sampling.local import LocalModel

    model, answered, failed = LocalModel(settings, source), journal.answered, []
    size, count = settings.batch_size, len(rows) * settings.num_responses
    for lot, first in enumerate(range(0, count, size)):
        numbers = range(first, min(first + size, count))
        if answered[numbers].any():
            failed += [(number, no_room(settings)) for number in numbers if not answered[number]]
            continue
        dialogues = [(number, model.begin(number, rows[number // settings.num_responses])) for number in numbers]
        failed += [(number, no_room(settings)) for number, dialogue in dialogues if not model.room(dialogue)]
        asked = [(number, dialogue) for number, dialogue in dialogues if model.room(dialogue)]
        replies = model.answer([dialogue for _, dialogue in asked], seed_of(settings.seed, lot)) if asked else []
        journal.add([{"request": number} | made for (number, _), made in zip(asked, replies, strict=True)])
        ticker.tick(len(asked))
    return failed


def no_room(settings) -> str:
    return f"the prompt leaves no room for {settings.max_new_tokens} tokens in the model's context"
