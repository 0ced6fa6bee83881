"""A model's replies in one format, whoever ran it: assistant messages, their reasoning in <think> or left out."""

import json

CUT = ("length", "max_tokens", "model_length")  # finish reasons, as servers name them
ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", None)
COMPLETE = (None, "stop", "tool_calls", "function_call")  # finish reasons of answers that were not cut off
THINKING = "<think>\n{reasoning}\n</think>\n\n{content}"


class Unreadable(Exception):
    """The reply is not a chat completion; the next try may be."""


def message_of(content: str, reasoning: str, tool_calls: list[dict], *, keep_thinking: bool) -> dict:
    """An assistant message of a training row.

    The reasoning is part of the content, since chat templates leave out a field that they do not know. Reasoning that
    was never closed stays without its closing tag, so that a filter can see it.
    """
    reasoning, answer = (reasoning, content) if reasoning else split_thinking(content)
    if answer is None:  # never closed
        text = f"<think>\n{reasoning}" if keep_thinking else ""
    elif reasoning and keep_thinking:
        text = THINKING.format(reasoning=reasoning.strip(), content=answer.strip())
    else:
        text = answer
    message = {"role": "assistant", "content": text.strip()}
    return message | {"tool_calls": tool_calls} if tool_calls else message


def split_thinking(content: str) -> tuple[str, str | None]:
    """(reasoning, answer) of a text with <think> in it; the answer is None where the reasoning was never closed."""
    head, closed, answer = content.partition("</think>")
    if closed:
        return head.partition("<think>")[2].strip() if "<think>" in head else head.strip(), answer
    if "<think>" in content:
        return content.partition("<think>")[2].strip(), None
    return "", content


def response_of(
    completion: list[dict], finish_reason: str | None, prompt_tokens: int | None, tokens: int | None
) -> dict:
    """One response of a generated row."""
    return {
        "completion": completion, "finish_reason": finish_reason, "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
    }  # fmt: skip


def read_answer(text: str) -> dict:
    """The parts of a chat completion's body. Raises Unreadable if it is not one."""
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
        raise Unreadable(f"content is not a text: {text[:80]!r}")
    if content is None and message.get("refusal"):
        content = str(message["refusal"])
    # Only an answer that was cut off or filtered may lack its content; an empty text is an answer.
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
    """A call's arguments as a mapping; unchanged if they are not a JSON mapping: a filter drops those."""
    arguments = function["arguments"]
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
