"""The config as written: one YAML file plus command-line flags, read before the slow libraries load.

So `env:` reaches those libraries, a mistake in the YAML is told at once, and a run that needs the hub stops in
seconds where there is none.
"""

import contextlib
import dataclasses
import os
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from utils.fields import ENV_NAMES, RecipeConfig
from utils.moved import what_to_write
from utils.terminal import is_main_process

ROOT = Path(__file__).resolve().parents[1]

# Telemetry is off unless the user wants it; forked workers must not warn about tokenizer threads.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


class UserError(Exception):
    """A mistake of the user's: shown as one message, without a traceback, exit code 2."""


@dataclass
class Source:
    """A config as written: values by key, and where each one stands (`configs/x.yaml:12` or `command line`)."""

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
    """A value from the command line, still text: its type is the field's."""


def run_main(main: Callable[[], None]) -> None:
    """Run a recipe's main: a user's mistake is one message on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        if is_main_process():
            print(f"\n{error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if is_main_process():
            print("\nStopped. The same command goes on from what was kept", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def refusals_told(name: str) -> Iterator[None]:
    """What a library refuses while it looks at config and rows is the user's to mend, so it is told as a UserError."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, LookupError, jinja2.TemplateError) as error:
        raise UserError(f"{name} refuses this config or these rows: {' '.join(str(error).split())}") from error


def read_config(doc: str, arguments: list[str] | None = None, fields: type = RecipeConfig) -> Source:
    """Read `--config FILE` and the flags that override it, before any slow import.

    Sets the variables of `env:`, prints `--help` (with the fields of `fields`), and stops at once if a model or data
    set of the hub is wanted, is not cached, and the hub does not answer. Raises UserError if the file cannot be read
    as a YAML mapping.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print_help(doc, fields)
        sys.exit(0)
    flags, mistakes = read_flags(arguments)
    named = flags.pop("config", True)
    if named is True:
        raise UserError("No config given. Write: --config configs/sft_tiny.yaml (or --help)")
    path, *stray = [named] if isinstance(named, str) else named
    mistakes += [f"command line: {word!r} belongs to no flag. Write --key value" for word in stray]
    source = read_yaml(Path(path))
    source.mistakes += mistakes
    source.where |= dict.fromkeys(flags, "command line")
    set_environment(source)
    source.values |= flags
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # Versions are pinned, so what a later one will rename does not concern a run.
    warnings.filterwarnings("ignore", category=FutureWarning)
    require_hub(source)
    return source


def read_flags(arguments: list[str]) -> tuple[dict, list[str]]:
    """`--key value`, `--key=value`, `--key` (true), `--no_key` (false), `--key a b` (a list)."""
    flags, mistakes, index = {}, [], 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("--"):
            mistakes.append(f"command line: {word!r} belongs to no flag. Write --key value")
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        values = [FlagText(value)] if equals else []
        while not equals and index < len(arguments) and not arguments[index].startswith("--"):
            values.append(FlagText(arguments[index]))
            index += 1
        if not values and key.startswith("no_") and not what_to_write(key, None):
            flags[key[3:]] = False
        else:
            value = True if not values else values[0] if len(values) == 1 else values
            flags[key] = None if value == "null" else value  # as in YAML
    return flags, mistakes


def read_yaml(path: Path) -> Source:
    """The file's mapping, with each key's line and every key that stands twice."""
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
        raise UserError(f"{shown}:{line}: not valid YAML: {error.problem}. Write one `key: value` a line") from None
    if not isinstance(values, dict):
        raise UserError(f"{shown}:1: the config must be a mapping. Write one `key: value` a line")
    source = Source(path.resolve(), {}, {}, [])
    places = [(str(node.value), f"{shown}:{node.start_mark.line + 1}") for node, _ in root.value]
    source.mistakes += key_mistakes(places)
    source.where = dict(reversed(places))  # where each key stands first
    source.values = {str(key): value for key, value in values.items() if "-" not in str(key)}
    return source


def key_mistakes(places: list[tuple[str, str]]) -> list[str]:
    """Keys that stand twice, of which YAML readers take the last, and keys with dashes."""
    first, mistakes = {}, []
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
            source.mistake("env", f"{name} may not be set here. Set it in the shell; allowed: {sorted(ENV_NAMES)}")


def find_path(source: Source, key: str, name: str) -> Path | None:
    """The local file or folder that a value names, or None if there is none (then it is a hub name).

    A relative path starts at the repository's root if it stands in the YAML, at the current folder if it is a flag.
    """
    if "\n" in name or "{" in name or len(name) > 255:  # a chat template written out
        return None
    base = Path.cwd() if source.where.get(key) == "command line" else ROOT
    path = base / Path(name).expanduser()
    return path if path.exists() else None


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: hub names have at most one slash, no suffix of data files, no leading dot."""
    return (
        name.count("/") > 1
        or name.startswith((".", "/", "~", "outputs/", "tiny/"))
        or Path(name).suffix in {".jsonl", ".json", ".parquet", ".csv", ".jinja"}
    )


