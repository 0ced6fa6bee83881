"""Questions to OpenAI-compatible servers (vLLM, SGLang, `transformers serve`, a provider): many at once, tried again.

Several base URLs are replicas of one model: a question goes to another one when the first cannot answer. How many are
under way at a replica follows what it bears, as TCP's window does: fewer after each refusal, one more after each round
of answers, never over `concurrency`.
"""

import asyncio
import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Annotated

import openai
from pydantic import Field

from data_prep.sampling.replies import Unreadable, read_answer
from utils.config import UserError
from utils.files import say

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; doubled from one try to the next
LONGEST_WAIT = 600.0  # of what a server asks for
TRIED_AGAIN = (408, 409, 425, 429)  # and all from 500 on
DEAD = 6  # times as many failures without a word as one question is tried
OVERLOADED = (429, 502, 503, 529)  # the server's fault; of other failures the question may be the cause


class NoAnswer(Exception):
    """A question that stays without an answer, and why."""


class Refused(NoAnswer):
    """The server is there, and does not answer this question."""


@dataclass
class ServerConfig:
    """How servers are asked."""

    base_urls: Annotated[
        list[str],
        Field(description="OpenAI-compatible servers: [http://localhost:8000/v1, ...]; several are replicas."),
    ] = field(default_factory=list)
    api_key_variable: Annotated[
        str, Field(description="The environment variable that holds the API key, if one is needed.")
    ] = "OPENAI_API_KEY"
    concurrency: Annotated[int, Field(ge=1, le=4096, description="Requests in flight at each server, at most.")] = 32
    timeout: Annotated[float, Field(gt=0, description="Seconds after which a request is given up.")] = 600.0
    max_retries: Annotated[int, Field(ge=0, le=100, description="How often a failed request is sent again.")] = 6
    give_up_after: Annotated[
        int, Field(ge=1, description="Stop after this many requests in a row without an answer.")
    ] = 100
    extra_body: Annotated[
        dict,
        Field(
            description="More fields for each request body: {top_k: 20, min_p: 0.05}. null removes one that the "
            "server refuses: {seed: null}, {max_tokens: null, max_completion_tokens: 4096}."
        ),
    ] = field(default_factory=dict)


# Nothing in the output hangs on them, so they may differ when a run goes on.
FREE = ("base_urls", "api_key_variable", "concurrency", "timeout", "max_retries", "give_up_after")


@dataclass
class Replica:
    """One server, and how much it bears.

    Attributes:
        room: how many questions it may have at a time.
        busy: how many it has.
        free_at: the moment (time.monotonic) until which it is left alone.
        failures: refusals and silences since its last answer, those of one moment counted once.
    """

    url: str
    client: openai.AsyncOpenAI
    room: float
    busy: int = 0
    free_at: float = 0.0
    failures: int = 0

    def answered(self, concurrency: int) -> None:
        self.failures, self.room = 0, min(concurrency, self.room + 1 / self.room)

    def failed(self, asked_to_wait: float | None) -> bool:
        """It is overloaded, silent or away: half the room, and a pause that doubles from one failure to the next.
        Returns whether this is a failure of its own, and not of what was under way when it began."""
        now = time.monotonic()
        anew = self.free_at <= now
        if anew:
            self.room, self.failures = max(1.0, self.room / 2), self.failures + 1
        pause = asked_to_wait or min(PAUSE * 2 ** (self.failures - 1), LONGEST_PAUSE)
        self.free_at = max(self.free_at, now + pause * random.uniform(1.0, 1.1))
        return anew


