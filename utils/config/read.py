"""Reads one YAML file and the command-line flags before the slow libraries are imported.

So `env:` takes effect in those libraries, a mistake in the YAML is reported at once, and a run that needs the hub
stops within seconds if it cannot be reached.
"""

import contextlib
import dataclasses
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from utils.config.fields import ENV_NAMES, RecipeConfig
from utils.config.hub import require_hub
from utils.config.legacy_keys import what_to_write
from utils.config.schema import described, field_types
from utils.config.source import ROOT, FlagText, Source, UserError
from utils.files import is_main_process

# Telemetry is off unless the user turns it on; forked workers must not warn about tokenizer threads.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
STRAY = "command line: {!r} does not belong to a flag. Write --key value"


def run_main(main: Callable[[], None]) -> None:
    """Run a script's main: a user's mistake is one message on stderr and exit code 2; --traceback adds the cause."""
    try:
        main()
    except UserError as error:
        if is_main_process():
            print(f"\n{error}", file=sys.stderr)
            if "--traceback" in sys.argv and (cause := error.__cause__ or error.__context__):
                traceback.print_exception(cause)
        sys.exit(2)
    except KeyboardInterrupt:
        if is_main_process():
            print("\nStopped. Run the same command again to resume", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def as_user_error(name: str) -> Iterator[None]:
    """Turn an error by which a library rejects the config or the rows into a UserError.

    That is an error from a `raise` statement. Any other one may be a bug, and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError, LookupError, jinja2.TemplateError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, jinja2.TemplateError) and not (place.line or "").startswith("raise"):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{name} refuses this config or these rows: {reason}") from error


def read_config(doc: str, arguments: list[str] | None = None, fields: type = RecipeConfig) -> Source:
    """Read `--config FILE` and the flags that override it, before any slow import.

    Sets the variables of `env:`, prints `--help` (with the fields of `fields`), and stops at once if a model or data
    set must come from the hub, is not cached, and the hub does not answer. Raises UserError if the file is not a
    YAML mapping.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print_help(doc, fields)
        sys.exit(0)
    flags, mistakes = read_flags([word for word in arguments if word != "--traceback"])
    named = flags.pop("config", True)
    if named is True:
        raise UserError("No config given. Write: --config configs/sft_tiny.yaml (or --help)")
    path, *stray = [named] if isinstance(named, str) else named
    mistakes += [STRAY.format(word) for word in stray]
    source = read_yaml(Path(path))
    source.mistakes += mistakes
    source.where |= dict.fromkeys(flags, "command line")
    set_environment(source)
    source.values |= flags
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Versions are pinned, so a run need not know what a later one will rename.
    warnings.filterwarnings("ignore", category=FutureWarning)
    require_hub(source)
    return source


def read_flags(arguments: list[str]) -> tuple[dict, list[str]]:
    """`--key value`, `--key=value`, `--key` (true), `--no_key` (false), `--key a b` (a list)."""
    flags: dict[str, object] = {}
    mistakes, index = [], 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("--"):
            mistakes.append(STRAY.format(word))
            continue
        key, equals, text = word[2:].partition("=")
        key = key.replace("-", "_")
        values = [FlagText(text)] if equals else []
        while not equals and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(FlagText(arguments[index]))
            index += 1
        if not values and key.startswith("no_") and not what_to_write(key, None):  # no_cuda was a key
            flags[key[3:]] = False
        else:
            given = True if not values else values[0] if len(values) == 1 else values
            flags[key] = None if given == "null" else given  # as in YAML
    return flags, mistakes


def read_yaml(path: Path) -> Source:
    """The file's mapping, with the line of each key; duplicate keys are mistakes."""
    shown = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    try:
        text = path.read_text(encoding="utf-8")
        root = YAML(typ="safe", pure=True).compose(text)
        loader = YAML(typ="safe", pure=True)
        loader.allow_duplicate_keys = True
        values = loader.load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        shipped = ", ".join(sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")))
        raise UserError(f"{shown}: cannot read the config: {reason}. Shipped configs: {shipped}") from None
    except YAMLError as error:
        if not isinstance(error, MarkedYAMLError):  # a character that YAML does not allow
            raise UserError(f"{shown}: not valid YAML: {' '.join(str(error).split())}") from None
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{shown}:{line}: not valid YAML: {error.problem}. Write one `key: value` per line") from None
    if not isinstance(values, dict):
        raise UserError(f"{shown}:1: the config must be a mapping. Write one `key: value` per line")
    source = Source(path.resolve(), {}, {}, [])
    places = [(str(node.value), f"{shown}:{node.start_mark.line + 1}") for node, _ in root.value]
    source.mistakes += key_mistakes(places)
    source.where = dict(reversed(places))  # where each key occurs first
    source.values = {str(key): value for key, value in values.items() if "-" not in str(key)}
    return source


def key_mistakes(places: list[tuple[str, str]]) -> list[str]:
    """Duplicate keys, of which other YAML readers take the last, and keys with dashes."""
    first: dict[str, str] = {}
    mistakes = []
    for key, place in places:
        if key in first:
            mistakes.append(f"{place}: {key}: stands twice (first at {first[key]}). Remove one")
        elif "-" in key:
            mistakes.append(f"{place}: {key}: keys have no dashes. Write {key.replace('-', '_')}")
        first.setdefault(key, place)
    return mistakes


def set_environment(source: Source) -> None:
    variables = source.values.pop("env", None) or {}
    if not isinstance(variables, dict):
        source.mistake("env", "must be a mapping of variable names to values")
        return
    for name, value in variables.items():
        if name in ENV_NAMES:
            os.environ[name] = str(value)
        else:
            source.mistake(
                "env", f"{name} may not be set here. Set it in the shell; allowed: {', '.join(sorted(ENV_NAMES))}"
            )


def print_help(doc: str, fields: type) -> None:
    lines = [doc.strip(), "", "Our own fields:"]
    hints = field_types(fields)
    for f in dataclasses.fields(fields):
        default = "" if f.default in (None, dataclasses.MISSING, "", False) else f" (default {f.default})"
        lines.append(f"  --{f.name:<22} {described(hints[f.name])}{default}")
    lines.append(f"  --{'traceback':<22} If the run stops with an error message, print its full traceback too.")
    trl = [
        "",
        "Every field of TRL's configs can be set in the YAML or with a --flag:",
        "  the model  https://huggingface.co/docs/trl/main/en/script_utils#trl.ModelConfig",
        "  training   https://huggingface.co/docs/trl/main/en (the config of the trainer)",
        "             https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments",
    ]
    lines += trl if issubclass(fields, RecipeConfig) else []
    lines += ["", "Relative paths start at the repository's root in a YAML, and at the current folder in a flag."]
    print("\n".join(lines))
