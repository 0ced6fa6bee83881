"""What a row is: whether it can be trained on, its prompt, its answers, and the keys that identify it.

The one reader of TRL's row formats, for recipes and data preparation; it imports no heavy library.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

Messages = list[dict]
ROLES = ("assistant", "developer", "system", "tool", "user")
QUESTION_COLUMNS = ("prompt", "question", "problem", "instruction", "query", "turns", "text", "ctx", "input")
TURN_COLUMNS = ("messages", "prompt", "question", "completion", "answer", "text", "chosen", "rejected")
UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # what odd values raise when they are read


class BadRow(ValueError):
    """Why a row cannot be read or trained on; a `to_training_row` may raise it too: "has no question"."""


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

    The prompt is a list of messages, a text, or None for plain text rows. The reference of a row with a column
    `answer` or `solution` is that column; of a pair, the chosen side.
    """
    if row.get("messages"):
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        return row["messages"][:last], row["messages"][last].get("content") or ""
    if row.get("text") is not None:
        return None, row["text"]
    prompt, chosen, _ = split_pair(row)
    for column in ("answer", "solution"):
        if row.get(column) is not None:
            return prompt, str(row[column])
    reply = row.get("completion") or chosen or ""
    return prompt, reply if isinstance(reply, str) else reply[-1].get("content") or ""


def message_text(message: dict) -> str:
    """A message's content, then its tool calls as JSON."""
    content, calls = message.get("content") or "", message.get("tool_calls")
    if not isinstance(content, str):
        raise TypeError(f"content is {content!r:.40}, not a text")
    return "\n".join(filter(None, [content, json.dumps(calls, ensure_ascii=False)])) if calls else content


def messages_text(part: Messages | str) -> str:
    return part if isinstance(part, str) else "\n".join(map(message_text, part))


def as_messages(part: Messages | str | None, role: str) -> Messages:
    """A text as one message of that role; messages as they are."""
    if not isinstance(part, (str, list, type(None))):
        raise TypeError(f"{part!r:.40} is neither a text nor a list of messages")
    return [{"role": role, "content": part}] if isinstance(part, str) else part or []


@dataclass
class RowParts:
    """The texts of a row by their part in training."""

    questions: list[str] = field(default_factory=list)  # the user's turns up to the last answer
    context: list[str] = field(default_factory=list)  # system prompts, tool results, answers that are not trained on
    answers: list[str] = field(default_factory=list)  # every assistant message that is trained on
    response: str = ""  # the last answer, with the calls before it where tools were called
    rejected: str = ""  # of a pair

    @classmethod
    def of(cls, row: dict) -> Self:
        """Reads a row in any of TRL's formats, or with question and answer. Raises BadRow if it is in none."""
        try:
            return cls.read(row)
        except UNREADABLE as error:
            raise BadRow(f"{type(error).__name__}: {error}") from None

    @classmethod
    def read(cls, row: dict) -> Self:
        if row.get("messages"):
            messages = row["messages"]
            roles = [message["role"] for message in messages]
            if "assistant" not in roles:
                raise ValueError("no assistant message")
            end = len(roles) - roles[::-1].index("assistant")
            begin = max((i + 1 for i, role in enumerate(roles[:end]) if role == "user"), default=0)
            return cls.from_dialogue(messages[:begin], messages[begin:end], all_trained=True)
        prompt, chosen, rejected = split_pair(row)
        prompt = as_messages(prompt if prompt is not None else row.get("question"), "user")
        for answer in (row.get("completion"), chosen):
            if answer is not None:
                parts = cls.from_dialogue(prompt, as_messages(answer, "assistant"))
                parts.rejected = messages_text(rejected) if rejected is not None else ""
                if not parts.answers:
                    raise ValueError("no assistant message")
                return parts
        for gold in (row.get("answer"), row.get("solution")):
            if gold is not None and prompt:
                return cls.from_dialogue(prompt, as_messages(str(gold), "assistant"))
        if row.get("text") is not None:
            return cls.from_dialogue([], as_messages(row["text"], "assistant"))
        if prompt:  # a task for online RL may have no answer
            return cls.from_dialogue(prompt, [])
        raise ValueError(f"the columns {', '.join(row)} hold no training row")

    @classmethod
    def from_dialogue(cls, prompt: Messages, reply: Messages, *, all_trained: bool = False) -> Self:
        """`all_trained`: on the assistant messages of the prompt too."""
        parts, response = cls(), []
        for place, message in enumerate([*prompt, *reply]):
            text, role = message_text(message), message["role"]
            if role == "user":
                parts.questions.append(text)
            elif role == "assistant" and (all_trained or place >= len(prompt)):
                parts.answers.append(text)
                response += [text] * (place >= len(prompt))
            else:
                parts.context.append(text)
        parts.response = "\n".join(response)
        return parts

    @property
    def prompt(self) -> str:
        return "\n".join(self.questions)

    def everything(self) -> str:
        return "\n".join([*self.context, *self.questions, *self.answers, self.rejected])


