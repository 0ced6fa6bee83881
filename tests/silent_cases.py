"""What goes wrong without a word when one trains with TRL: each way is a case in tests/test_silent_*.py.

A case makes the mistake as a user would make it, and asserts that it is prevented or reported. Each one runs twice: as
the code is, and with the check that it names switched off, where it must fail in the way that it states. The table in
docs/silent_failures.md is made from the same cases (tests/test_silent_failures.py).
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conftest import ROOT
from stage import FOLDERS
from trl import DPOConfig, GRPOConfig, SFTConfig

from dpo.config import DPORecipe
from online_rl.config import OnlineRLRecipe
from utils.config import RecipeConfig, parse_config, read_config

STOPS = "stops before the first step"
PREVENTED = "cannot happen"
WARNS = "warns, and the report keeps the warning"

TRAIN = ()  # flags of a run that trains, instead of --check
MISTAKES = "utils.config.source.Source.mistake"
NOT_PRINTED = "exit code 0, but it did not print"  # how Done.tells fails where a run went on without a word

# Imported before any check is switched off: a module imported meanwhile would keep what replaces the check.
for top in ("utils", *FOLDERS.values()):
    for path in sorted((ROOT / top).rglob("*.py")):
        if path.name not in ("train.py", "__init__.py"):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


@dataclass
class Case:
    """One row of the table: what the user did, what TRL's own script does then, and what happens here."""

    row: str
    user: str
    trl: str
    ours: str


CASES: list[Case] = []


def nothing(*_, **__):
    """Replaces a check that is switched off."""


def case(
    row: str,
    user: str,
    trl: str,
    ours: str,
    *checks: str | tuple[str, object],
    without_it: str | tuple[str, ...] = NOT_PRINTED,
):
    """Make two tests of a function that takes the stage, and a row of the table.

    Args:
        checks: what prevents or reports the mistake, as dotted names; (name, replacement) where `nothing` will not do.
        without_it: how the case fails without them, as a part of the exception's text. By default the run ends well
            and the message is missing; anything else is stated: an assertion of the case, TRL's error, our next check.
            One of several, where TRL fails differently on rows that it finds in its cache.
    """
    CASES.append(Case(row, user, trl, ours))

    def make(function: Callable) -> Callable:
        @pytest.mark.parametrize("checked", [True, False], ids=[row, f"{row} without its check"])
        def test(stage, checked):
            if checked:
                function(stage)
                return
            for check in checks:
                switch_off(stage.monkeypatch, *(check if isinstance(check, tuple) else (check, nothing)))
            try:
                function(stage)
            except Exception as error:
                expected = (without_it,) if isinstance(without_it, str) else without_it
                if not any(text in f"{type(error).__name__}: {error}" for text in expected):
                    raise
            else:
                pytest.fail("it passes without its check")

        return test

    return make


def switch_off(monkeypatch, check, replacement):
    """Replace what a dotted name says in every module that imported it, and take it out of the tuples of checks."""
    path, _, name = check.rpartition(".")
    if path.split(".")[-1][0].isupper():  # a method of a class
        module, _, owner = path.rpartition(".")
        monkeypatch.setattr(vars(importlib.import_module(module))[owner], name, replacement)
        return
    original = vars(importlib.import_module(path))[name]
    for module in [module for key, module in sys.modules.items() if key.split(".")[0] in ("utils", *FOLDERS.values())]:
        for key, value in list(vars(module).items()):
            if key == name and value is original:
                monkeypatch.setattr(module, key, replacement)
            elif callable(original) and isinstance(value, tuple) and original in value:
                monkeypatch.setattr(module, key, tuple(part for part in value if part is not original))


def config_of(stage, text, method="sft", drop=()):
    """The checked config of a run.yaml, without a run."""
    classes = {"sft": (SFTConfig, RecipeConfig), "dpo": (DPOConfig, DPORecipe), "grpo": (GRPOConfig, OnlineRLRecipe)}
    return parse_config(read_config("", ["--config", str(stage.yaml(method, text, drop))]), *classes[method])


# A dialogue that ends on what a tool returned.
CALL_AND_RESULT = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "calculator", "arguments": {"a": 1}}}]},
    {"role": "tool", "name": "calculator", "content": "19"},
]
