"""Values checked strictly against a dataclass: every mistake at once, each with its file, line and fix.

For TRL's dataclasses as for our own small ones (data_prep/); no heavy library is imported.
"""

import dataclasses
import difflib
import enum
import types
import typing
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from utils.config.fields import RANGES
from utils.config.legacy_keys import instead_of
from utils.config.source import ROOT, FlagText, Source, UserError

Fields = typing.TypeVar("Fields")
Hint = typing.Any  # a type as it is annotated, which Python has no type for
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
OUT_OF_RANGE = {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}
WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping", list: "a list"
}  # fmt: skip


def field_types(cls: typing.Any, choices: dict[str, tuple] | None = None) -> dict[str, Hint]:
    """What each field of a dataclass takes, as `Annotated[type, ..., Field(range, description)]`.

    Ours are declared so. A field of TRL gets its choices (its own, an enum's, or those of `choices`) as a Literal, and
    its range from RANGES.
    """
    found, hints = {}, typing.get_type_hints(cls, include_extras=True)
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if f.init and typing.get_origin(hint) is not Annotated:
            enums = [m for m in members_of(hint) if isinstance(m, type) and issubclass(m, enum.Enum)]
            allowed = f.metadata.get("choices") or (choices or {}).get(f.name) or [m.value for e in enums for m in e]
            hint = only(hint, allowed) if allowed else hint
            about = " ".join(f.metadata.get("help", "").split())
            hint = Annotated[hint, Field(**typing.cast(dict, RANGES.get(f.name, {})), description=about)]
        if f.init:
            found[f.name] = hint
    return found


def only(hint: Hint, choices: typing.Iterable[str]) -> Hint:
    """The choices in place of text: `str | None` becomes `Literal["a", "b"] | None`."""
    literal: Hint = Literal[tuple(choices)]
    if typing.get_origin(hint) is list:
        return list[literal]
    return literal | None if type(None) in members_of(hint) else literal


def members_of(hint: Hint) -> tuple:
    """The plain types that a value may have: `(str, NoneType)` for `Annotated[Literal["a", "b"] | None, ...]`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return members_of(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(member for argument in arguments for member in members_of(argument))
    return (str,) if origin is Literal else (origin or hint,)


def choices_of(hint: Hint) -> list[str]:
    """The words that a Literal anywhere in the type allows."""
    if typing.get_origin(hint) is Literal:
        return [choice for choice in typing.get_args(hint) if isinstance(choice, str)]
    return [choice for argument in typing.get_args(hint) for choice in choices_of(argument)]


def described(hint: Hint) -> str:
    """What a field is for, and what it may be."""
    choices, about = choices_of(hint), hint.__metadata__[-1].description
    return f"{about} One of {', '.join(choices)}." if choices else about


def parse_fields(source: Source, cls: type[Fields]) -> Fields:
    """The dataclass that a config fills. Paths (InputFile, OutputFile) become absolute.

    Raises UserError with all mistakes at once.
    """
    hints, values = field_types(cls), {}
    for key, value in source.values.items():
        if key not in hints:
            source.mistake(key, unknown_key(key, hints))
            continue
        # A path in a YAML starts at the repository's root, as a flag at the current folder.
        base = Path.cwd() if source.where.get(key) == "command line" else ROOT
        try:
            values[key] = check_value(key, value, hints[key], base)
        except ValueError as error:
            source.mistake(key, str(error))
    for f in dataclasses.fields(typing.cast(typing.Any, cls)):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in source.values:
            source.mistakes.append(f"{source.path.name}: {f.name}: is missing. {described(hints[f.name])}")
    raise_mistakes(source)
    return cls(**values)


def raise_mistakes(source: Source) -> None:
    if count := len(source.mistakes):
        raise UserError(f"{count} mistake{'s' * (count > 1)} in the config:\n  " + "\n  ".join(source.mistakes))


def unknown_key(key: str, fields: dict) -> str:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.7)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key; see --help"


def check_value(key: str, value: typing.Any, hint: Hint, base: Path = ROOT) -> object:
    """The value in the field's type, as field_types gives it. Raises ValueError: what is wrong and what to write.

    Args:
        base: where a relative path starts.
    """
    members = members_of(hint)
    if isinstance(value, FlagText):
        value = read_flag_text(value, members)
    elif isinstance(value, list):
        value = [read_flag_text(item, members) if isinstance(item, FlagText) else item for item in value]
    if value is None and type(None) not in members:
        raise ValueError(f"has no value. Write {expected(members)}, or remove the key")
    if isinstance(value, str) and list in members and str not in members:
        value = [value]
    try:
        adapter: TypeAdapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        checked = adapter.validate_python(value, strict=True, context=base)
    except ValidationError as error:
        raise ValueError(explain(key, value, hint, error)) from None
    if key == "max_steps" and value != -1 and value < 1:
        raise ValueError(f"{value} is out of range. Write at least 1, or -1 to count in epochs")
    if checked != checked:
        raise ValueError(f"{value} is out of range. Write {range_of(hint) or 'a number'}")
    return checked


def explain(key: str, value: object, hint: Hint, error: ValidationError) -> str:
    """What is wrong with a value, and what to write."""
    found = {mistake["type"]: mistake for mistake in error.errors()}
    if "no_file" in found:
        return "; ".join(mistake["msg"] for mistake in error.errors())
    if "literal_error" in found and (choices := choices_of(hint)):
        item = found["literal_error"]["input"]
        near = difflib.get_close_matches(str(item), choices, n=1, cutoff=0.6)
        fix = f"did you mean {near[0]}?" if near else f"write one of {', '.join(choices)}"
        return f"{item!r} is not a choice; {instead_of(key, item) or fix}"
    if OUT_OF_RANGE & found.keys():
        return f"{value} is out of range. Write {range_of(hint)}"
    members = members_of(hint)
    quoted = ", without quotes" if isinstance(value, str) and {int, float, bool} & set(members) else ""
    return f"{value!r} is not {expected(members)}. Write {expected(members)}{quoted}"


def range_of(hint: Hint) -> str:
    """A field's range in words: `at least 0 and at most 1`."""
    bounds = [item for limit in hint.__metadata__[-1].metadata for item in dataclasses.asdict(limit).items()]
    return " and ".join(f"{BOUNDS[name]} {bound}" for name, bound in bounds)


def read_flag_text(text: str, members: tuple) -> object:
    if str in members and not {bool, int, float} & set(members) and not text.startswith(("{", "[")):
        return str(text)
    if text.lower() == "none" and type(None) in members:  # where text is allowed, `none` is a word (report_to: none)
        return None
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise ValueError(f"{str(text)!r} cannot be read. Write {expected(members)}") from None


def expected(members: tuple) -> str:
    """A field's type in words."""
    return " or ".join(dict.fromkeys(WORDS[member] for member in members if member in WORDS)) or "another type"
