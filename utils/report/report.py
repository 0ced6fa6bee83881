"""What a run did to the model, for machines (metrics.json) and for people (report.html, README.md, curves.png)."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from transformers import Trainer

from utils.config import Config
from utils.evaluation import Evaluation, compare, mean_scores
from utils.files import console, is_main_process, say, show, write_atomically
from utils.preflight import Preflight
from utils.report.curves import draw_curves
from utils.report.pages import html_report
from utils.report.tables import HEADS, choose, legend, prompt_text, shorten, table_rows, training_figures
from utils.run import Alarm, Run, TrainingStopped, find_alarms, guard_broken, score_fell


@contextlib.contextmanager
def report_if_stopped(
    run: Run, config: Config, trainer: Trainer, checked: Preflight, before: Evaluation
) -> Iterator[None]:
    """If an alarm stops the training within, write the report of what there is, then let the run end."""
    try:
        yield
    except TrainingStopped as stop:
        write_report(run, config, trainer, checked, before, None, stop.alarm)
        raise


def write_report(
    run: Run,
    config: Config,
    trainer: Trainer,
    checked: Preflight,
    before: Evaluation,
    after: Evaluation | None,
    stopped: Alarm | None = None,
) -> None:
    """Write curves.png, README.md, report.html and, last, metrics.json, whose `after` marks the run as finished.

    A run that an alarm stopped has no `after`: curves, findings, alarms and what was measured before.
    """
    if not is_main_process():
        return
    logs = trainer.state.log_history
    if after and any("heldout/prompts" in log for log in logs):
        logs = [*logs, {"step": trainer.state.global_step} | mean_scores(after.rows)]
    change = compare(before, after) if after else {}
    guards = config.recipe.eval_guards
    scores = {name: change[name] for name in config.recipe.eval_metrics if name in change and name not in guards}
    alarms_after = guard_broken(logs, change, guards) + score_fell(logs, scores)
    alarms = find_alarms(logs) + alarms_after + ([stopped] if stopped else [])
    metrics = {
        "before": before.metrics(),
        "after": after.metrics() if after else None,
        "change": change,
        "guards": guards,
        "train": training_figures(trainer, logs),
        "preflight": checked.facts,
        "findings": [vars(finding) for finding in config.findings],
        "alarms": [vars(alarm) for alarm in alarms],
        "seconds_in_all": round(time.time() - run.started, 1),
    }
    sides = (before, after) if after else (Evaluation([], [], []),) * 2
    draw_curves(logs, run.folder / "curves.png")
    write_atomically(run.folder / "report.html", html_report(run, config, metrics, checked, *sides))
    if after:
        write_atomically(run.folder / "README.md", model_card(config, metrics))
        for alarm in alarms_after:
            say("ALARM", f"{alarm.name}: {alarm.text}")
        print_summary(metrics, before, after)
    else:
        del metrics["after"]
    write_atomically(run.folder / "metrics.json", json.dumps(metrics, indent=2))
    text = "model and report are in" if after else "what was seen until then is in"
    say("done" if after else "stopped", f"{text} {show(run.folder)}: open {show(run.folder / 'report.html')}")


def print_summary(metrics: dict, before: Evaluation, after: Evaluation) -> None:
    if metrics["after"]:
        table = Table(*HEADS, show_edge=False, pad_edge=False)
        for row in table_rows(metrics):
            table.add_row(*row)
        console.print()
        console.print(table)
    for first, last in choose(before, after, 3):
        console.print()
        say("prompt", shorten(prompt_text(first["prompt"])))
        say("before", shorten(first["completion"]))
        say("after", shorten(last["completion"]))
    console.print()


def model_card(config: Config, metrics: dict) -> str:
    """The model card: a table of what was measured, the curves, and how it was made."""
    base = config.given["model_name_or_path"]
    local = Path(config.model.model_name_or_path).exists()
    front = ["---", "library_name: transformers"] + ([] if local else [f"base_model: {base}"])
    method = type(config.training).__name__.removesuffix("Config").lower()
    front += [f"tags: [trl, {method}]", "---", ""]
    lines = [f"# {Path(config.training.output_dir).name}", "", f"`{base}` after `{config.source.path.name}`.", ""]
    if metrics["after"]:
        lines += ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
        lines += ["| " + " | ".join(row) + " |" for row in table_rows(metrics)]
        lines += ["", f"{legend(metrics)}."]
    else:
        lines += ["Nothing was held out, so nothing was measured."]
    for kind in ("findings", "alarms"):
        if metrics[kind]:
            lines += ["", f"{kind.capitalize()} of the run:", ""]
            lines += [f"- `{item['name']}`: {item['text']}" for item in metrics[kind]]
    train = metrics["train"]
    lines += [
        "",
        f"Trained for {train['steps']} steps on {train['tokens']:,} tokens; loss {train['first_loss']} to "
        f"{train['last_loss']}. Held-out prompts are answered greedily; transcripts are in `evaluation/`.",
        "",
        "![curves](curves.png)",
        "",
        "`config.yaml` repeats the run; `run.json` says with which versions, data and hardware it was made.",
        "",
    ]
    return "\n".join(front + lines)
