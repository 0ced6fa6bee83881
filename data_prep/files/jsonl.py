"""JSON lines in, JSON lines out, and a manifest beside each output: its settings, inputs, counts and versions."""

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
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import Source, UserError, earlier_state
from utils.files import say, show, without_keys, write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a JSONL file, one at a time. Raises UserError naming the line that is not a JSON object."""
    path = Path(path)
    with open_input(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise UserError(f"{path.name}:{number}: is not JSON: {error}. Write one JSON object a line") from None
            if not isinstance(row, dict):
                raise UserError(f"{path.name}:{number}: is not a JSON object. Write one JSON object a line")
            yield row


def open_input(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be read: {error.strerror}") from None


def digest_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open_input(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(folder: str | Path) -> str | None:
    """Identifies a local model by the sizes of its weight files and parts of them; None if there is no such folder."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in (0, size // 2, max(0, size - 2**20)):
                file.seek(place)
                digest.update(file.read(2**20))
    return digest.hexdigest()[:16] if folder.is_dir() else None


class Output:
    """A JSONL file that appears under its name only when it is whole (`with_manifest`: when it is published). Raises
    UserError if it cannot be written.

    Attributes:
        rows: how many were written.
    """

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
        """A row as it is in another file."""
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


def manifest_of(output: str | Path) -> Path:
    return Path(output).with_suffix(".manifest.json")


def read_manifest(output: str | Path) -> dict | None:
    """The manifest beside an output that is whole, or None."""
    path = manifest_of(output)
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and Path(output).is_file() else {}
    return manifest if "settings" in manifest else None  # another program's manifest is not ours


def made_from(config: "DataclassInstance", inputs: list[str], ignored: tuple[str, ...]) -> dict:
    """What an output depends on: the config without the `ignored` fields, which change nothing in it, and the digests
    of the inputs, wherever they are."""
    ignored = ("output_file", "start_over", *ignored)
    kept = {key: value for key, value in asdict(config).items() if key not in ignored and value not in inputs}
    digests = {f"{number} {Path(path).name}": digest_of(path) for number, path in enumerate(inputs, 1)}
    return {"config": kept, "inputs": digests}


def check_outputs(inputs: list[str], outputs: dict[str, str | None]) -> None:
    """Raises UserError for an output, named by its key, that is an input or another output, or not a .jsonl file."""
    taken = {Path(path).resolve(): "an input" for path in inputs}
    for key, path in outputs.items():
        if path is None:
            continue
        if Path(path).suffix != ".jsonl":
            raise UserError(f"{key}: {path} must end with .jsonl")
        if other := taken.get(Path(path).resolve()):
            raise UserError(f"{key}: {show(Path(path))} is also {other}. Name another file")
        taken[Path(path).resolve()] = key


def stop_if_done(outputs: list[str], settings: dict, *, start_over: bool) -> None:
    """Exits with 0 if all outputs are complete with these settings. Raises UserError if one has other settings."""
    done = 0
    for output in [] if start_over else outputs:
        name, manifest = show(Path(output)), read_manifest(output)
        if manifest is None and Path(output).exists():
            raise UserError(
                f"{name} exists already, and no manifest says how it was made. Name another output, or replace it "
                "with --start_over"
            )
        state = earlier_state(
            manifest and manifest["settings"],
            as_written(settings),
            finished=manifest is not None and not manifest["unfinished"],
            refusal=f"{name} was made with other settings",
            fix="Name another output, or replace it with --start_over",
        )
        done += state == "finished"
    if outputs and done == len(outputs):
        names = ", ".join(show(Path(output)) for output in outputs)
        say("finished", f"nothing to do: {names} {'is' if done == 1 else 'are'} complete. To redo it: --start_over")
        sys.exit(0)


def as_written(settings: dict) -> dict:
    """The settings as a manifest or a journal holds them: through JSON, and without what looks like a key."""
    return json.loads(without_keys(json.dumps(settings)))


def remove_outputs(outputs: list[str | Path]) -> None:
    """For --start_over: an older output would stop a run that resumes after a kill."""
    for output in outputs:
        Path(output).unlink(missing_ok=True)  # first: an output without its manifest would be somebody else's
        manifest_of(output).unlink(missing_ok=True)


def publish(
    files: list[Output],
    source: Source,
    settings: dict,
    results: dict,
    began: float,
    libraries: list[str],
    *,
    unfinished: bool = False,
) -> None:
    """Puts the outputs in place, each with its `OUTPUT.manifest.json`. A kill in between leaves none that passes for
    complete.

    Args:
        settings: what the outputs depend on.
        results: of this step: counts, examples.
        began: time.time() at the start.
        libraries: those whose version matters.
        unfinished: whether the same command has more to do.
    """
    manifest = {
        "made_by": [show(Path(sys.argv[0])), *sys.argv[1:]],
        "config_file": show(source.path),
        "settings": settings,
        "unfinished": unfinished,
        **results,
        "outputs": {str(file.path): {"rows": file.rows, "sha256": file.hash.hexdigest()} for file in files},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
        "seconds": round(time.time() - began, 1),
    }
    remove_outputs([file.path for file in files])
    for file in files:
        write_atomically(manifest_of(file.path), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    for file in files:
        os.replace(file.part, file.path)
