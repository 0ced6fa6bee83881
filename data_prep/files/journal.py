"""Results kept as they come, so that a killed run resumes where it was and requests nothing twice."""

import fcntl
import json
import os
from pathlib import Path

import numpy as np

from data_prep.files.jsonl import as_written
from utils.config import UserError, earlier_state
from utils.files import show


class Journal:
    """A file beside the output: a line of settings, then one line for each batch of results.

    A batch is written with one call and counts if its line is whole. In memory, a request costs 12 bytes. While it is
    open, no second process can write it.

    Attributes:
        answered: (requests,) whether each has its result.
    """

    def __init__(self, output: str | Path, settings: dict, requests: int, *, start_over: bool):
        """Opens or creates the journal of an output. Raises UserError if it holds the results of other settings."""
        self.path = Path(output).with_suffix(".journal.jsonl")
        self.places: np.ndarray = np.full(requests, -1, dtype=np.int64)  # where the line of a request begins
        self.ranks: np.ndarray = np.zeros(requests, dtype=np.int32)  # and which of its results it is
        self.last: tuple[int, list[dict]] = (-1, [])  # where the batch that was read last begins, and its results
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+b")
        except OSError as error:
            raise UserError(f"{show(self.path)}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{show(self.path)} is being written by another process. Wait for it, or stop it"
            ) from None
        except OSError:  # a file system without locks
            pass
        if start_over:
            self.file.truncate(0)
        end = self.read(settings)
        self.file.truncate(end)  # a line that a kill cut short
        if end == 0:
            self.append(as_written(settings))

    def read(self, settings: dict) -> int:
        """Indexes the results. Returns where the last whole line ends."""
        self.file.seek(0)
        end = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            if end == 0:
                earlier_state(
                    json.loads(line),
                    as_written(settings),
                    finished=False,
                    refusal=f"{show(self.path)} holds the results of an unfinished run with other settings",
                    fix="Name another output, or drop them with --start_over",
                )
            if end > 0:
                self.index(json.loads(line), end)
            end += len(line)
        return end

    def index(self, batch: list[dict], place: int) -> None:
        for rank, result in enumerate(batch):
            self.places[result["request"]], self.ranks[result["request"]] = place, rank

    @property
    def answered(self) -> np.ndarray:
        return self.places >= 0

    def append(self, value: object) -> int:
        place = self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self.file.flush()  # into the kernel, where it survives the process
        return place

    def add(self, batch: list[dict]) -> None:
        """Keep a batch of results, each with the number of its `request`."""
        self.index(batch, self.append(batch))

    def get(self, request: int) -> dict | None:
        """The result of a request, or None."""
        return self[request] if self.places[request] >= 0 else None

    def __getitem__(self, request: int) -> dict:
        """The result of a request that has one."""
        place = int(self.places[request])
        if self.last[0] != place:
            self.file.seek(place)
            self.last = (place, json.loads(self.file.readline()))
        return self.last[1][self.ranks[request]]

    def close(self, *, remove: bool) -> None:
        """`remove` when the output holds everything; else the same command resumes from here."""
        self.file.close()
        if remove:
            self.path.unlink()
