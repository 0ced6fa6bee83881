"""JSON lines in, JSON lines out, and a manifest beside each output: what was asked, counted, and made of what."""

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from utils.config import Source, UserError
from utils.files import say, show, without_keys, write_atomically


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a JSONL file, one at a time. Raises UserError naming the line that is no JSON object."""
    path = Path(path)
    with open_input(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                raise UserError(f"{path.name}:{number}: is not JSON: {error}. Write one JSON object a line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path.name}:{number}: is not a JSON object. Write one JSON object a line")
            yield row


def open_input(path: Path):
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be read: {error.strerror}") from None


def digest_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open_input(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Output:
    """A JSONL file that appears under its name only when it is whole (with a manifest: when it is published); rows and
    digest are counted on the way. Raises UserError if it cannot be written."""

    def __init__(self, path: str | Path, *, with_manifest: bool = False):
        self.path, self.with_manifest, self.rows, self.hash = Path(path), with_manifest, 0, hashlib.sha256()
        self.part = self.path.with_name(self.path.name + ".part")

    def __enter__(self) -> "Output":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.part.open("wb")
        except OSError as error:
            raise UserError(f"{show(self.path)}: cannot be written: {error.strerror}") from None
        return self

    def write(self, row: dict) -> None:
        self.write_line(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    def write_line(self, line: bytes) -> None:
        """A row as it stands in another file."""
        line = line.rstrip(b"\r\n") + b"\n"
        self.file.write(line)
        self.hash.update(line)
        self.rows += 1

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.file.close()
        if kind is not None:
            with contextlib.suppress(OSError):
                self.part.unlink()
        elif not self.with_manifest:
            os.replace(self.part, self.path)

    def made(self) -> dict:
        return {"rows": self.rows, "sha256": self.hash.hexdigest()}


def manifest_of(output: str | Path) -> Path:
    return Path(output).with_suffix(".manifest.json")


def read_manifest(output: str | Path) -> dict | None:
    """What was written beside an output that is whole, or None."""
    path = manifest_of(output)
    made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and Path(output).is_file() else {}
    return made if "asked" in made else None  # another program's is none of ours


def what_is_asked(settings: object, inputs: list[str], but: tuple[str, ...]) -> dict:
    """What an output hangs on: the settings, but for those that change nothing in it, and the inputs' digests."""
    left_out = ("output_file", "start_over", *but)  # an input counts by its digest, wherever it lies
    config = {key: value for key, value in asdict(settings).items() if key not in left_out and value not in inputs}
    digests = {f"{number} {Path(path).name}": digest_of(path) for number, path in enumerate(inputs, 1)}
    return {"config": config, "inputs": digests}


def check_files(inputs: list[str], outputs: dict[str, str | None]) -> None:
    """Raises UserError for an output, by the key that names it, that is an input, another output, or no .jsonl."""
    taken = {Path(path).resolve(): "what is read" for path in inputs}
    for key, path in outputs.items():
        if path is None:
            continue
        if Path(path).suffix != ".jsonl":
            raise UserError(f"{key}: {path} must end with .jsonl")
        if other := taken.get(Path(path).resolve()):
            raise UserError(f"{key}: {show(Path(path))} is {other} too. Name a file of its own")
        taken[Path(path).resolve()] = key


def stop_if_done(outputs: list[str], asked: dict, *, start_over: bool) -> None:
    """Exits with 0 if all outputs are there, made of the same. Raises UserError if one was made of anything else."""
    done = 0
    for output in [] if start_over else outputs:
        made = read_manifest(output)
        if made is None and Path(output).exists():
            raise UserError(
                f"{show(Path(output))} is there already, and no manifest says how it was made. Name another output, "
                "or write --start_over to replace it"
            )
        if made is not None and made["asked"] != as_written(asked):
            raise UserError(
                f"{show(Path(output))} was made otherwise. What changed since:{differences(made['asked'], asked)}\n"
                "Name another output, or write --start_over to replace it"
            )
        done += made is not None and not made["unfinished"]
    if outputs and done == len(outputs):
        names = ", ".join(show(Path(output)) for output in outputs)
        say("finished", f"nothing to do: {names} {'is' if done == 1 else 'are'} whole. To make it again: --start_over")
        sys.exit(0)


def as_written(asked: dict) -> dict:
    """As a manifest or a journal has it: through JSON, and without what looks like a key."""
    return json.loads(without_keys(json.dumps(asked)))


def drop(outputs: list[str]) -> None:
    """For --start_over, so that nothing older stands in the way of what goes on after a kill."""
    for output in outputs:
        Path(output).unlink(missing_ok=True)  # first: an output without its manifest would be somebody else's
        manifest_of(output).unlink(missing_ok=True)


def differences(before: dict, now: dict) -> str:
    """Each setting that differs, a line each."""
    lines = []
    for part in sorted(before.keys() | now.keys()):
        old, new = before.get(part), as_written(now).get(part)
        if isinstance(old, dict) and isinstance(new, dict):
            changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            lines += [f"{key}: {old.get(key)!r} was, {new.get(key)!r} is asked" for key in changed]
        elif old != new:
            lines.append(f"{part}: {old!r} was, {new!r} is asked")
    return "".join(f"\n  {line}" for line in lines)


def publish(
    files: list[Output],
    source: Source,
    asked: dict,
    found: dict,
    began: float,
    names: list[str],
    *,
    unfinished: bool = False,
) -> None:
    """The outputs under their names, each with its `OUTPUT.manifest.json`. A kill in between leaves none that is taken
    for finished.

    Args:
        found: what to tell of this step: counts, examples.
        began: time.time() at the start.
        names: the libraries whose versions made a difference.
        unfinished: whether the same command has more to do.
    """
    made = {
        "made_by": [show(Path(sys.argv[0])), *sys.argv[1:]],
        "config_file": show(source.path),
        "asked": asked,
        "unfinished": unfinished,
        **found,
        "outputs": {str(file.path): file.made() for file in files},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "seconds": round(time.time() - began, 1),
    }
    drop([file.path for file in files])
    for file in files:
        write_atomically(manifest_of(file.path), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    for file in files:
        os.replace(file.part, file.path)
