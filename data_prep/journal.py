"""Answers kept as they come, so that a killed run goes on where it was and asks for nothing twice."""

import json
import os
from pathlib import Path

import numpy as np

from data_prep.jsonl import differences
from utils.files import show
from utils.source import UserError


class Journal:
    """A file beside the output: what is asked, then one line for each lot of answers.

    A lot is written with one call and counts if its line is whole. In memory, a request costs 12 bytes.

    Attributes:
        answered: for each request by number, whether its answer is there.
    """

    def __init__(self, output: str | Path, asked: dict, requests: int, *, start_over: bool):
        """Opens the journal of an output, or begins it. Raises UserError if it holds answers to other questions."""
        self.path = Path(output).with_suffix(".journal.jsonl")
        self.places = np.full(requests, -1, dtype=np.int64)  # where the line of a request begins
        self.ranks = np.zeros(requests, dtype=np.int32)  # and which of its answers it is
        if start_over:
            self.path.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+b")
        end = self.read(asked)
        self.file.truncate(end)  # a line that a kill cut short
        if end == 0:
            self.append(asked)

    def read(self, asked: dict) -> int:
        """Find the answers that are there. Returns where the last whole line ends."""
        self.file.seek(0)
        end = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            if end == 0 and (before := json.loads(line)) != json.loads(json.dumps(asked)):
                raise UserError(
                    f"{show(self.path)} holds the answers of an unfinished run that asked otherwise. What changed "
                    f"since:{differences(before, asked)}\nName another output, or write --start_over to drop them"
                )
            if end > 0:
                self.note(json.loads(line), end)
            end += len(line)
        return end

    def note(self, lot: list[dict], place: int) -> None:
        for rank, answer in enumerate(lot):
            self.places[answer["request"]], self.ranks[answer["request"]] = place, rank

    @property
    def answered(self) -> np.ndarray:
        return self.places >= 0

    def append(self, lines: object) -> int:
        place = self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps(lines, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self.file.flush()  # into the kernel, which a killed process does not take with it
        return place

    def add(self, lot: list[dict]) -> None:
        """Keep a lot of answers, each with its number as `request`."""
        self.note(lot, self.append(lot))

    def get(self, request: int) -> dict | None:
        """The answer to a request, or None."""
        if self.places[request] < 0:
            return None
        self.file.seek(self.places[request])
        return json.loads(self.file.readline())[self.ranks[request]]

    def close(self, *, remove: bool) -> None:
        """`remove` when the output holds everything; else the same command goes on from here."""
        self.file.close()
        if remove:
            self.path.unlink()
