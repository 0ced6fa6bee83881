"""What a run writes and prints: files whole or not at all and without keys, one line a phase, progress."""

import os
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECRET = re.compile(r"\b(hf_|sk-)[\w-]{8,}")  # what keys of the hub and of providers look like


def without_keys(text: str) -> str:
    return SECRET.sub(r"\1***", text)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old one or the new one, never half. Keys are blotted out."""
    part = path.with_name(path.name + ".part")
    part.write_text(without_keys(text), encoding="utf-8", errors="backslashreplace")  # half a surrogate
    os.replace(part, path)


def show(path: Path) -> str:
    """A path as short as it can be written from here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


# Control characters, except tab and newline, and those that reverse the direction of text -> Python's escapes.
ESCAPES = {
    code: repr(chr(code))[1:-1]
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\t\n"
}

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def visible(value: object) -> object:
    """Text with its control characters shown as escapes, so that no terminal or browser obeys them."""
    return value.translate(ESCAPES) if isinstance(value, str) else value


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def say(phase: str, text: str) -> None:
    if is_main_process():
        console.print(f"[bold]{phase:<10}[/bold]", end="")
        console.print(visible(text), markup=False)


EVERY = 10.0  # seconds between two lines


class Ticker:
    """Counts what is done of a known number of things."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = ""):
        self.what, self.total, self.done, self.first, self.unit = what, total, done, done, unit
        self.began = self.reported = time.monotonic()
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
        elif (now := time.monotonic()) - self.reported > EVERY and self.done > self.first:
            self.reported, rate = now, (self.done - self.first) / (now - self.began)
            left = (self.total - self.done) / rate
            say(self.what, f"{self.done:,} of {self.total:,} {self.unit}  {rate:,.0f} a second  {left:,.0f} s left")