def questions_of(row: dict) -> list[str]:
    """The questions of a held-out row, or of one of a published benchmark. Raises BadRow if no column holds any."""
    row = {key.lower(): value for key, value in row.items() if value is not None}
    if row.get("messages") or "chosen" in row:
        return RowParts.of(row).questions
    for column in QUESTION_COLUMNS:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            more = row.get("input") if column == "instruction" else None
            return [value + (f"\n{more}" if isinstance(more, str) and more else "")]
        if isinstance(value, list) and value:
            try:
                return [messages_text([m] if isinstance(m, dict) else m) for m in value if is_question(m)]
            except UNREADABLE as error:
                raise BadRow(f"{column}: {type(error).__name__}: {error}") from None
    names = ", ".join(QUESTION_COLUMNS[:4])
    raise BadRow(f"none of its columns ({', '.join(row)}) is a question: name it {names} or messages")


def is_question(turn: dict | str) -> bool:
    return isinstance(turn, str) or turn["role"] == "user"


def labelled_turns(row: dict) -> tuple[list[tuple[str, str]], dict]:
    """(label, text) of every turn, for people to read, and the columns that hold none. Raises BadRow.

    The label is the message's role, the column of a text, or the number of one of K `responses`.
    """
    turns = []
    try:
        for column in TURN_COLUMNS:
            part = row.get(column)
            if isinstance(part, str):
                turns.append((column, part))
            for message in part if isinstance(part, list) else []:
                if isinstance(message, dict):
                    side = f"{column}: " if column in ("chosen", "rejected") else ""
                    turns.append((f"{side}{message.get('role')}", message_text(message)))
        responses = row.get("responses")
        for number, response in enumerate(responses if isinstance(responses, list) else [], 1):
            turns.append((f"response {number}", messages_text(response["completion"])))
    except UNREADABLE as error:
        raise BadRow(f"{type(error).__name__}: {error}") from None
    return turns, {key: value for key, value in row.items() if key not in (*TURN_COLUMNS, "responses")}


def answer_texts(row: dict) -> list[str]:
    """The texts that a row trains a model to write."""
    part = row.get("completion") or row.get("chosen") or row.get("messages") or ""
    if isinstance(part, str):
        return [part] if part else []
    return [message["content"] for message in part if message["role"] == "assistant" and message.get("content")]


def describe_row(row: dict, most: int = 80) -> str:
    """The beginning of a row's prompt, for messages to the user."""
    prompt, text = split_prompt(row)
    shown = prompt[-1]["content"] if isinstance(prompt, list) and prompt else prompt or text
    text = " ".join(str(shown).split())
    return repr(text if len(text) <= most else text[:most] + "...")


def prompt_key(row: dict) -> bytes:
    """Identifies a row's first question, whatever its spacing and case: rows that share it are never split."""
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
