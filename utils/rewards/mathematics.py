"""Mathematical equality by math-verify, in processes of its own that are ended when they take too long.

SymPy works out whatever it is given: a completion that says 9^{9^{9}} holds the process that reads it for hours, and
no alarm interrupts a single huge multiplication. So no trainer reads such text itself.
"""

import functools
import logging
import multiprocessing
import os
from concurrent.futures import TimeoutError

from pebble import ProcessExpired, ProcessPool

ALARM = 2  # seconds after which math-verify gives up by itself
KILLED = 6  # seconds after which its process is ended
LONGEST = 1_000  # characters; no final answer is longer
MEMORY = 2**31  # bytes a process may take


def are_equal(pairs: list[tuple[str, str]]) -> list[bool]:
    """Whether each second expression (LaTeX or plain) equals its first, the gold one; not what takes too long.

    Raises ValueError if a gold expression cannot be read: no answer could equal it.
    """
    if not pairs:
        return []
    short = [pair for pair in pairs if len(pair[1]) <= LONGEST]
    found = dict(zip(short, limited(short), strict=True))
    for (gold, _), equal in found.items():
        if equal is None:
            raise ValueError(f"math-verify cannot read the gold answer {gold[-80:]!r}")
    return [bool(found.get(pair)) for pair in pairs]


def limited(pairs: list[tuple[str, str]]) -> list[bool | None]:
    """`is_equal` of each pair, False where its process had to be ended."""
    results: list[bool | None] = []
    answers = pool().map(is_equal, *zip(*pairs, strict=True), timeout=KILLED).result() if pairs else iter(())
    for _ in pairs:
        try:
            results.append(next(answers))
        except (TimeoutError, ProcessExpired, MemoryError):
            results.append(False)
    return results


@functools.cache
def pool() -> ProcessPool:
    """Started at the first answer that needs it; spawned, since a forked process would take the locks along."""
    workers = min(8, os.cpu_count() or 1)
    return ProcessPool(workers, context=multiprocessing.get_context("spawn"), initializer=limit_memory)


def limit_memory() -> None:
    """And import what is slow to import, so that no expression's time is spent on it."""
    import resource

    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def is_equal(gold: str, expression: str) -> bool | None:
    """In the process of its own. None if the gold expression is not mathematics."""
    from math_verify import verify

    if not (right := read(gold)):
        return None
    return bool(verify(right, read(expression), timeout_seconds=ALARM))


def read(expression: str) -> list:
    """What math-verify makes of an expression, written as one final answer; [] if it is not mathematics."""
    from math_verify import parse

    return parse(f"\\boxed{{{expression}}}", fallback_mode="no_fallback", parsing_timeout=ALARM)
