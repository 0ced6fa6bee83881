"""Concurrent requests, with retries, to OpenAI-compatible servers (vLLM, SGLang, `transformers serve`, a provider).

Several base URLs are replicas of one model: a request goes to another one when the first cannot answer. The number in
flight at a replica follows its load, as TCP's window does: half as many after each failure, one more after each round
of answers, never over `concurrency`.
"""

import asyncio
import contextlib
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Annotated

import openai
from pydantic import Field

from data_prep.sampling.replies import Unreadable, read_answer
from utils.config import UserError
from utils.files import say

PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds; doubled from one try to the next
MOST_DOUBLED = 10  # failures in a row; LONGEST_PAUSE is reached before
LONGEST_WAIT = 600.0  # seconds, whatever a server's Retry-After is
RETRIED = (408, 409, 425, 429)  # and all from 500 on
DEAD = 6  # times as many failures in a row, without any reply, as a request has tries
OVERLOADED = (429, 502, 503, 529)  # the server's fault; other failures may be caused by the request

Failed = list[tuple[int, str]]  # (request, reason) of those without an answer


class NoAnswer(Exception):
    """Why a request stays without an answer."""


class Refused(NoAnswer):
    """The server is up, but does not answer this request."""


@dataclass
class ServerConfig:
    """How the servers are called."""

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


# The output does not depend on them, so they may change when a run resumes.
FREE = ("base_urls", "api_key_variable", "concurrency", "timeout", "max_retries", "give_up_after")


@dataclass
class Replica:
    """One server and its load.

    Attributes:
        room: how many requests it may have in flight.
        busy: how many it has.
        free_at: when (time.monotonic) it may be sent the next.
        failures: since its last answer; those of requests that were in flight together count once.
    """

    url: str
    client: openai.AsyncOpenAI
    room: float
    busy: int = 0
    free_at: float = 0.0
    failures: int = 0

    def answered(self, concurrency: int) -> None:
        self.failures, self.room = 0, min(concurrency, self.room + 1 / self.room)

    def failed(self, retry_after: float | None) -> bool:
        """It is overloaded, silent or away: half the room, and a pause that doubles from one failure to the next.
        Returns whether this is a new failure, and not that of requests that were in flight when it began."""
        now = time.monotonic()
        is_new = self.free_at <= now
        if is_new:
            self.room, self.failures = max(1.0, self.room / 2), self.failures + 1
        doubled = min(self.failures, MOST_DOUBLED) - 1  # a replica may be away for days
        pause = retry_after or min(PAUSE * 2**doubled, LONGEST_PAUSE)
        self.free_at = max(self.free_at, now + pause * random.uniform(1.0, 1.1))
        return is_new


