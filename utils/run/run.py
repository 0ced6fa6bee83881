"""A run's folder and its life: new, killed and going on, finished, or refused because the config changed."""

import atexit
import contextlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import datasets
import psutil
import torch
import transformers
from accelerate import PartialState
from ruamel.yaml import YAML
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState, TrainingArguments

from utils.config import FREE_TO_CHANGE, FREE_UNTIL_DONE, ROOT, Config, UserError, earlier_state
from utils.data import fingerprint
from utils.files import is_main_process, say, show, write_atomically
from utils.run.alarms import AlarmCallback
from utils.run.progress import Preemption, RunProgress

LIBRARIES = ("torch", "trl", "transformers", "datasets", "peft", "accelerate")


@dataclass
class Run:
    """A run's folder and its life.

    Attributes:
        folder: where it writes.
        checkpoint: what it goes on from; None: from the start.
        state: new, going on, start over, or check.
        started: time.time() when it was opened.
        may_stop: `(args, step) -> bool`, whether a checkpoint after this step is one to resume from.
    """

    folder: Path
    checkpoint: str | None
    state: str
    started: float
    may_stop: Callable[[TrainingArguments, int], bool]

    def attach(self, trainer: Trainer) -> None:
        """Show the trainer's progress here, in place of the library's own bar and dictionaries, raise alarms, and on
        SIGTERM write a checkpoint and stop.
        """
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        for callback in (RunProgress(), AlarmCallback(), Preemption(self.may_stop)):
            trainer.add_callback(callback)

    def restore(self, trainer: Trainer) -> bool:
        """Whether the checkpoint is of the last step; if so, the trainer is put where it was then.

        Trainer.train would take one step more (transformers 5.23 looks at max_steps only after a step).
        """
        if not self.checkpoint:
            return False
        state = TrainerState.load_from_json(str(Path(self.checkpoint, "trainer_state.json")))
        if state.global_step < state.max_steps:
            return False
        from utils import trl_internals

        trl_internals.load_finished(trainer, self.checkpoint, state)
        return True

    def begin(self, config: Config, train: datasets.Dataset, heldout: datasets.Dataset) -> None:
        """The first writing: config.yaml, and run.json with what is run, on what, with what. Secrets are left out.

        An earlier run is only ever moved aside, and only with `--start_over`. Raises UserError if a killed run would
        go on with other rows than it began with.
        """
        prints = {"train": fingerprint(train), "heldout": fingerprint(heldout)}
        path, processes = self.folder / "run.json", PartialState().num_processes
        if self.checkpoint and path.is_file():
            earlier = json.loads(path.read_text())
            if earlier["data"] != prints:
                raise UserError(
                    f"dataset_name: the rows have changed since this run was started ({earlier['data']} -> {prints}). "
                    "Put the old rows back, or add --start_over"
                )
            if (then := earlier["hardware"]["processes"]) != processes:
                raise UserError(
                    f"this run was started on {then} processes and cannot continue with the same batches on "
                    f"{processes}. Launch {then}, or add --start_over"
                )
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        facts = {
            "command": [show(Path(sys.argv[0])), *sys.argv[1:]],
            "config": config.source.path.name,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
            "git_commit": git_commit(),
            "data": prints,
            "rows": {"train": len(train), "heldout": len(heldout)},
            "seed": config.training.seed,
            "hardware": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "processes": processes,
                "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else str(accelerator),
            },
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "training_arguments": config.training.to_dict(),  # TRL hides the hub token here
        }
        if is_main_process():
            if self.state == "start over":
                say("aside", f"the earlier run was moved to {show(move_aside(self.folder))}")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "config.yaml", yaml_text(config))
            write_atomically(path, json.dumps(facts, indent=2, default=str))
        PartialState().wait_for_everyone()


