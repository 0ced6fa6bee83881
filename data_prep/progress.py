"""How far a script is: a bar on a terminal, a line now and then elsewhere."""

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from utils.terminal import console, say

EVERY = 10.0  # seconds between two lines


class Ticker:
    """Counts what is done of a known number of things."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = ""):
        self.what, self.total, self.done, self.first, self.unit = what, total, done, done, unit
        self.began = self.told = time.monotonic()
        columns = (TextColumn(f"[bold]{what:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Ticker":
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def tick(self, count: int = 1) -> None:
        self.done += count
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        elif (now := time.monotonic()) - self.told > EVERY and self.done > self.first:
            self.told, rate = now, (self.done - self.first) / (now - self.began)
            left = (self.total - self.done) / rate
            say(self.what, f"{self.done:,} of {self.total:,} {self.unit}  {rate:,.0f} a second  {left:,.0f} s left")
