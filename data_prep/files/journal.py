"""Answers kept as they come, so that a killed run goes on where it was and asks for nothing twice."""

import fcntl
import json
import os
from pathlib import Path

import numpy as np

from data_prep.files.jsonl import as_written, differences
from utils.config import UserError
from utils.files import show


class Journal:
    """A file beside the output: what is asked, then one line for each lot of answers.

    A lot is written with one call and counts if its line is whole. In memory, a request costs 12 bytes. While it is
    open, no second process may write it.

    Attributes:
        answered: for each request by number, whether its answer is there.
    """

    def __init__(self, output: str | Path, asked: dict, requests: int, *, start_over: bool):
        """Opens the journal of an output, or begins it. Raises UserError if it holds answers to other questions."""
        self.path = Path(output).with_suffix(".journal.jsonl")
        self.places = np.full(requests, -1, dtype=np.int64)  # where the line of a request begins
        self.ranks = np.zeros(requests, dtype=np.int32)  # and which of its answers it is
        self.last: tuple[int, list[dict]] = (-1, [])  # the lot read last, and where it begins
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+b")
        except OSError as error:
            raise UserError(f"{show(self.path)}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{show(self.path)} is being written by another process. Wait for it, or end it") from None
        except OSError:  # a file system without locks
            pass
        if start_over:
            self.file.truncate(0)
        end = self.read(asked)
        self.file.truncate(end)  # a line that a kill cut short
        if end == 0:
            self.append(as_written(asked))

    def read(self, asked: dict) -> int:
        """Find the answers that are there. Returns where the last whole line ends."""
        self.file.seek(0)
        end = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            if end == 0 and (before := json.loads(line)) != as_written(asked):
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
        if self.last[0] != self.places[request]:
            self.file.seek(self.places[request])
            self.last = (self.places[request], json.loads(self.file.readline()))
        return self.last[1][self.ranks[request]]

    def close(self, *, remove: bool) -> None:
        """`remove` when the output holds everything; else the same command goes on from here."""
        self.file.close()
        if remove:
            self.path.unlink()