def open_run(config: Config) -> Run:
    """Decide what the same command means now: begin, go on, or stop because the run is finished. Writes nothing.

    Raises UserError if the folder holds a run with another config, or files that are no run's. Exits with 0 if the run
    is finished.
    """
    quiet()
    folder, started = Path(config.training.output_dir), time.time()
    state = "check" if config.recipe.check else folder_state(folder, yaml_text(config), config.recipe.start_over)
    if state == "finished":
        say("finished", f"nothing to do: see {show(folder / 'report.html')}. To train again: --start_over")
        sys.exit(0)
    if not folder.exists():
        atexit.register(remove_if_empty, folder)  # the Trainer makes it, even for a run that is then refused
    warn_of_missing_processes(config)
    warn_of_busy_machine(config)
    if config.training.use_cpu:
        threads = torch.get_num_threads()
        say("device", f"no accelerator: training in float32 on the CPU, {threads} thread{'s' * (threads > 1)}")
    checkpoint = newest_whole_checkpoint(folder) if state == "going on" else None
    if checkpoint:
        say("resume", f"continuing from {show(checkpoint)}")
    return Run(folder, str(checkpoint) if checkpoint else None, state, started, config.recipe.may_stop)


def warn_of_missing_processes(config: Config) -> None:
    """Without GPUs, `accelerate launch --num_processes 2` starts one process and says nothing (accelerate 1.15)."""
    words: list[str] = []
    with contextlib.suppress(psutil.Error, AttributeError):  # in a container there may be no parent to be seen
        words = psutil.Process().parent().cmdline() if PartialState().num_processes == 1 else []
    for word, value in itertools.pairwise(words):
        if word == "--num_processes" and value.isdigit() and int(value) > 1:
            config.findings.add(
                "missing_processes",
                f"accelerate started 1 process, not {value}. Add --config_file configs/accelerate/ddp.yaml",
            )


def warn_of_busy_machine(config: Config) -> None:
    """PyTorch's threads wait for each other: beside another busy process a step takes 10 to 20 times as long."""
    threads = torch.get_num_threads()
    if threads == 1 or not config.training.use_cpu:
        return
    cores = psutil.cpu_count()
    busy = psutil.cpu_percent(interval=0.2) / 100 * cores
    if busy + threads > cores + 0.5:
        config.findings.add(
            "busy_machine",
            f"other processes keep {busy:.1f} of {cores} cores busy, and {threads} threads that wait for "
            "each other then run 10 to 20 times slower. Wait for them, or set OMP_NUM_THREADS=1",
        )


def folder_state(folder: Path, wanted: str, start_over: bool) -> str:
    """One of new, going on, finished and start over; UserError if this command may not write there."""
    if not folder.exists() or not any(folder.iterdir()):
        return "new"
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"output_dir: {show(folder)} holds files that are not a run of this repository's. Name another folder"
        )
    if start_over:
        return "start over"
    metrics = folder / "metrics.json"
    finished = metrics.is_file() and "after" in json.loads(metrics.read_text())
    earlier, now = (YAML(typ="safe").load(text) or {} for text in ((folder / "config.yaml").read_text(), wanted))
    return earlier_state(
        earlier,
        now,
        finished=finished,
        refusal=f"output_dir: {show(folder)} holds a run with another config",
        fix="Write another output_dir, undo the change, or add --start_over (the earlier run is moved aside).",
        free=FREE_TO_CHANGE if finished else FREE_TO_CHANGE | FREE_UNTIL_DONE,
    )


def yaml_text(config: Config) -> str:
    """The config as resolved from file and flags: given to `--config`, it repeats the run."""
    values = {key: value for key, value in config.given.items() if key not in {"check", "start_over"}}
    for key in ("model_name_or_path", "dataset_name", "heldout_name", "chat_template", "output_dir"):
        # Paths of flags start elsewhere than paths of files.
        if config.source.where.get(key) == "command line" and values[key]:
            absolute = os.path.abspath(values[key])
            values[key] = absolute if key == "output_dir" or os.path.exists(absolute) else values[key]
    text = StringIO()
    text.write(f"# Resolved from {config.source.path.name} and the command line. Running it again repeats the run.\n")
    YAML(typ="safe", pure=True).dump(json.loads(json.dumps(values)), text)
    return text.getvalue()


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: trainer_state.json, the last file, is there and reads."""
    numbered = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(numbered, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            say("resume", f"{show(path)} is incomplete and was skipped")
            continue
        if state["global_step"] == int(path.name.split("-")[1]):
            return path
    return None


def remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def move_aside(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    shutil.move(folder, aside)
    return aside


def git_commit() -> str | None:
    """The commit that the recipe ran from, marked if files differ from it; None outside of git."""
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" (with uncommitted changes)" if changed else "")


def quiet() -> None:
    """One line a phase is the recipe's own voice; the libraries speak up only when something is wrong."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # a bar written to a file leaves a thousand lines
