"""Files written whole or not at all, without keys in them."""

import os
import re
from pathlib import Path

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
