"""What to write today in place of a key or value of an older YAML: the table is legacy_keys.yaml, read when needed."""

import functools
import json
from pathlib import Path

from ruamel.yaml import YAML

from utils.config.fields import REFUSED


@functools.cache
def table() -> dict[str, dict]:
    """The groups of legacy_keys.yaml; `removed` by key, and with the fields of today that a recipe refuses."""
    groups = YAML(typ="safe", pure=True).load(Path(__file__).with_suffix(".yaml"))
    groups["removed"] = REFUSED | {key: reason for reason, keys in groups["removed"].items() for key in keys}
    return groups


def what_to_write(key: str, value: object) -> str | None:
    """What says the same as `key: value` today, or None if the key is not one of an older version."""
    old = table()
    if key == "torch_dtype" and value is None:
        return "write dtype: float32, which null meant"
    if key in old["renamed"]:
        return f"write {old['renamed'][key]}: {shown(value)}"
    if key in old["mixtures"]:
        return mixture(value)
    if text := old["converted"].get(key):
        switched_off = value is False and "{value}" not in text
        return "remove it: false is the default" if switched_off else text.replace("{value}", shown(value))
    reason = old["removed"].get(key)
    return reason if reason is None or reason.startswith("write ") else f"remove it: {reason}"


def name_today(key: str) -> str:
    """The key that took the place of an older one, or the key itself."""
    return "datasets" if key in table()["mixtures"] else table()["renamed"].get(key, key)


def instead_of(key: str, value: object) -> str | None:
    """What to write in place of a value that `key` took once."""
    return table()["values"].get(key, {}).get(value) if isinstance(value, (str, bool)) else None


def mixture(value: object) -> str:
    """alignment-handbook's {name: share of that set} and TRL's {datasets: [{path, ...}]} as our list.

    Their shares are of each data set, the first rows of it; our `fraction` is a share of the mixture.
    """
    if isinstance(value, dict) and isinstance(value.get("datasets"), list):  # open-r1 and TRL 0.18 on
        parts = [part for part in value["datasets"] if isinstance(part, dict)]
        items = [(p.get("path", p.get("id")), p.get("weight"), p.get("name", p.get("config"))) for p in parts]
    elif isinstance(value, dict):
        items = [(path, share, None) for path, share in value.items()]
    else:
        return "write datasets: a list of {path, name, split, columns, fraction}"
    written = []
    for path, share, name in items:
        share = share if isinstance(share, (int, float)) else 1
        percent = round(share * 100, 6)  # a slice of a data set is written in whole percents or in rows
        first = f"{percent:g}%" if percent == int(percent) else f"({share} x its rows)"
        split = f", split: 'train[:{first}]'" if percent < 100 else ""
        if percent > 0:
            written.append(f"{{path: {path}" + (f", name: {name}" if name else "") + f"{split}}}")
    return f"write datasets: [{', '.join(written)}]"


def shown(value: object) -> str:
    """A value as YAML writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
