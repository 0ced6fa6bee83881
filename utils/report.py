"""What a run did to the model, for machines (metrics.json) and for people (report.html, README.md, curves.png)."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

from rich.table import Table

from utils.alarms import Alarm, TrainingStopped, find_alarms, guard_broken, score_fell
from utils.completions import html_completions
from utils.config import Config
from utils.curves import draw_curves
from utils.evaluation import Evaluation, compare
from utils.files import show, write_atomically
from utils.preflight import Preflight
from utils.rollouts import scores_of
from utils.run import Run
from utils.terminal import console, is_main_process, say

EXPLAINED = {
    "heldout_loss": "loss a supervised token of the held-out rows",
    "answer_tokens": "length of the greedy answers in tokens",
    "kl": "KL(model || model before) a token, in nats, along its own greedy answers",
    "logp_chosen": "log-probability of the held-out chosen answers",
    "logp_rejected": "of the rejected ones",
    "reward_margin": "implicit reward of chosen less that of rejected (0 before, by definition)",
    "reward_accuracy": "share of held-out pairs whose margin is above 0",
}
TRANSCRIPTS = 24  # in the report; all of them are in evaluation/*.json


@contextlib.contextmanager
def report_if_stopped(run: Run, config: Config, trainer, checked: Preflight, before: Evaluation) -> Iterator[None]:
    """If an alarm stops the training within, write the report of what there is, then let the run end."""
    try:
        yield
    except TrainingStopped as stop:
        write_report(run, config, trainer, checked, before, None, stop.alarm)
        raise


def write_report(
    run: Run,
    config: Config,
    trainer,
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
        logs = [*logs, {"step": trainer.state.global_step} | scores_of(after.rows)]
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


def training_figures(trainer, logs: list[dict]) -> dict:
    seconds = max((log.get("seconds", 0.0) for log in logs), default=0.0)
    tokens = int(trainer.state.num_input_tokens_seen)
    losses = [log["loss"] for log in logs if "loss" in log]
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def table_rows(metrics: dict) -> list[list[str]]:
    """metric, before, after, change, p and n, as text."""
    rows = []
    for name, after in (metrics["after"] or {}).items():
        before, change = metrics["before"][name], metrics["change"][name]
        p = "p < 0.001" if change["p_value"] < 0.001 else f"p = {change['p_value']:.3f}"
        cells = [
            "{} ({} to {})".format(*(digits(m[key]) for key in ("value", "low", "high"))) for m in (before, after)
        ]
        guard = f" (guard {metrics['guards'][name]:g})" if name in metrics["guards"] else ""
        rows.append(
            [
                name + guard,
                *cells,
                f"{change['value']:+.3f}" if abs(change["value"]) < 10 else f"{change['value']:+.1f}",
                p,
                str(after["n"]),
            ]
        )
    return rows


def digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def legend(metrics: dict) -> str:
    """What the table's figures are, but for the scores, which bear the names of their functions."""
    return "; ".join(f"{name}: {text}" for name, text in EXPLAINED.items() if name in (metrics["after"] or {}))


HEADS = ["metric", "before (95%)", "after (95%)", "change", "paired test", "n"]


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


def shorten(text: str, most: int = 240) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= most else text[:most] + " …"


def prompt_text(prompt: list[dict] | str) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['content']}" if m["role"] == "user" else f"[{m['role']}] {m['content']}" for m in prompt)


def choose(before: Evaluation, after: Evaluation, most: int) -> list[tuple[dict, dict]]:
    """Transcripts worth reading first: one each of lost, gained, still wrong and kept, round and round."""
    groups: dict[tuple, list] = {(True, False): [], (False, True): [], (False, False): [], (True, True): []}
    for first, last in zip(before.rows, after.rows, strict=True):
        scored = [(first["scores"][name] > 0, last["scores"][name] > 0) for name in list(first["scores"])[:1]]
        groups[scored[0] if scored else (False, False)].append((first, last))
    chosen: list[tuple[dict, dict]] = []
    while len(chosen) < most and any(groups.values()):
        chosen += [group.pop(0) for group in groups.values() if group]
    return chosen[:most]


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


