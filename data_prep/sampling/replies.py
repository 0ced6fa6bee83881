"""What a model said, in one form, whoever ran it: assistant messages, their reasoning in <think> or left out."""

import json

CUT = ("length", "max_tokens", "model_length")  # finish reasons, by the names that servers give them
ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", None)
WHOLE = (None, "stop", "tool_calls", "function_call")  # finish reasons of answers that were not cut off
THINKING = "<think>\n{reasoning}\n</think>\n\n{content}"


class Unreadable(Exception):
    """What came back is not an answer; asked again, it may be."""


def message_of(content: str, reasoning: str, tool_calls: list[dict], *, keep_thinking: bool) -> dict:
    """An assistant message as training rows have it.

    Reasoning stands in the content, since a field of its own is left out by chat templates that do not know it. A
    reasoning that was never closed stays without its closing tag, so that a filter can see it.
    """
    if not reasoning:
        reasoning, content = split_thinking(content)
    if reasoning and not keep_thinking:
        content = content if content is not None else ""
    elif content is None:
        content = f"<think>\n{reasoning}"
    elif reasoning:
        content = THINKING.format(reasoning=reasoning.strip(), content=content.strip())
    message = {"role": "assistant", "content": content.strip()}
    return message | {"tool_calls": tool_calls} if tool_calls else message


def split_thinking(content: str) -> tuple[str, str | None]:
    """(reasoning, answer) of a text with <think> in it; the answer is None where the reasoning was never closed."""
    head, closed, answer = content.partition("</think>")
    if closed:
        return head.partition("<think>")[2].strip() if "<think>" in head else head.strip(), answer
    if "<think>" in content:
        return content.partition("<think>")[2].strip(), None
    return "", content


def reply(completion: list[dict], finish_reason: str | None, prompt_tokens: int | None, tokens: int | None) -> dict:
    """One response of a generated row."""
    return {
        "completion": completion, "finish_reason": finish_reason, "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
    }  # fmt: skip


def read_answer(text: str) -> dict:
    """What a chat completion's body says. Raises Unreadable if it is none."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, reasoning = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
        if isinstance(content, list):  # in parts, reasoning among them, as Mistral's
            reasoning = (
                "".join(joined(part["thinking"]) for part in content if part["type"] == "thinking") or reasoning
            )
            content = joined([part for part in content if part["type"] == "text"])
        calls = [
            {
                "type": "function",
                "id": str(call["id"]),
                "function": {"name": call["function"]["name"], "arguments": arguments_of(call["function"])},
            }
            for call in message.get("tool_calls") or []
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Unreadable(f"not a chat completion: {text[:80]!r}") from None
    if not all(isinstance(part, (str, type(None))) for part in (content, reasoning, finish)):
        raise Unreadable(f"content is no text: {text[:80]!r}")
    if content is None and message.get("refusal"):
        content = str(message["refusal"])
    # Cut off, or filtered, it may say nothing; else an empty text is what a model may say, but not none.
    if content is None and not (reasoning or calls or finish in (*CUT, "content_filter")):
        raise Unreadable("an answer without content")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = {key: usage.get(key) for key in ("prompt_tokens", "completion_tokens")}
    return {
        "content": content or "", "reasoning": reasoning or "", "tool_calls": calls,
        "reasoning_name": next((key for key in ("reasoning_content", "reasoning") if message.get(key)), None),
        "finish_reason": "length" if finish in CUT else "stop" if finish in ENDED else finish,
        **{key: count if isinstance(count, int) else None for key, count in tokens.items()},
    }  # fmt: skip


def joined(parts: list[dict]) -> str:
    return "".join(part["text"] for part in parts)


def arguments_of(function: dict) -> dict | str:
    """A call's arguments as a mapping; as they were written where that is no JSON mapping: a filter drops those."""
    written = function["arguments"]
    try:
        read = json.loads(written) if isinstance(written, str) else written
    except ValueError:
        return written
    return read if isinstance(read, dict) else written
