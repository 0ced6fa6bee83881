"""An LLM judge: a score for each response by a rubric, or verdicts on pairs, each pair shown in both orders."""

import asyncio
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data_prep.files.journal import Journal
from data_prep.sampling.server import Refused, ServerConfig, Servers
from utils.files import Ticker

RUBRIC = "Is it right, does it answer what was asked, is it clear, and no longer than it needs to be?"
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

Reason briefly; the order says nothing. Then end with a line of its own: Verdict: A, Verdict: B or Verdict: tie."""
FORMS = {
    "score": re.compile(r"score\W{0,9}(?:\\boxed\{)?(10|[1-9])\b(?![.,][0-9])", re.I),
    "pairs": re.compile(r"verdict\W{0,9}(?:response )?(a|b|tie)\b", re.I),
}


@dataclass
class JudgeConfig(ServerConfig):
    """How the judge is asked, with `score_funcs: [judge]`."""

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
    places: list[tuple[int, int]],
    questions: list[tuple[int, int, int]],
    settings: JudgeConfig,
    journal: Journal,
) -> tuple[list[float | None], list[str]]:
    """A score of each response, 0 to 1, or None; and why there is none. What was judged is in the journal, and not
    asked again.

    A pair whose verdict turns with the order is a tie: the judge saw the place, not the response.
    """

    async def answer(servers: Servers, number: int) -> dict:
        return {"verdict": await verdict(servers, settings, rows, questions[number], number)}

    def keep(number: int, found: dict) -> None:
        journal.add([{"request": number} | found])
        ticker.tick()

    async def run() -> list:
        servers = Servers(settings, settings.judge_model, len(questions) - len(missing))
        await servers.warn_of_other_models()
        return await servers.ask_all(missing, answer, keep)

    missing, failed = np.flatnonzero(~journal.answered).tolist(), []
    if missing:  # else no server is needed
        with Ticker("judge", len(questions), len(questions) - len(missing)) as ticker:
            failed = asyncio.run(run())
    found = [journal.get(number) for number in range(len(questions))]
    scores = tally(questions, [answer["verdict"] if answer else None for answer in found], places, settings.judge_mode)
    return scores, [why for _, why in failed]


def make_questions(rows: list[dict], places: list[tuple[int, int]], mode: str) -> list[tuple[int, int, int]]:
    """(row, response, other response), the other being itself where each is scored alone."""
    if mode == "score":
        return [(i, k, k) for i, k in places]
    return [(i, *two) for i, row in enumerate(rows) for two in itertools.permutations(range(len(row["responses"])), 2)]


async def verdict(servers: Servers, settings: JudgeConfig, rows: list[dict], question: tuple, number: int) -> str:
    """What the judge says: "1" to "10", or "a", "b", "tie". Raises Refused if it ends in no verdict, asked thrice."""
    i, first, second = question
    row, form = rows[i], SCORE if settings.judge_mode == "score" else PAIR
    gold = f"\nA right answer, for comparison:\n{row['answer']}\n" if row.get("answer") else ""
    text = form.format(
        rubric=settings.judge_rubric, question=as_text(row["prompt"]), reference=gold,
        a=as_text(row["responses"][first]["completion"]), b=as_text(row["responses"][second]["completion"]),
    )  # fmt: skip
    for attempt in range(3):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": settings.judge_max_tokens}
        body |= {"temperature": 0.0 if attempt == 0 else 0.7, "seed": number + attempt}
        said = (await servers.ask(number, body))["content"]
        if found := FORMS[settings.judge_mode].findall(said.rpartition("</think>")[2]):
            return found[-1].lower()
    raise Refused(f"the judge ends in no verdict: {said[-80:]!r}")


def as_text(messages: list[dict]) -> str:
    """A dialogue for a judge: one message as it is, several by their roles."""
    texts = [m.get("content") or str(m.get("tool_calls") or "") for m in messages]
    if len(messages) == 1:
        return texts[0]
    return "\n".join(f"[{m['role']}] {text}" for m, text in zip(messages, texts, strict=True))


def tally(
    questions: list[tuple], verdicts: list[str | None], places: list[tuple[int, int]], mode: str
) -> list[float | None]:
    """The score of each response from the verdicts; None where one of its verdicts is missing."""
    if mode == "score":
        return [(int(said) - 1) / 9 if said else None for said in verdicts]
    points: dict[tuple[int, int], list[float | None]] = defaultdict(list)
    said = dict(zip(questions, verdicts, strict=True))
    for (i, a, b), one in said.items():
        other = said[i, b, a]
        if one is None or other is None:
            points[i, a].append(None)
            continue
        wins = (one == "a") + (other == "b")  # shown first, and shown second
        loses = (one == "b") + (other == "a")
        points[i, a].append(1.0 if wins == 2 else 0.0 if loses == 2 else 0.5)
    means = {place: None if None in found else sum(found) / len(found) for place, found in points.items()}
    return [means.get(place, 0.5) for place in places]  # a single response has nothing to win against
