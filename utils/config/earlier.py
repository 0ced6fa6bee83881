"""What the same command means where something is there already: begin, go on, nothing to do, or refused.

For a recipe's folder, and for the outputs and journals of data preparation.
"""

from collections.abc import Container, Iterator
from typing import Literal

from utils.config.source import UserError


def earlier_state(
    earlier: dict | None, now: dict, *, finished: bool, refusal: str, fix: str, free: Container[str] = ()
) -> Literal["new", "going on", "finished"]:
    """Compare the settings of an earlier run with those of this command.

    Args:
        earlier: None where there was no run.
        finished: whether the earlier run came to its end.
        refusal: the first sentence of the message if a setting changed.
        fix: its last.
        free: settings that may differ.

    Raises UserError with each setting that changed.
    """
    if earlier is None:
        return "new"
    if lines := list(changes(earlier, now, free)):
        raise UserError(f"{refusal}. What has changed:\n" + "\n".join(f"  {line}" for line in lines) + f"\n{fix}")
    return "finished" if finished else "going on"


def changes(earlier: dict, now: dict, free: Container[str] = ()) -> Iterator[str]:
    """`key: before -> now` for each setting that differs; a mapping's settings one by one."""
    for key in sorted(earlier.keys() | now.keys()):
        before, after = earlier.get(key), now.get(key)  # null says no more than no line
        if key in free or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from changes(before, after)
        else:
            yield f"{key}: {earlier.get(key, '(not set)')} -> {now.get(key, '(not set)')}"
