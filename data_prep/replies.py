"""What a model said, in one form, whoever ran it: assistant messages, their reasoning in <think> or left out."""

THINKING = "<think>\n{reasoning}\n</think>\n\n{content}"


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
