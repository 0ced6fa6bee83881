"""A run's folder and its life: new, killed and going on, finished, or refused because the config changed.

The recipes call `open_run`, then the run's `attach`, `begin` and `restore`. It writes config.yaml and run.json, shows
progress, raises alarms, and stops at a checkpoint on SIGTERM. It never evaluates and never writes a report.
"""

from utils.run.alarms import Alarm, TrainingStopped, find_alarms, guard_broken, score_fell
from utils.run.run import Run, open_run, quiet

__all__ = ["Alarm", "Run", "TrainingStopped", "find_alarms", "guard_broken", "open_run", "quiet", "score_fell"]
