"""report.html and the model card, rendered by jinja2 from the figures and texts of a run.

The page fetches nothing, and every text of a model or a data set in it is escaped.
"""

import base64
import json
from pathlib import Path

import jinja2

from utils.config import Config
from utils.evaluation import Evaluation
from utils.files import visible
from utils.preflight import Preflight
from utils.report.completions import best_and_worst
from utils.report.tables import HEADS, TRANSCRIPTS, choose, legend, prompt_text, table_rows
from utils.run import Run

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    finalize=visible,  # applied to every value
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["prompt_text"] = prompt_text


def html_report(
    run: Run, config: Config, metrics: dict, checked: Preflight, before: Evaluation, after: Evaluation | None
) -> str:
    """The page of a run; of one that was stopped (`after` is None), what there is."""
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
        summary(run, config, metrics),
        curves=base64.b64encode((run.folder / "curves.png").read_bytes()).decode(),
        quarters=best_and_worst(run.folder),
        transcripts=choose(before, after, TRANSCRIPTS) if after else [],
        answered=len(before.rows),
        facts=checked.facts,
        example=checked.example,
        about=about,
        config=(run.folder / "config.yaml").read_text(),
    )


def model_card(run: Run, config: Config, metrics: dict) -> str:
    """README.md of the model's folder: what was measured, the curves, and how to repeat the run."""
    base = config.model.model_name_or_path
    return TEMPLATES.get_template("model_card.md").render(
        summary(run, config, metrics),
        base_model=None if Path(base).exists() else config.given["model_name_or_path"],
        method=type(config.training).__name__.removesuffix("Config").lower(),
        train=metrics["train"],
    )


def summary(run: Run, config: Config, metrics: dict) -> dict:
    return {
        "title": run.folder.name,
        "base": config.given["model_name_or_path"],
        "config_name": config.source.path.name,
        "stopped": "after" not in metrics,
        "heads": HEADS,
        "rows": table_rows(metrics),
        "legend": legend(metrics),
        "findings": metrics["findings"],
        "alarms": metrics["alarms"],
    }