def html_report(
    run: Run, config: Config, metrics: dict, checked: Preflight, before: Evaluation, after: Evaluation
) -> str:
    """report.html: one file, no network. All text of models and data is escaped."""
    picture = base64.b64encode((run.folder / "curves.png").read_bytes()).decode()
    facts = json.loads((run.folder / "run.json").read_text())
    cards = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table_rows(metrics))
    transcripts = "".join(html_transcript(first, last) for first, last in choose(before, after, TRANSCRIPTS))
    example = "".join(f"<mark>{escape(t)}</mark>" if trained else escape(t) for t, trained in checked.example)
    about = {
        "command": " ".join(facts["command"]),
        "commit": facts["git_commit"] or "not in git",
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        "hardware": ", ".join(f"{name} {value}" for name, value in facts["hardware"].items()),
        "rows": ", ".join(f"{name} {count:,} ({facts['data'][name]})" for name, count in facts["rows"].items()),
        "training": ", ".join(f"{name} {value}" for name, value in metrics["train"].items()),
    }
    folder = Path(__file__).parent
    return Template((folder / "report.html").read_text(encoding="utf-8")).substitute(
        style=(folder / "page.css").read_text(encoding="utf-8"),
        title=escape(run.folder.name),
        base=escape(config.given["model_name_or_path"]),
        config_name=escape(config.source.path.name),
        heads="".join(f"<th>{escape(head)}</th>" for head in HEADS),
        legend=escape(legend(metrics)),
        cards=cards or f'<tr><td colspan="{len(HEADS)}">{escape(no_figures(metrics))}</td></tr>',
        warnings=html_warnings(metrics),
        curves=picture,
        completions=html_completions(run.folder),
        transcripts=transcripts or "<p>There are no answers to compare.</p>",
        shown=min(TRANSCRIPTS, len(after.rows)),
        answered=len(after.rows),
        facts=html_table(checked.facts),
        example=example,
        about=html_table(about),
        config=escape((run.folder / "config.yaml").read_text()),
    )


def no_figures(metrics: dict) -> str:
    return (
        "training was stopped: nothing was measured after it" if metrics["after"] is None else "nothing was held out"
    )


def html_warnings(metrics: dict) -> str:
    """Findings and alarms, on top of the report; an accepted finding stays visible."""
    items = []
    for alarm in metrics["alarms"]:
        items.append(("alarm", f"step {alarm['step']}", alarm))
    for finding in metrics["findings"]:
        items.append(("accepted" if finding["accepted"] else "warning", "preflight", finding))
    if not items:
        return ""
    rows = "".join(
        f'<tr class="{kind}"><th>{kind}<br>{item["name"]}</th><td>{escape(item["text"])}</td><td>{when}</td></tr>'
        for kind, when, item in items
    )
    return f'<h2>What to look at</h2><div class="scroll"><table class="warnings">{rows}</table></div>'


def html_table(facts: dict[str, str]) -> str:
    return "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(text))}</td></tr>" for name, text in facts.items())


def html_transcript(first: dict, last: dict) -> str:
    def side(name: str, row: dict) -> str:
        scores = " ".join(
            f'<span class="{"good" if score > 0 else "bad"}">{escape(metric)} {score:g}</span>'
            for metric, score in row["scores"].items()
        )
        ending = "" if row["stopped"] else ' <span class="bad">cut at the length limit</span>'
        return f"<div><h4>{name} {scores}{ending}</h4><pre>{escape(row['completion'])}</pre></div>"

    return (
        f'<article><pre class="prompt">{escape(prompt_text(first["prompt"]))}</pre>'
        f'<div class="pair">{side("before", first)}{side("after", last)}</div>'
        f"<details><summary>reference</summary><pre>{escape(first['reference'])}</pre></details></article>"
    )