class Servers:
    """The replicas that are asked.

    Args:
        answered: how many questions they have answered before, which shows that key and model are right.
    """

    def __init__(self, config: ServerConfig, model: str, answered: int = 0):
        key = os.environ.get(config.api_key_variable) or "none"  # the client wants one even where the server does not
        if not key.isascii():
            raise UserError(f"{config.api_key_variable}: the key in the environment holds letters that no key has")
        for url in config.base_urls:
            if not re.match(r"https?://[^/\s\[]|https?://\[[0-9a-fA-F:]+\]", url):
                raise UserError(f"base_urls: {url} is no address. Write it as http://localhost:8000/v1")
        self.config, self.model, self.answered, self.silent = config, model, answered, 0
        self.replicas = [
            Replica(
                url, openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=config.timeout),
                config.concurrency
            )
            for url in config.base_urls
        ]  # fmt: skip
        self.given_back = asyncio.Condition()
        self.failures, self.reason = 0, ""  # of all replicas, and why the last
        self.alive_at = 0  # how many there were when one last said anything

    async def take(self, turn: int) -> Replica:
        """The replica whose turn it is (all samples of a prompt at one, whose prefix cache then serves them), or
        another that has room, as soon as one has. Raises NoAnswer if all have been dead for long: those who wait need
        not find out each in their turn."""
        most = DEAD * (self.config.max_retries + 1) * len(self.replicas)
        order = [self.replicas[(turn + i) % len(self.replicas)] for i in range(len(self.replicas))]
        async with self.given_back:
            while True:
                if self.failures - self.alive_at >= most:
                    raise NoAnswer(f"{self.reason} (no server answers)")
                now = time.monotonic()
                for replica in order:
                    if replica.free_at <= now and replica.busy < int(replica.room):
                        replica.busy += 1
                        return replica
                pauses = [replica.free_at - now for replica in order if replica.free_at > now]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.given_back.wait(), min(pauses, default=None))

    async def give_back(self, replica: Replica) -> None:
        async with self.given_back:
            replica.busy -= 1
            self.given_back.notify_all()

    async def ask(self, number: int, body: dict) -> dict:
        """One chat completion: content, reasoning, tool_calls, finish_reason, prompt_tokens, completion_tokens.

        Args:
            number: of the prompt.
            body: messages and sampling settings, as the API names them; `extra_body` of the config is laid over them.

        Raises:
            NoAnswer: the server refuses the question, or gave no answer however often it was asked.
            UserError: the key or the model's name is wrong: no question will be answered.
        """
        reason, replica_failed, body = "", False, laid_over(body, self.config.extra_body)
        for tries in range(self.config.max_retries + 1):
            if reason and not replica_failed:  # by itself: others must not wait for what a server chokes on
                await asyncio.sleep(min(PAUSE * 2 ** (tries - 1), LONGEST_PAUSE) * random.uniform(1.0, 1.25))
            replica, replica_failed = await self.take(number + tries), False
            asked_to_wait = None
            try:
                answer = await asyncio.wait_for(self.try_once(replica, body), self.config.timeout)
                replica.answered(self.config.concurrency)
                self.answered += 1
                return answer
            except openai.APIStatusError as error:
                reason = f"{error.status_code}: {first_words(error)}"
                # Once something was answered, 403 and 404 say no to the question (moderation), not to key or name.
                if error.status_code == 401 or (error.status_code in (403, 404) and not self.answered):
                    raise UserError(refusal(replica, self.model, self.config, reason)) from None
                if error.status_code not in TRIED_AGAIN and error.status_code < 500:
                    raise Refused(reason) from None
                asked_to_wait = seconds_asked_for(error.response.headers)
                replica_failed = error.status_code in OVERLOADED or asked_to_wait is not None
            except (TimeoutError, openai.APITimeoutError):
                reason, replica_failed = f"no answer in {self.config.timeout:g} seconds", True
            except (openai.APIError, Unreadable) as error:  # no connection, half an answer, or garbage
                reason = f"{type(error).__name__}: {first_words(error)}"
                replica_failed = isinstance(error, openai.APIConnectionError)
            finally:
                if replica_failed:
                    self.failures, self.reason = self.failures + replica.failed(asked_to_wait), reason
                else:  # an answer, or at least a word
                    self.alive_at = self.failures
                await self.give_back(replica)
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
                    # Who refuses is there, if it ever answered.
                    self.silent = 0 if isinstance(error, Refused) and self.answered else self.silent + 1
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
        """Says which servers list other models only, or none; they are asked all the same: some answer to names that
        they do not list. Raises UserError for a key that is refused."""
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
                told = f"{', '.join(names[:5])}{others}"
                say("WARNING", f"{replica.url} does not list {self.model}, but {told}; asked all the same")


def laid_over(body: dict, extra: dict) -> dict:
    """A request with the config's `extra_body` over it; what is null there is taken away."""
    extra = body.get("extra_body", {}) | extra
    body = {key: value for key, value in body.items() if key not in {"extra_body", *extra}}
    return body | {"extra_body": {key: value for key, value in extra.items() if value is not None}}


def refusal(replica: Replica, model: str, config: ServerConfig, reason: str) -> str:
    if reason.startswith("404"):
        return f"base_urls: {replica.url} knows no {model}, or is no OpenAI-compatible API ({reason})"
    there = "is set" if os.environ.get(config.api_key_variable) else "is not set"
    return f"base_urls: {replica.url} refuses the key ({reason}). {config.api_key_variable} {there} in the environment"


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
