"""The rows as they will be trained on, checked before the first step; a run that would go wrong stops here.

A method's checks.py calls `open_context` and `run_checks` with its own checks and those below that concern it. A check
is a function of a PreflightContext that reports what it finds by name. It reads the trainer's own tensors and never
changes a row, a weight or a random number of the run.
"""

from utils.preflight.context import (
    OFTEN,
    PreflightContext,
    describe_lengths,
    evenly_spread,
    quantile,
    token_pieces,
)
from utils.preflight.preflight import Preflight, open_context, run_checks
from utils.preflight.shared import (
    check_eos_trained,
    check_lengths,
    check_near_copies,
    check_template,
    check_tokens,
    check_updates,
)
from utils.preflight.steps import check_longest_batch, check_steps, describe_steps

__all__ = [
    "OFTEN", "Preflight", "PreflightContext", "check_eos_trained", "check_lengths", "check_longest_batch",
    "check_near_copies", "check_steps", "check_template", "check_tokens", "check_updates", "describe_lengths",
    "describe_steps", "evenly_spread", "open_context", "quantile", "run_checks", "token_pieces",
]  # fmt: skip
