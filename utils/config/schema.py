"""Values checked strictly against a dataclass: every mistake at once, each with its file, line and mend.

For TRL's dataclasses (utils/config.py) as for our own small ones (data_prep/); no heavy library is imported.
"""

import dataclasses
import difflib
import enum
import types
import typing
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from utils.config.fields import RANGES
from utils.config.legacy_keys import VALUES
from utils.config.source import ROOT, FlagText, Source, UserError

Fields = typing.TypeVar("Fields")


def parse_fields(source: Source, cls: type[Fields]) -> Fields:
    """The dataclass that a config fills. A field's metadata may hold `choices`, `range` (least, greatest), and `path`:
    "file" for one that must be there, "output" for one to be written; both become absolute paths.

    Raises UserError with all mistakes at once.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in source.values.items():
        if key not in fields:
            source.mistake(key, unknown_key(key, fields))
            continue
        metadata = fields[key].metadata
        try:
            values[key] = check_value(key, value, hints[key], metadata.get("choices"), metadata.get("range"))
        except ValueError as error:
            source.mistake(key, str(error))
    for name, f in fields.items():
        if name not in source.values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            source.mistakes.append(f"{source.path.name}: {name}: is missing. {f.metadata['help']}")
        if f.metadata.get("path") and (given := values.get(name)):
            paths = [absolute(source, name, path) for path in ([given] if isinstance(given, str) else given)]
            for path in paths:
                if f.metadata["path"] == "file" and not path.is_file():
                    source.mistake(name, f"there is no file {path}")
            values[name] = str(paths[0]) if isinstance(given, str) else [str(path) for path in paths]
    raise_mistakes(source)
    return cls(**values)


def absolute(source: Source, key: str, name: str) -> Path:
    """A path in a YAML starts at the repository's root, as a flag at the current folder."""
    base = Path.cwd() if source.where.get(key) == "command line" else ROOT
    return base / Path(name).expanduser()


def raise_mistakes(source: Source) -> None:
    if count := len(source.mistakes):
        raise UserError(f"{count} mistake{'s' * (count > 1)} in the config:\n  " + "\n  ".join(source.mistakes))


def unknown_key(key: str, fields: dict) -> str:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.7)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key; see --help"


def check_value(key: str, value: object, hint: type, choices: list | None, bounds: tuple | None = None) -> object:
    """The value in the field's type. Raises ValueError whose text says what is wrong and what to write."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = typing.get_args(hint) if union else (hint,)
    if isinstance(value, FlagText):
        value = read_flag_text(value, members)
    elif isinstance(value, list):
        value = [read_flag_text(item, members) if isinstance(item, FlagText) else item for item in value]
    if value is None and type(None) not in members:
        raise ValueError(f"has no value. Write {expected(members)}, or remove the key")
    enums = [m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)]
    choices = choices or [member.value for e in enums for member in e]
    for item in value if isinstance(value, list) else [value]:
        if choices and item is not None and item not in [str(c) for c in choices]:
            near = difflib.get_close_matches(str(item), [str(c) for c in choices], n=1, cutoff=0.6)
            hint_text = f"did you mean {near[0]}?" if near else f"write one of {', '.join(str(c) for c in choices)}"
            hint_text = VALUES.get(key, {}).get(item, hint_text) if isinstance(item, (str, bool)) else hint_text
            raise ValueError(f"{item!r} is not a choice; {hint_text}")
    if list in members or any(typing.get_origin(m) is list for m in members):
        value = [value] if isinstance(value, str) and str not in members else value
    try:
        value = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        quoted = isinstance(value, str) and {int, float, bool} & set(members)
        mend = ", without quotes" if quoted else ""
        raise ValueError(f"{value!r} is not {expected(members)}. Write {expected(members)}{mend}") from None
    low, high = bounds or RANGES.get(key, (None, None))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or (low is not None and value < low) or (high is not None and value > high):
            least = f"at least {1 if low == 1e-9 and int in members else 'more than 0' if low == 1e-9 else low}"
            least = least.replace("at least more", "more")
            raise ValueError(f"{value} is out of range. Write {least}" + (f" and at most {high}" if high else ""))
        if key == "max_steps" and value != -1 and value < 1:
            raise ValueError(f"{value} is out of range. Write at least 1, or -1 to count in epochs")
    return value


def read_flag_text(text: str, members: tuple) -> object:
    if str in members and not {bool, int, float} & set(members) and not text.startswith(("{", "[")):
        return str(text)
    if text.lower() == "none" and type(None) in members:  # in a field of texts, `none` is a word (report_to: none)
        return None
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise ValueError(f"{str(text)!r} cannot be read. Write {expected(members)}") from None


def expected(members: tuple) -> str:
    """A field's type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
    named = []
    for member in members:
        origin = typing.get_origin(member) or member
        word = "a list" if origin is list else words.get(origin)
        if word and word not in named:
            named.append(word)
    return " or ".join(named) or "another type"