class Servers:
    """The replicas of one model.

    Args:
        answered: how many requests they have answered before, which shows that key and model are right.
    """

    def __init__(self, config: ServerConfig, model: str, answered: int = 0):
        key = os.environ.get(config.api_key_variable) or "none"  # the client needs one even where the server does not
        if not key.isascii():
            raise UserError(f"{config.api_key_variable}: the key in the environment has characters that no key has")
        for url in config.base_urls:
            if not re.match(r"https?://[^/\s\[]|https?://\[[0-9a-fA-F:]+\]", url):
                raise UserError(f"base_urls: {url} is not an address; for example http://localhost:8000/v1")
        self.config, self.model, self.answered, self.silent = config, model, answered, 0
        self.replicas = [
            Replica(
                url, openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=config.timeout),
                config.concurrency
            )
            for url in config.base_urls
        ]  # fmt: skip
        self.given_back = asyncio.Condition()
        self.failures, self.reason = 0, ""  # of all replicas, and the reason of the last
        self.alive_at = 0  # how many failures there had been at the last reply of any kind

    async def take(self, turn: int) -> Replica:
        """The replica whose turn it is (all samples of a prompt at one, for its prefix cache), or another, as soon as
        one has room. Raises NoAnswer if all have been dead for long, so that not every waiting request has to find
        out by itself."""
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
            NoAnswer: the server refuses the request, or no try got an answer.
            UserError: the key or the model's name is wrong: no request will be answered.
        """
        reason, replica_failed, body = "", False, merge_bodies(body, self.config.extra_body)
        for tries in range(self.config.max_retries + 1):
            if reason and not replica_failed:  # only this request waits: the server may handle others
                await asyncio.sleep(min(PAUSE * 2 ** (tries - 1), LONGEST_PAUSE) * random.uniform(1.0, 1.25))
            replica, replica_failed = await self.take(number + tries), False
            retry_after = None
            try:
                answer = await asyncio.wait_for(self.try_once(replica, body), self.config.timeout)
                replica.answered(self.config.concurrency)
                self.answered += 1
                return answer
            except openai.APIStatusError as error:
                reason = f"{error.status_code}: {short_message(error)}"
                # After the first answer, 403 and 404 refuse the request (moderation), not the key or the name.
                if error.status_code == 401 or (error.status_code in (403, 404) and not self.answered):
                    raise UserError(refusal(replica, self.model, self.config, reason)) from None
                if error.status_code not in RETRIED and error.status_code < 500:
                    raise Refused(reason) from None
                retry_after = read_retry_after(error.response.headers)
                replica_failed = error.status_code in OVERLOADED or retry_after is not None
            except (TimeoutError, openai.APITimeoutError):
                reason, replica_failed = f"no answer in {self.config.timeout:g} seconds", True
            except (openai.APIError, Unreadable) as error:  # no connection, half an answer, or garbage
                reason = f"{type(error).__name__}: {short_message(error)}"
                replica_failed = isinstance(error, openai.APIConnectionError)
            finally:
                if replica_failed:
                    self.failures, self.reason = self.failures + replica.failed(retry_after), reason
                else:  # it replied
                    self.alive_at = self.failures
                await self.give_back(replica)
        raise NoAnswer(f"{reason} ({self.config.max_retries + 1} tries)")

    async def try_once(self, replica: Replica, body: dict) -> dict:
        raw = await replica.client.chat.completions.with_raw_response.create(model=self.model, **body)
        return read_answer(raw.text)

    async def ask_all(
        self,
        requests: Iterable[int],
        answer: Callable[["Servers", int], Awaitable[dict]],
        keep: Callable[[int, dict], None],
    ) -> Failed:
        """Has every request answered and kept, `concurrency` in flight for each server.

        Args:
            requests: numbers of requests; consumed as needed.
            answer: `async (servers, request) -> result`, which may raise NoAnswer.
            keep: `(request, result)`, called as results come.

        Returns:
            (request, reason) of those without an answer.
        """
        waiting = iter(requests)
        failed: Failed = []

        async def work() -> None:
            for request in waiting:
                if self.silent >= self.config.give_up_after:
                    failed.append((request, f"not sent: {self.silent} requests in a row had no answer"))
                    continue
                try:
                    result = await answer(self, request)
                except NoAnswer as error:
                    # A server that refuses is up, if it ever answered.
                    self.silent = 0 if isinstance(error, Refused) and self.answered else self.silent + 1
                    failed.append((request, str(error)))
                else:
                    self.silent = 0
                    keep(request, result)

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

    async def check_models(self) -> None:
        """Warns of servers that do not list the model. They are used all the same: some answer to names that they do
        not list. Raises UserError for a key that is refused."""
        for replica in self.replicas:
            try:
                listed = await asyncio.wait_for(replica.client.models.list(), min(10.0, self.config.timeout))
                names = [model.id for model in listed.data]
            except openai.AuthenticationError as error:
                raise UserError(refusal(replica, self.model, self.config, f"401: {short_message(error)}")) from None
            except (openai.APIError, TimeoutError, AttributeError, TypeError, ValueError) as error:
                say("WARNING", f"{replica.url} does not list its models ({short_message(error)}); used all the same")
                continue
            if names and self.model not in names:
                others = f" and {len(names) - 5} more" if len(names) > 5 else ""
                listed = f"{', '.join(names[:5])}{others}"
                say("WARNING", f"{replica.url} does not list {self.model}, but {listed}; used all the same")


def merge_bodies(body: dict, extra: dict) -> dict:
    """A request's body with the config's `extra_body` over it; null there removes a field."""
    extra = body.get("extra_body", {}) | extra
    body = {key: value for key, value in body.items() if key not in {"extra_body", *extra}}
    return body | {"extra_body": {key: value for key, value in extra.items() if value is not None}}


def refusal(replica: Replica, model: str, config: ServerConfig, reason: str) -> str:
    if reason.startswith("404"):
        return f"base_urls: {replica.url} does not know {model}, or is not an OpenAI-compatible API ({reason})"
    state = "is set" if os.environ.get(config.api_key_variable) else "is not set"
    return f"base_urls: {replica.url} refuses the key ({reason}). {config.api_key_variable} {state} in the environment"


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """How long a rate-limiting server asks to wait, in seconds: retry-after-ms, or retry-after (seconds or a date)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except KeyError:
            continue
        except ValueError:
            try:
                seconds = parsedate_to_datetime(headers[name]).timestamp() - time.time()
            except ValueError:  # not a date either
                continue
        return min(max(0.0, seconds), LONGEST_WAIT)
    return None


def short_message(error: BaseException) -> str:
    text = error.response.text if isinstance(error, openai.APIStatusError) else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
