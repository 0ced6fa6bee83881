"""Questions to OpenAI-compatible servers (vLLM, SGLang, `transformers serve`, a provider): many at once, tried again.

Several base URLs are replicas of one model: a question goes to another one when the first cannot answer.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import openai

from utils.source import UserError
from utils.terminal import say

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; doubled from one try to the next
LONGEST_WAIT = 600.0  # of what a server asks for
TRIED_AGAIN = (408, 409, 425, 429)  # and all from 500 on


class NoAnswer(Exception):
    """A question that stays without an answer, and why."""


class Unreadable(Exception):
    """What came back is not an answer; asked again, it may be."""


@dataclass
class ServerConfig:
    """How servers are asked."""

    base_urls: list[str] = field(
        default_factory=list,
        metadata={"help": "OpenAI-compatible servers: [http://localhost:8000/v1, ...]; several are replicas."},
    )
    api_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "The environment variable that holds the key, if one is needed."}
    )
    concurrency: int = field(
        default=32, metadata={"help": "Questions under way at a time, for each server.", "range": (1, 4096)}
    )
    timeout: float = field(
        default=600.0, metadata={"help": "Seconds after which a try is given up.", "range": (1e-9, None)}
    )
    max_retries: int = field(
        default=6, metadata={"help": "How often a question is asked again when no answer comes.", "range": (0, 100)}
    )
    give_up_after: int = field(
        default=100,
        metadata={"help": "Questions in a row without an answer after which no more are asked.", "range": (1, None)},
    )
    extra_body: dict = field(
        default_factory=dict,
        metadata={"help": "More for each request's body, as a server takes it: {top_k: 20, min_p: 0.05}."},
    )


# Nothing in the output hangs on them, so they may differ when a run goes on.
FREE = ("base_urls", "api_key_variable", "concurrency", "timeout", "max_retries", "give_up_after")


@dataclass
class Replica:
    """One server. After a failure it is left alone until `free_at` (time.monotonic)."""

    url: str
    client: openai.AsyncOpenAI
    free_at: float = 0.0


class Servers:
    """The replicas that are asked."""

    def __init__(self, config: ServerConfig, model: str):
        key = os.environ.get(config.api_key_variable) or "none"  # the client wants one even where the server does not
        self.config, self.model, self.answers, self.silent = config, model, 0, 0
        self.replicas = [
            Replica(url, openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=config.timeout))
            for url in config.base_urls
        ]

    def choose(self, number: int, tries: int) -> Replica:
        """The replica whose turn it is (all samples of a prompt at one, whose prefix cache then serves them), or the
        one that is free first."""
        turn = number + tries
        order = [self.replicas[(turn + i) % len(self.replicas)] for i in range(len(self.replicas))]
        now = time.monotonic()
        return min(order, key=lambda replica: max(replica.free_at, now))

    async def ask(self, number: int, body: dict) -> dict:
        """One chat completion: content, reasoning, tool_calls, finish_reason, prompt_tokens, completion_tokens.

        Args:
            number: of the prompt.
            body: messages and sampling settings, as the API names them.

        Raises:
            NoAnswer: the server refuses the question, or gave no answer however often it was asked.
            UserError: the key or the model's name is wrong: no question will be answered.
        """
        reason = ""
        for tries in range(self.config.max_retries + 1):
            replica = self.choose(number, tries)
            if (wait := replica.free_at - time.monotonic()) > 0:
                await asyncio.sleep(wait + random.uniform(0, 0.1 * wait))
            pause = min(PAUSE * 2**tries, LONGEST_PAUSE)
            try:
                return await asyncio.wait_for(self.try_once(replica, body), self.config.timeout)
            except openai.APIStatusError as error:
                reason = f"{error.status_code}: {first_words(error)}"
                if error.status_code in (401, 403, 404):
                    raise UserError(refusal(replica, self.model, self.config, reason)) from None
                if error.status_code not in TRIED_AGAIN and error.status_code < 500:
                    raise NoAnswer(reason) from None
                pause = seconds_asked_for(error.response.headers) or pause
            except TimeoutError:
                reason = f"no answer in {self.config.timeout:g} seconds"
                pause = 0.0  # long enough was waited
            except (openai.APIError, Unreadable) as error:  # no connection, half an answer, or garbage
                reason = f"{type(error).__name__}: {first_words(error)}"
            pause *= random.uniform(1.0, 1.25)
            replica.free_at = max(replica.free_at, time.monotonic() + pause)
        raise NoAnswer(f"{reason} ({self.config.max_retries + 1} tries)")

    async def try_once(self, replica: Replica, body: dict) -> dict:
        raw = await replica.client.chat.completions.with_raw_response.create(model=self.model, **body)
        return read_answer(raw.text)

    async def ask_all(
        self, questions: Iterable, answer: Callable, keep: Callable[[object, dict], None]
    ) -> list[tuple[object, str]]:
        """Every question answered and kept, `concurrency` under way for each server.

        Args:
            questions: whatever `answer` takes; drawn as they are needed.
            answer: `async (servers, question) -> result`, which may raise NoAnswer.
            keep: `(question, result)`, called as results come.

        Returns:
            (question, why) of those without an answer.
        """
        waiting, failed = iter(questions), []

        async def work() -> None:
            for question in waiting:
                if self.silent >= self.config.give_up_after:
                    failed.append((question, f"not asked: {self.silent} questions in a row had no answer"))
                    continue
                try:
                    result = await answer(self, question)
                except NoAnswer as error:
                    self.silent += 1
                    failed.append((question, str(error)))
                else:
                    self.silent = 0
                    keep(question, result)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.config.concurrency * len(self.replicas)):
                    group.create_task(work())
        except BaseExceptionGroup as group:
            raise next((error for error in group.exceptions if isinstance(error, UserError)), group) from None
        finally:
            for replica in self.replicas:
                await replica.client.close()
        return failed

    async def warn_of_other_models(self) -> None:
        """Raises UserError if a server that answers has other models only; a silent one is asked all the same."""
        for replica in self.replicas:
            try:
                listed = await asyncio.wait_for(replica.client.models.list(), min(10.0, self.config.timeout))
                names = [model.id for model in listed.data]
            except openai.AuthenticationError as error:
                raise UserError(refusal(replica, self.model, self.config, f"401: {first_words(error)}")) from None
            except (openai.APIError, TimeoutError, AttributeError, TypeError, ValueError) as error:
                say("WARNING", f"{replica.url} does not list its models ({first_words(error)}); asked all the same")
                continue
            if names and self.model not in names:
                others = f" and {len(names) - 5} more" if len(names) > 5 else ""
                raise UserError(
                    f"model_name_or_path: {replica.url} has no {self.model}. It has: {', '.join(names[:5])}{others}"
                )


def refusal(replica: Replica, model: str, config: ServerConfig, reason: str) -> str:
    if reason.startswith("404"):
        return f"base_urls: {replica.url} knows no {model}, or is no OpenAI-compatible API ({reason})"
    there = "is set" if os.environ.get(config.api_key_variable) else "is not set"
    return f"base_urls: {replica.url} refuses the key ({reason}). {config.api_key_variable} {there} in the environment"


def read_answer(text: str) -> dict:
    """What a chat completion's body says. Raises Unreadable if it is none."""
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        content = message.get("content")
        reasoning = message.get("reasoning_content") or message.get("reasoning")  # vLLM has had both names
        calls = [
            {
                "type": "function",
                "id": str(call["id"]),
                "function": {"name": call["function"]["name"], "arguments": arguments_of(call["function"])},
            }
            for call in message.get("tool_calls") or []
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Unreadable(f"not a chat completion: {text[:80]!r}") from None
    if not all(isinstance(part, (str, type(None))) for part in (content, reasoning)):
        raise Unreadable(f"content is no text: {text[:80]!r}")
    if content is None and not reasoning and not calls:  # an empty text is what a model may say
        raise Unreadable("an answer without content")
    return {
        "content": content or "", "reasoning": reasoning or "", "tool_calls": calls,
        "finish_reason": choice.get("finish_reason"),
        "prompt_tokens": usage.get("prompt_tokens"), "completion_tokens": usage.get("completion_tokens"),
    }  # fmt: skip


def arguments_of(function: dict) -> dict | str:
    """A call's arguments as a mapping; as they were written where that is no JSON mapping: a filter drops those."""
    written = function["arguments"]
    try:
        read = json.loads(written) if isinstance(written, str) else written
    except ValueError:
        return written
    return read if isinstance(read, dict) else written


def seconds_asked_for(headers) -> float | None:
    """What a server that limits rates asks to wait: its retry-after-ms, or retry-after in seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except KeyError:
            continue
        except ValueError:
            try:
                seconds = parsedate_to_datetime(headers[name]).timestamp() - time.time()
            except ValueError:  # nor a date
                continue
        return min(max(0.0, seconds), LONGEST_WAIT)
    return None


def first_words(error: BaseException) -> str:
    text = error.response.text if isinstance(error, openai.APIStatusError) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
