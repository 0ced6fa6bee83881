"""Functions and classes that a config names: ours by their names, a user's by their dotted paths."""

import importlib
import operator
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

from utils.config.source import ROOT, UserError

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def choose(key: str, name: str, functions: dict[str, Callable], where: str) -> Callable:
    """One of our own functions. Raises UserError with all of their names if there is none of this one."""
    if name not in functions:
        kind = {"tools": "tool"}.get(key, "reward")
        raise UserError(f"{key}: {name} is not a {kind} of {where}. There are: {', '.join(functions)}")
    return functions[name]


def import_dotted(key: str, name: str) -> Callable:
    """What a dotted path names. Raises UserError if it cannot be imported or called."""
    module, _, function = name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module of the user's, in the folder where the recipe is started
    try:
        found = operator.attrgetter(function)(importlib.import_module(module))
    except Exception as error:  # the user's module: whatever it raises, it cannot be used
        raise UserError(
            f"{key}: {name} cannot be imported. Start where {module} can be found. {describe_error(error)}"
        ) from error
    if not callable(found):
        raise UserError(f"{key}: {name} is {found!r}, which is not a function")
    return found


def describe_error(error: BaseException) -> str:
    """What a user's own code raised, ending with its place: `KeyError: 'answer' at my_rewards.py:22, in score`.

    The place is the innermost frame that is neither a library's nor ours, if there is one.
    """
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    ours = [str(ROOT / folder) for folder in ("utils", "data_prep")]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        method = path.is_relative_to(ROOT) and (path.parent / "train.py").is_file() and path.name != "train.py"
        if not frame.filename.startswith((*LIBRARIES, *ours, "<")) and not method:
            return f"{text} at {Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
    return text
