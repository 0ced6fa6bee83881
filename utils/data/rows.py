"""What a row is: whether it can be trained on, what it asks and teaches, and the keys that tell rows apart.

The one reader of TRL's row formats, for recipes and data preparation; it imports no heavy library.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable

Messages = list[dict]
ROLES = ("assistant", "developer", "system", "tool", "user")


class BadRow(ValueError):
    """Raised by a `to_training_row` that knows why a row cannot be trained on: "has no question"."""


def row_fault(row: dict, formats: Iterable[tuple[str, ...]]) -> str | None:
    """What keeps a row from being trained on, or None.

    Args:
        formats: the sets of columns of which a row needs one.
    """
    if not any(set(columns) <= row.keys() for columns in formats):
        needed = "; ".join(" and ".join(columns) for columns in formats)
        return f"has the columns {', '.join(row)}; a row needs: {needed}"
    for column in ("messages", "prompt", "completion", "text", "chosen", "rejected"):
        if column in row and (fault := part_fault(row[column])):
            return f"{column} {fault}"
    if isinstance(row.get("messages"), str):
        return "messages is a text; write a list of messages"
    both = [column for column in ("prompt", "completion", "chosen", "rejected") if column in row]
    if len({type(row[column]) for column in both}) > 1:
        return f"{' and '.join(both)} must all be texts, or all be lists of messages"
    if is_pair(row) and "prompt" not in row and row["chosen"][:1] != row["rejected"][:1]:
        return "chosen and rejected begin with no common prompt; write it at the head of both, or in a column `prompt`"
    for column in ("score_chosen", "score_rejected"):
        if is_pair(row) and not isinstance(row.get(column, 0.0), (int, float, type(None))):
            return f"{column} is {row[column]!r}; write a number"
    for column in ("messages", "completion", "chosen", "rejected"):
        answers = row.get(column)
        if isinstance(answers, list) and not any(message["role"] == "assistant" for message in answers):
            return f"{column} has no assistant message to learn from"
        if column in ("chosen", "rejected") and isinstance(answers, list) and answers[-1]["role"] != "assistant":
            return f"{column} must end with the assistant's answer"
    return None


def part_fault(value: object) -> str | None:
    """What is wrong with a text or a list of messages, or None."""
    if not value or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if not isinstance(value, (str, list)):
        return f"is {value!r}; write a text or a list of messages"
    for message in value if isinstance(value, list) else []:
        if not isinstance(message, dict):
            return f"holds {message!r}, which is not a message with role and content"
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            near = difflib.get_close_matches(str(role).lower(), ROLES, n=1, cutoff=0.6)
            fix = f"did you mean {near[0]}?" if near else f"write one of {', '.join(ROLES)}"
            return f"has the role {role!r}; {fix}"
        if content is not None and not isinstance(content, str):
            return f"has a {role} message whose content is {content!r}; write a text"
        may_be_empty = role in ("system", "developer", "tool") and content is not None
        if not (content and content.strip()) and not message.get("tool_calls") and not may_be_empty:
            return f"has an empty {role} message"
    return None


def is_pair(row: dict) -> bool:
    return "chosen" in row and "rejected" in row


def split_pair(row: dict) -> tuple[Messages | str | None, Messages | str | None, Messages | str | None]:
    """(prompt, chosen, rejected) of a row, None for what it lacks; a prompt may stand at the head of both sides.

    The head is found as TRL finds it: up to the first difference, a space before it left out.
    """
    prompt, chosen, rejected = (row.get(name) for name in ("prompt", "chosen", "rejected"))
    if prompt is None and chosen and rejected and type(chosen) is type(rejected):
        last = min(len(chosen), len(rejected)) - 1
        end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), last)
        end -= isinstance(chosen, str) and chosen[end - 1 : end] == " "
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    return prompt, chosen, rejected


def split_prompt(row: dict) -> tuple[Messages | str | None, str]:
    """(prompt, reference answer): what comes before the last assistant turn, and that turn's text.

    The prompt is a list of messages, a text, or None for plain text rows, which have no prompt. The reference of a row
    with a column `answer` or `solution` is that column; of a pair, what was chosen.
    """
    if "messages" in row:
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        return row["messages"][:last], row["messages"][last]["content"] or ""
    if "text" in row:
        return None, row["text"]
    prompt, chosen, _ = split_pair(row)
    for column in ("answer", "solution"):
        if row.get(column) is not None:
            return prompt, str(row[column])
    reply = row.get("completion") or chosen or ""
    return prompt, reply if isinstance(reply, str) else reply[-1]["content"] or ""


def answer_texts(row: dict) -> list[str]:
    """The texts that a row teaches to say."""
    part = row.get("completion") or row.get("chosen") or row.get("messages") or ""
    if isinstance(part, str):
        return [part] if part else []
    return [message["content"] for message in part if message["role"] == "assistant" and message.get("content")]


def describe_row(row: dict, most: int = 80) -> str:
    """The head of what a row asks, for messages to the user."""
    prompt, text = split_prompt(row)
    shown = prompt[-1]["content"] if isinstance(prompt, list) and prompt else prompt or text
    text = " ".join(str(shown).split())
    return repr(text if len(text) <= most else text[:most] + "...")


def prompt_key(row: dict) -> bytes:
    """A row's first question, spacing and case aside: rows that share it are never split."""
    prompt, text = split_prompt(row)
    if isinstance(prompt, list):
        questions = [message["content"] or "" for message in prompt if message["role"] == "user"]
        text = questions[0] if questions else json.dumps(prompt)
    elif isinstance(prompt, str):
        text = prompt
    return hashlib.sha256(" ".join(text.lower().split()).encode(errors="replace")).digest()[:16]


def row_key(row: dict) -> bytes:
    """The whole row, for counting copies."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode(errors="replace")).digest()[:16]


def is_identical_pair(row: dict) -> bool:
    return "chosen" in row and row["chosen"] == row["rejected"]


def is_held_out(key: bytes, fraction: float) -> bool:
    return int.from_bytes(key[:8]) < fraction * 2**64
