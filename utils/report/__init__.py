"""What a run did to the model, for programs (metrics.json) and for people (report.html, README.md, curves.png).

The recipes call `write_report` at the end, and `report_if_stopped` around training. Nothing is measured here: the
report shows what evaluation, preflight and alarms found. All text of models and data is escaped.
"""

from utils.report.completions import dialogue_text
from utils.report.report import report_if_stopped, write_report

__all__ = ["dialogue_text", "report_if_stopped", "write_report"]
