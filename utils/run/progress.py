"""What is shown while the trainer trains, and what a polite kill does to it."""

import atexit
import signal
import sys
import time
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainingArguments

from utils.files import console, is_main_process, say


class RunProgress(TrainerCallback):
    """The progress bar: step, loss, rows and tokens a second, time left; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.logs: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()
        self.seconds_before = max((log.get("seconds", 0.0) for log in state.log_history), default=0.0)
        self.first_step, self.tokens_before = state.global_step, state.num_input_tokens_seen
        if is_main_process() and console.is_terminal:
            self.bar = Progress(
                TextColumn("[bold]train     [/bold]"), BarColumn(), TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, text="")
            self.bar.start()
            atexit.register(self.bar.stop)  # training may be stopped from within a step

    def on_log(self, args, state, control, logs=None, **kwargs):
        seconds = time.perf_counter() - self.begun
        state.log_history[-1]["seconds"] = round(self.seconds_before + seconds, 3)
        if "num_tokens" in logs:  # TRL counts from 0 again when a run goes on
            logs["num_tokens"] = state.log_history[-1]["num_tokens"] = state.num_input_tokens_seen
        if "loss" in logs:
            self.logs = logs

    def on_step_end(self, args, state, control, **kwargs):
        if not is_main_process():
            return
        seconds, steps = time.perf_counter() - self.begun, state.global_step - self.first_step
        rows = steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        tokens = state.num_input_tokens_seen - self.tokens_before
        loss = f"loss {self.logs['loss']:.4f}  " if self.logs else ""
        text = f"step {state.global_step}/{state.max_steps}  {loss}"
        text += f"{rows / seconds:,.0f} rows/s  {tokens / seconds:,.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=state.global_step, text=text)
        elif state.global_step % max(1, state.max_steps // 5) == 0:
            left = seconds / steps * (state.max_steps - state.global_step)
            say("train", f"{text}  {left:.0f} s left")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar:
            self.bar.stop()


class Preemption(TrainerCallback):
    """SIGTERM while training: finish the step, write a checkpoint, exit with 143. The same command then goes on.

    Slurm and Kubernetes send it before they kill. (Transformers' enable_jit_checkpoint saves in the middle of a step.)
    At any other time SIGTERM ends the process at once, and nothing is lost: what was measured is kept already.
    """

    requested = stopping = False

    def __init__(self, may_stop: Callable[[TrainingArguments, int], bool]) -> None:
        self.may_stop = may_stop

    def on_train_begin(self, args, state, control, **kwargs):
        self.earlier = signal.signal(signal.SIGTERM, self.request)

    def request(self, *_: object) -> None:
        self.requested = True

    def on_step_end(self, args, state, control, **kwargs):
        requested = self.requested
        if args.world_size > 1:  # all stop after the same step, whoever heard it first
            requested = reduce(torch.tensor(float(requested), device=PartialState().device), "sum").item() > 0
        if requested and self.may_stop(args, state.global_step):
            self.stopping = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self.earlier)
        if self.stopping:
            say(
                "stopped",
                f"SIGTERM: checkpoint-{state.global_step} was written; run the same command again to continue from it",
            )
            sys.exit(143)
        if self.requested:  # after the last step: there is nothing left to finish
            signal.raise_signal(signal.SIGTERM)
