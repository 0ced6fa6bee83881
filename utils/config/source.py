"""The config as written: values by key, and the file and line of each."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class UserError(Exception):
    """A mistake of the user's: shown as one message, without a traceback, exit code 2."""


@dataclass
class Source:
    """A config as written: values by key, and where each one is set (`configs/x.yaml:12` or `command line`)."""

    path: Path
    values: dict
    where: dict[str, str]
    mistakes: list[str]

    @property
    def name(self) -> str:
        return self.path.stem

    def mistake(self, key: str, text: str) -> None:
        self.mistakes.append(f"{self.where[key]}: {key}: {text}")


class FlagText(str):
    """A value from the command line: text, until it is read as its field's type."""


def local_path(source: Source, key: str, name: str) -> Path | None:
    """The local file or folder that a value names, or None (then it is a hub name).

    A relative path starts at the repository's root in the YAML, and at the current folder in a flag.
    """
    if "\n" in name or "{" in name or len(name) > 255:  # a chat template written out
        return None
    base = Path.cwd() if source.where.get(key) == "command line" else ROOT
    path = base / Path(name).expanduser()
    return path if path.exists() else None
