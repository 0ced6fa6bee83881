"""What a run says on the terminal: one line a phase, by the main process alone."""

import os
import sys

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def say(phase: str, text: str) -> None:
    if is_main_process():
        console.print(f"[bold]{phase:<10}[/bold]", end="")
        console.print(text, markup=False)
