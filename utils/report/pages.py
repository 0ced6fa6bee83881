"""report.html: one file that fetches nothing; all text of models and data is escaped."""

import base64
import json
from pathlib import Path

import jinja2

from utils.config import Config
from utils.evaluation import Evaluation
from utils.preflight import Preflight
from utils.report.completions import best_and_worst
from utils.report.tables import HEADS, TRANSCRIPTS, choose, legend, prompt_text, table_rows, visible
from utils.run import Run

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=visible,  # of every value
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["prompt_text"] = prompt_text


def html_report(
    run: Run, config: Config, metrics: dict, checked: Preflight, before: Evaluation, after: Evaluation
) -> str:
    facts = json.loads((run.folder / "run.json").read_text())
    about = {
        "command": " ".join(facts["command"]),
        "commit": facts["git_commit"] or "not in git",
        "versions": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        "hardware": ", ".join(f"{name} {value}" for name, value in facts["hardware"].items()),
        "rows": ", ".join(f"{name} {count:,} ({facts['data'][name]})" for name, count in facts["rows"].items()),
        "training": ", ".join(f"{name} {value}" for name, value in metrics["train"].items()),
    }
    return TEMPLATES.get_template("report.html").render(
        title=run.folder.name,
        base=config.given["model_name_or_path"],
        config_name=config.source.path.name,
        heads=HEADS,
        rows=table_rows(metrics),
        legend=legend(metrics),
        finished=metrics["after"] is not None,
        alarms=metrics["alarms"],
        findings=metrics["findings"],
        curves=base64.b64encode((run.folder / "curves.png").read_bytes()).decode(),
        quarters=best_and_worst(run.folder),
        transcripts=choose(before, after, TRANSCRIPTS),
        answered=len(after.rows),
        facts=checked.facts,
        example=checked.example,
        about=about,
        config=(run.folder / "config.yaml").read_text(),
    )
