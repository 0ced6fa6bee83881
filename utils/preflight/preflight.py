"""Preflight: looks at the very rows that will be trained on, and stops a run that would go wrong before it begins.

The trainer has prepared its rows already (template, tokens, masks, truncation, packing), and these are checked. For
what truncation and packing hide, the trainer's own preparation is run once more on a sample, without a limit. Counting
is exact where it is cheap (rows, dropped rows, copies); what is costly is done on a sample, and the table says so.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from datasets import Dataset
from transformers import Trainer

from utils.config import Config, Findings, UserError
from utils.evaluation import preserve_rng_state
from utils.files import console, is_main_process, say, visible
from utils.generation import Toolbox
from utils.preflight.context import SAMPLE, PreflightContext, evenly_spread


@dataclass
class Preflight:
    """What was found: a table (`facts`) and one row as (text, trained) pieces. Findings are in config.findings."""

    facts: dict[str, str]
    example: list[tuple[str, bool]]


def open_context(
    trainer: Trainer,
    config: Config,
    train: Dataset,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    tokenize: Callable[[Trainer, Dataset], list[dict]],
) -> PreflightContext:
    """What a method's checks look at.

    Args:
        tokenize: `(trainer, rows) -> rows` with input_ids and `trained`, by the trainer's own preparation.
    """
    sample = train.select(evenly_spread(len(train), SAMPLE))
    tokenized = tokenize(without_limits(trainer), sample)
    return PreflightContext(trainer, config, train, heldout, sample.to_list(), tokenized, metrics, toolbox)


def run_checks(
    context: PreflightContext,
    checks: Iterable[Callable[[PreflightContext], None]],
    facts: Callable[[PreflightContext], dict[str, str]],
    example: Callable[[PreflightContext], list[tuple[str, bool]]],
) -> Preflight:
    """Run the checks, print a short table and one rendered row.

    Raises UserError with every finding that stops the run and is not accepted.
    """
    findings, accepted = context.config.findings, context.config.recipe.accept
    with preserve_rng_state():
        for check in checks:
            check(context)
    if len(context.trainer.train_dataset) == 0:
        stop_or_warn(findings, accepted=())  # nothing is left to accept it for
    result = Preflight(facts(context), example(context))
    for name, text in result.facts.items():
        say("preflight" if name == "rows" else "", f"{name}: {text}")
    if is_main_process():
        print_example(result.example)
    stop_or_warn(findings, accepted)
    return result


def without_limits(trainer: Trainer) -> Trainer:
    """A view of the trainer whose preparation neither cuts, drops, packs nor shuffles: a row in, its tokens out."""
    view = copy.copy(trainer)
    view.args = copy.copy(trainer.args)
    without = {"max_length": None, "shuffle_dataset": False, "dataset_num_proc": None}
    vars(view.args).update({name: value for name, value in without.items() if name in vars(view.args)})
    return view


def stop_or_warn(findings: Findings, accepted: Iterable[str]) -> None:
    """Print every finding; raise UserError with those that stop the run and were not accepted by name."""
    stopping = []
    for finding in findings:
        finding.accepted = finding.name in accepted
        if finding.stops and not finding.accepted:
            stopping.append(finding)
        else:
            say("ACCEPTED" if finding.accepted else "WARNING", f"{finding.name}: {finding.text}")
    if stopping:
        names = ", ".join(dict.fromkeys(finding.name for finding in stopping))
        raise UserError(
            "The preflight stopped this run before its first step:\n  "
            + "\n  ".join(f"{finding.name}: {finding.text}" for finding in stopping)
            + f"\nIf this is intended, accept it by name: accept: [{names}]"
        )


def print_example(example: list[tuple[str, bool]]) -> None:
    """One row on the terminal: trained tokens green, or in ⟦brackets⟧ where there is no colour."""
    console.print("           one row, trained tokens marked:", style="dim")
    for piece, trained in example:
        text = visible(piece)
        if console.color_system:
            console.print(text, end="", markup=False, style="green" if trained else "dim")
        else:
            console.print(f"⟦{text}⟧" if trained else text, end="", markup=False)
    console.print()
