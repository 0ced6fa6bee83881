"""report.html: one file, no network. All text of models and data is escaped."""

import base64
import json
from html import escape
from pathlib import Path
from string import Template

from utils.config import Config
from utils.evaluation import Evaluation
from utils.preflight import Preflight
from utils.report.completions import html_completions
from utils.report.tables import HEADS, TRANSCRIPTS, choose, legend, prompt_text, table_rows
from utils.run import Run


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
