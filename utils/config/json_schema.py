"""What a YAML may hold, as a JSON schema: editors complete and check a config by it while it is written."""

import dataclasses
import textwrap

from pydantic import ConfigDict, TypeAdapter

from utils.config.fields import ENV_NAMES, REFUSED
from utils.config.schema import field_types

LONGEST = 240  # characters of a description; the documentation of TRL has all of it


def json_schema(title: str, *classes: type) -> dict:
    """The schema of a YAML that fills these dataclasses, the method's own first. `title` is shown by editors."""
    choices, properties = vars(classes[0]).get("CHOICES"), {}
    for cls in classes:
        defaults = {
            f.name: f.default for f in dataclasses.fields(cls) if isinstance(f.default, (bool, int, float, str))
        }
        for name, hint in field_types(cls, choices).items():
            properties[name] = property_schema(hint) | ({"default": defaults[name]} if name in defaults else {})
    about = "Environment variables, set before any library is loaded."
    variables = {name: {"type": ["string", "number", "boolean"]} for name in ENV_NAMES}
    env = {"type": "object", "description": about, "properties": variables, "additionalProperties": False}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#", "title": title, "type": "object",
        "properties": {name: properties[name] for name in properties if name not in REFUSED} | {"env": env},
        "additionalProperties": False,
    }  # fmt: skip


def property_schema(hint: type) -> dict:
    """The schema of one field, as field_types gives it."""
    schema = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).json_schema()
    about = {"description": textwrap.shorten(schema.pop("description"), LONGEST, placeholder=" ...")}
    if "$defs" in schema:  # a class of accelerate's, which no YAML writes
        return about
    parts = schema.get("anyOf", [schema])
    items = [part["items"] for part in parts if part.get("type") == "array"]
    text, one = ([part for part in of if part.get("type") == "string"] for of in (parts, items))
    if one and not text:  # a list of one word may be written as the word
        return about | {"anyOf": [*parts, *one]}
    return about | schema
