"""An LLM judge: a score for each response by a rubric, or verdicts on pairs, each pair shown in both orders."""

import asyncio
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data_prep.files import Journal
from data_prep.sampling import Failed, Refused, ServerConfig, Servers
from utils.data import message_text
from utils.files import Ticker

Places = list[tuple[int, int]]  # (row, response) each
RUBRIC = "Is it right, does it answer the question, is it clear, and no longer than it needs to be?"
SCORE = """Judge a response to a question by this rubric:
{rubric}

Question:
{question}
{reference}
Response:
{a}

Reason briefly. Then end with a line of its own: Score: N, from 1 (useless) to 10 (it could not be better)."""
PAIR = """Compare two responses to a question by this rubric:
{rubric}

Question:
{question}
{reference}
Response A:
{a}

Response B:
{b}

Reason briefly; the order means nothing. Then end with a line of its own: Verdict: A, Verdict: B or Verdict: tie."""
VERDICTS = {
    "score": re.compile(r"score\W{0,9}(?:\\boxed\{)?(10|[1-9])\b(?![.,][0-9])", re.I),
    "pairs": re.compile(r"verdict\W{0,9}(?:response )?(a|b|tie)\b", re.I),
}


@dataclass
class JudgeConfig(ServerConfig):
    """How the judge is called, with `score_funcs: [judge]`."""

    judge_model: Annotated[str | None, Field(description="The judge's name, on the servers base_urls.")] = None
    judge_mode: Annotated[
        Literal["score", "pairs"],
        Field(
            description="score: each response by itself, from 1 to 10; pairs: every two responses to a prompt, in "
            "both orders, the score being the share that a response wins."
        ),
    ] = "score"
    judge_rubric: Annotated[str, Field(description="What a good response is, in words.")] = RUBRIC
    judge_max_tokens: Annotated[int, Field(ge=1, description="Tokens of a verdict, at most.")] = 512


def judge_all(
    rows: list[dict],
    places: Places,
    questions: list[tuple[int, int, int]],
    config: JudgeConfig,
    journal: Journal,
) -> tuple[list[float | None], list[str]]:
    """A score of each response, 0 to 1, or None; and why verdicts are missing. Those in the journal are not requested
    again.

    A pair whose verdict changes with the order is a tie: the judge preferred a position, not a response.
    """

    async def answer(servers: Servers, number: int) -> dict:
        return {"verdict": await request_verdict(servers, config, rows, questions[number], number)}

    def keep(number: int, result: dict) -> None:
        journal.add([{"request": number} | result])
        ticker.tick()

    async def run() -> Failed:
        assert config.judge_model, "best_of_k.py checks that there is one"
        servers = Servers(config, config.judge_model, len(questions) - len(missing))
        await servers.check_models()
        return await servers.ask_all(missing, answer, keep)

    missing, failed = np.flatnonzero(~journal.answered).tolist(), []
    if missing:  # else no server is needed
        with Ticker("judge", len(questions), len(questions) - len(missing)) as ticker:
            failed = asyncio.run(run())
    results = [journal.get(number) for number in range(len(questions))]
    verdicts = [result["verdict"] if result else None for result in results]
    return tally(questions, verdicts, places, config.judge_mode), [reason for _, reason in failed]


def make_questions(rows: list[dict], places: Places, mode: str) -> list[tuple[int, int, int]]:
    """(row, response, other response); where each is scored alone, the other is the response itself."""
    if mode == "score":
        return [(i, k, k) for i, k in places]
    return [(i, *two) for i, row in enumerate(rows) for two in itertools.permutations(range(len(row["responses"])), 2)]


async def request_verdict(
    servers: Servers, config: JudgeConfig, rows: list[dict], question: tuple[int, int, int], number: int
) -> str:
    """The judge's "1" to "10", or "a", "b", "tie". Raises Refused if three replies have none."""
    i, first, second = question
    row, template = rows[i], SCORE if config.judge_mode == "score" else PAIR
    reference = f"\nA right answer, for comparison:\n{row['answer']}\n" if row.get("answer") else ""
    text = template.format(
        rubric=config.judge_rubric, question=transcript(row["prompt"]), reference=reference,
        a=transcript(row["responses"][first]["completion"]), b=transcript(row["responses"][second]["completion"]),
    )  # fmt: skip
    for attempt in range(3):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": config.judge_max_tokens}
        body |= {"temperature": 0.0 if attempt == 0 else 0.7, "seed": number + attempt}
        reply = (await servers.ask(number, body))["content"]
        if found := VERDICTS[config.judge_mode].findall(reply.rpartition("</think>")[2]):
            return found[-1].lower()
    raise Refused(f"the judge's reply has no verdict: {reply[-80:]!r}")


def transcript(messages: list[dict]) -> str:
    """A dialogue for a judge: one message as it is, several with their roles."""
    if len(messages) == 1:
        return message_text(messages[0])
    return "\n".join(f"[{message['role']}] {message_text(message)}" for message in messages)


def tally(questions: list[tuple], verdicts: list[str | None], places: Places, mode: str) -> list[float | None]:
    """The score of each response from the verdicts; None where one of its verdicts is missing."""
    if mode == "score":
        return [(int(verdict) - 1) / 9 if verdict else None for verdict in verdicts]
    points: dict[tuple[int, int], list[float]] = defaultdict(list)
    unknown: set[tuple[int, int]] = set()
    by_question = dict(zip(questions, verdicts, strict=True))
    for (i, a, b), verdict in by_question.items():
        reverse = by_question[i, b, a]
        wins = (verdict == "a") + (reverse == "b")  # shown first, and shown second
        losses = (verdict == "b") + (reverse == "a")
        points[i, a].append(1.0 if wins == 2 else 0.0 if losses == 2 else 0.5)
        if verdict is None or reverse is None:
            unknown.add((i, a))
    means = {place: None if place in unknown else sum(found) / len(found) for place, found in points.items()}
    return [means.get(place, 0.5) for place in places]  # a single response has nothing to win against