def missing_model(source: Source, name: object) -> str | None:
    """What to say of a model that can only be a folder and is not there, or None."""
    if not isinstance(name, str) or not looks_local(name) or find_path(source, "model_name_or_path", name):
        return None
    base = Path.cwd() if source.where["model_name_or_path"] == "command line" else ROOT
    run = Path(name).parent if Path(name).name.startswith("checkpoint-") else Path(name)
    made_by = ROOT / "configs" / f"{run.name}.yaml"
    method = {"sft": "sft", "dpo": "dpo", "grpo": "online_rl"}.get(made_by.stem.split("_")[0])
    if not made_by.exists():
        return f"there is no {base / name}. Write the path of a model's folder"
    return f"there is no {base / name}. Make it with: python {method}/train.py --config configs/{made_by.name}"


def hub_names(source: Source) -> list[tuple[str, str, str]]:
    """(key, name, kind) of everything in the config that only the hub can have."""
    wanted = []
    if not source.values.get("base_urls"):  # else a server has the model
        wanted = [("model_name_or_path", source.values.get("model_name_or_path"), "model")]
    wanted += [(key, source.values.get(key), "dataset") for key in ("dataset_name", "heldout_name")]
    mixture = source.values.get("datasets")
    for part in mixture if isinstance(mixture, list) else []:
        if isinstance(part, dict) and not str(part.get("data_files", "")):
            wanted.append(("datasets", part.get("path"), "dataset"))
    return [
        (key, name, kind)
        for key, name, kind in wanted
        if isinstance(name, str) and find_path(source, key, name) is None and not looks_local(name)
    ]


def require_hub(source: Source) -> None:
    """Stop at once, instead of after minutes of retries, if something must come from the hub and cannot.

    If the hub does not answer and everything is cached, the libraries are told to work offline.
    """
    wanted = hub_names(source)
    moved = any(what_to_write(key, value) for key, value in source.values.items())
    if not wanted or source.mistakes or moved:  # parse_config tells all mistakes at once
        return
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5)
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        cache = Path(constants.HF_HUB_CACHE)
        missing = [
            f"{source.where[key]}: {key}: the {kind} {name} is not on this machine"
            for key, name, kind in wanted
            if not (cache / repo_folder_name(repo_id=name, repo_type=kind) / "snapshots").exists()
        ]
        if missing:
            missing.append(f"and {constants.ENDPOINT} cannot be reached: {error}.")
            missing.append("Connect, or name a local folder or file. Without a network, this runs as it is:")
            tiny = f"{source.name.split('_')[0]}_tiny.yaml"
            tiny = tiny if (ROOT / "configs" / tiny).exists() else "sft_tiny.yaml"
            missing.append(f"  --config configs/{tiny}")
            raise UserError("\n".join(missing)) from None


def print_help(doc: str, fields: type) -> None:
    lines = [doc.strip(), "", "Our own fields:"]
    for f in dataclasses.fields(fields):
        default = "" if f.default in (None, dataclasses.MISSING, "", False) else f" (default {f.default})"
        lines.append(f"  --{f.name:<22} {f.metadata['help']}{default}")
    trl = [
        "",
        "Every field of TRL's configs may stand in the YAML or as a --flag:",
        "  the model  https://huggingface.co/docs/trl/main/en/script_utils#trl.ModelConfig",
        "  training   https://huggingface.co/docs/trl/main/en (SFTConfig, DPOConfig, GRPOConfig)",
        "             https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments",
    ]
    lines += trl if issubclass(fields, RecipeConfig) else []
    lines += ["", "A relative path in a YAML starts at the repository's root, as a flag at the current folder."]
    print("\n".join(lines))
