"""The end of a run: metrics.json, curves.png, report.html and README.md, and a summary on the terminal."""

import contextlib
import json
import time
from collections.abc import Iterator

from rich.table import Table
from transformers import Trainer

from utils.config import Config
from utils.evaluation import Evaluation, compare, mean_scores
from utils.files import console, is_main_process, say, show, write_atomically
from utils.preflight import Preflight
from utils.report.curves import draw_curves
from utils.report.pages import html_report, model_card
from utils.report.tables import HEADS, choose, prompt_text, shorten, table_rows, training_figures
from utils.run import Alarm, Run, TrainingStopped, find_alarms, guard_broken, score_fell


@contextlib.contextmanager
def report_if_stopped(
    run: Run, config: Config, trainer: Trainer, checked: Preflight, before: Evaluation
) -> Iterator[None]:
    """If an alarm stops the training inside, report what there is before the run ends."""
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
    """Write curves.png, report.html, README.md and, last, metrics.json, whose `after` marks the run as finished.

    A run that an alarm stopped (`after` is None) gets no model card, and no `after` in metrics.json.
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
        **({"after": after.metrics()} if after else {}),
        "change": change,
        "guards": guards,
        "train": training_figures(trainer, logs),
        "preflight": checked.facts,
        "findings": [vars(finding) for finding in config.findings],
        "alarms": [vars(alarm) for alarm in alarms],
        "seconds_in_all": round(time.time() - run.started, 1),
    }
    draw_curves(logs, run.folder / "curves.png")
    write_atomically(run.folder / "report.html", html_report(run, config, metrics, checked, before, after))
    if after:
        write_atomically(run.folder / "README.md", model_card(run, config, metrics))
        for alarm in alarms_after:
            say("ALARM", f"{alarm.name}: {alarm.text}")
        print_summary(metrics, before, after)
    write_atomically(run.folder / "metrics.json", json.dumps(metrics, indent=2))
    written = "the model and its report are in" if after else "what was measured until then is in"
    say("done" if after else "stopped", f"{written} {show(run.folder)}: open {show(run.folder / 'report.html')}")


def print_summary(metrics: dict, before: Evaluation, after: Evaluation) -> None:
    if metrics["change"]:
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
