"""Preflight: looks at the very rows that will be trained on, and stops a run that would go wrong before it begins.

The trainer has prepared its rows already (template, tokens, masks, truncation, packing): they are looked at. For
what truncation and packing hide, the trainer's own preparation is run once more on a sample, without a limit. Counting
is exact where it is cheap (rows, dropped rows, copies); what is costly is done on a sample, and the table says so.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

from datasets import Dataset

from utils import checks_dpo, checks_grpo, checks_sft
from utils.checks import SAMPLE, SHARED, Look, evenly
from utils.config import Config
from utils.evaluation import draws_kept
from utils.findings import Findings
from utils.source import UserError
from utils.terminal import console, is_main_process, say

METHODS = {"sft": checks_sft, "dpo": checks_dpo, "grpo": checks_grpo}


@dataclass
class Preflight:
    """What was found: a table (`facts`) and one row as (text, trained) pieces. Findings are in config.findings."""

    facts: dict[str, str]
    example: list[tuple[str, bool]]


def preflight(trainer, config: Config, train: Dataset, heldout: Dataset, metrics: dict) -> Preflight:
    """Check the trainer's rows against the rows that it was given; print a short table and one rendered row.

    Args:
        trainer: a TRL trainer, not trained yet.
        train: the rows as they were given to it.
        heldout: the rows to evaluate on, likewise.
        metrics: what `load_metrics` gave.

    Raises UserError with every finding that stops the run and is not accepted.
    """
    method = METHODS[config.method]
    raw = train.select(evenly(len(train), SAMPLE))
    look = Look(trainer, config, train, heldout, raw.to_list(), method.prepare(unlimited(trainer), raw), metrics)
    with draws_kept():
        for check in (*SHARED, *method.CHECKS):
            check(look)
    if len(trainer.train_dataset) == 0:
        judge(config.findings, accepted=())  # nothing is left to accept it for
    facts, example = method.facts(look), method.example(look)
    for name, text in facts.items():
        say("preflight" if name == "rows" else "", f"{name}: {text}")
    if is_main_process():
        show_example(example)
    judge(config.findings, config.recipe.accept)
    return Preflight(facts, example)


def unlimited(trainer):
    """A view of the trainer whose preparation neither cuts, drops, packs nor shuffles: a row in, its tokens out."""
    view = copy.copy(trainer)
    view.args = copy.copy(trainer.args)
    without = {"max_length": None, "shuffle_dataset": False, "dataset_num_proc": None}
    vars(view.args).update({name: value for name, value in without.items() if name in vars(view.args)})
    return view


def judge(findings: Findings, accepted: Iterable[str]) -> None:
    """Say every finding; raise UserError with those that stop the run and were not accepted by name."""
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
            + f"\nIf it is meant so, it can be accepted by name: accept: [{names}]"
        )


def show_example(example: list[tuple[str, bool]]) -> None:
    """One row on the terminal: trained tokens green, or in ⟦brackets⟧ where there is no colour."""
    console.print("           one row, trained tokens marked:", style="dim")
    for text, trained in example:
        if console.color_system:
            console.print(text, end="", markup=False, style="green" if trained else "dim")
        else:
            console.print(f"⟦{text}⟧" if trained else text, end="", markup=False)
    console.print()
