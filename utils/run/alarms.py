"""Alarms: what goes wrong during training, reported when it happens, with its cause and a fix.

An alarm is read off the trainer's log history, which checkpoints keep, so a resumed run has the alarms of a run left
alone. One of them stops the run: a loss or gradient that is not finite, before the step that would spread it.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from utils.config import UserError
from utils.files import say

LESS_IS_BETTER = ("heldout_loss", "kl", "answer_tokens")
WINDOW = 5  # logs that must agree before an alarm is raised


class TrainingStopped(UserError):
    """A loss, gradient or weight is not finite."""

    def __init__(self, step: int, text: str) -> None:
        super().__init__(f"Training stopped: {text}")
        self.alarm = Alarm("not_finite", step, text)


@dataclass
class Alarm:
    """What went wrong, from which step on, and what to do."""

    name: str
    step: int
    text: str


def find_alarms(logs: list[dict]) -> list[Alarm]:
    """The alarms of a run so far, each once, from the trainer's log history."""
    return [alarm for rule in RULES if (alarm := rule(logs))]


def series(logs: list[dict], key: str) -> list[tuple[int, float]]:
    """(step, value) of every log that has the key."""
    return [(log["step"], log[key]) for log in logs if log.get(key) is not None]


def means(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Mean of the first and of the last WINDOW values."""
    values = [value for _, value in points]
    return statistics.fmean(values[:WINDOW]), statistics.fmean(values[-WINDOW:])


def stays_above(points: list[tuple[int, float]], limit: float) -> int | None:
    """The step at which WINDOW values in a row were at or above a limit."""
    for i in range(len(points) - WINDOW + 1):
        if all(value >= limit for _, value in points[i : i + WINDOW]):
            return points[i + WINDOW - 1][0]
    return None


def loss_spike(logs: list[dict]) -> Alarm | None:
    points = [] if series(logs, "reward") else series(logs, "loss")  # a policy's loss has no level of its own
    for i in range(WINDOW, len(points)):
        step, loss = points[i]
        usual = statistics.median(value for _, value in points[max(0, i - 10) : i])
        if loss > 2 * usual + 0.5:
            return Alarm(
                "loss_spike",
                step,
                f"the loss rose from {usual:.3f} to {loss:.3f}: a step too large, or rows unlike the others. Lower "
                "learning_rate, raise warmup_steps, or look at the rows of that step",
            )
    return None


def overfitting(logs: list[dict]) -> Alarm | None:
    points = series(logs, "eval_loss")
    for i in range(3, len(points) + 1):
        best_step, best = min(points[:i], key=lambda point: point[1])
        (_, earlier), (step, last) = points[i - 2 : i]
        if min(earlier, last) > 1.05 * best:
            return Alarm(
                "overfitting",
                step,
                f"the held-out loss rose from {best:.3f} (step {best_step}) to {last:.3f}, so the model is "
                "memorising its rows. Train fewer steps, or on more rows",
            )
    return None


def rewards_not_finite(logs: list[dict]) -> Alarm | None:
    for name in sorted(
        {name for log in logs for name in log if name.startswith("rewards/") and name.endswith("/mean")}
    ):
        for step, score in series(logs, name):
            if not math.isfinite(score):
                return Alarm(
                    "rewards_not_finite",
                    step,
                    f"{name.split('/')[1]} gave an infinite score, and its groups have no gradient. Correct the "
                    "function, and look at the completions of that step",
                )
    return None


def zero_advantages(logs: list[dict]) -> Alarm | None:
    if step := stays_above(series(logs, "frac_reward_zero_std"), 0.9):
        return Alarm(
            "zero_advantages",
            step,
            "all completions of nearly every group get the same reward, so there is no gradient. Take harder or "
            "easier prompts, raise temperature or num_generations, or correct the reward",
        )
    return None


def clipped_completions(logs: list[dict]) -> Alarm | None:
    if step := stays_above(series(logs, "completions/clipped_ratio"), 0.9):
        return Alarm(
            "clipped_completions",
            step,
            "nearly every completion is cut at max_completion_length, before its answer. Raise it, or start from a "
            "model that ends its answers",
        )
    return None


def entropy_collapsed(logs: list[dict]) -> Alarm | None:
    points = series(logs, "entropy") if series(logs, "reward") else []
    for i in range(2 * WINDOW, len(points) + 1):
        first, last = means(points[:i])
        if last < 0.1 * first:
            return Alarm(
                "entropy_collapsed",
                points[i - 1][0],
                f"the entropy of the completions fell from {first:.3f} to {last:.3f}: the model tries one answer "
                "only and has stopped learning. Lower learning_rate, raise temperature or epsilon_high, or give "
                "entropy_coef",
            )
    return None


def likelihoods_falling(logs: list[dict]) -> Alarm | None:
    chosen, rejected = series(logs, "logps/chosen"), series(logs, "logps/rejected")
    for i in range(2 * WINDOW, len(chosen) + 1):
        (first, last), (first_rejected, last_rejected) = means(chosen[:i]), means(rejected[:i])
        if last < first - max(2.0, 0.2 * abs(first)) and last_rejected < first_rejected:
            return Alarm(
                "likelihoods_falling",
                chosen[i - 1][0],
                f"the chosen answers grow less likely (log-probability {first:.1f} to {last:.1f}) along with the "
                "rejected ones: the model leaves both for answers that nobody rated. Lower learning_rate, raise "
                "beta, or, with pairs, add sft to loss_type (loss_type: [sigmoid, sft])",
            )
    return None


def margins_exploding(logs: list[dict]) -> Alarm | None:
    if step := stays_above(series(logs, "rewards/margins"), 10.0):
        return Alarm(
            "margins_exploding",
            step,
            "the reward margins are over 10, where the loss is 0 and the model far from its reference. Train fewer "
            "steps, lower learning_rate, or raise beta",
        )
    return None


def reward_hacking(logs: list[dict]) -> Alarm | None:
    rewards, names = series(logs, "reward"), {name for log in logs for name in log if name.startswith("heldout/")}
    for name in sorted(names - {"heldout/prompts"}):
        heldout, prompts = series(logs, name), series(logs, "heldout/prompts")
        for i in range(2, len(heldout) + 1):
            step, score = heldout[i - 1]
            until, best = [point for point in rewards if point[0] <= step], max(value for _, value in heldout[:i])
            # Two standard errors of a difference of shares; for other scores as good a guess as any.
            noise = 2 * math.sqrt(2 * max(0.05, best * (1 - best)) / prompts[0][1])
            if len(until) >= 2 * WINDOW and score < best - noise and means(until)[1] > means(until)[0] + 0.05:
                first, last = means(until)
                return Alarm(
                    "reward_hacking",
                    step,
                    f"the training reward rose from {first:.2f} to {last:.2f} while {name.removeprefix('heldout/')} "
                    f"on held-out prompts fell from {best:.2f} to {score:.2f}: the reward is being gamed, or the "
                    "prompts memorised. Read the completions, and correct the reward",
                )
    return None


def score_fell(logs: list[dict], change: dict[str, dict]) -> list[Alarm]:
    """After training: a held-out score that fell (p < 0.05), worse where the training reward rose.

    Args:
        change: {score: {"value", "p_value"}}, as utils/evaluation gives it.
    """
    rewards, step = series(logs, "reward"), max((log.get("step", 0) for log in logs), default=0)
    rose = len(rewards) >= 2 * WINDOW and means(rewards)[1] > means(rewards)[0] + 0.05
    fell = {name: c["value"] for name, c in change.items() if name not in LESS_IS_BETTER and c["p_value"] < 0.05}
    found = []
    for name, value in fell.items():
        if value < 0:
            found.append(
                Alarm(
                    "reward_hacking" if rose else "score_fell",
                    step,
                    f"{name} on held-out prompts fell by {-value:.3f}{' while the training reward rose' * rose}: "
                    f"read the transcripts of lost answers. {'Correct the reward, or lower' if rose else 'Lower'} "
                    "learning_rate, or train fewer steps",
                )
            )
    return found


def guard_broken(logs: list[dict], change: dict[str, dict], guards: dict[str, float]) -> list[Alarm]:
    """After training: a metric of `eval_guards` that got worse by more than it may (loss, KL, length: that rose)."""
    step, found = max((log.get("step", 0) for log in logs), default=0), []
    for name, allowed in guards.items():
        if name not in change:
            continue  # no held-out row is measured by it
        worse = change[name]["value"] if name in LESS_IS_BETTER else -change[name]["value"]
        if worse > allowed:
            found.append(
                Alarm(
                    "guard_broken",
                    step,
                    f"{name} got worse by {worse:.3f}, and eval_guards allows {allowed:g}: what had to stay the same "
                    "did not. Lower learning_rate, raise beta, train fewer steps, or add rows of what has to stay",
                )
            )
    return found


RULES = (
    loss_spike, overfitting, rewards_not_finite, zero_advantages, clipped_completions, entropy_collapsed,
    likelihoods_falling, margins_exploding, reward_hacking,
)  # fmt: skip


class AlarmCallback(TrainerCallback):
    """Reports alarms as they come, and stops training before a step that is not finite."""

    def __init__(self) -> None:
        self.reported: set[str] = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if args.fp16:
            return  # its scaler skips such steps by itself
        gradients = [p.grad for p in model.parameters() if p.grad is not None]  # none here under DeepSpeed
        if gradients and not all_finite(gradients):
            bad = next(
                name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            )
            self.stop(
                args, state.global_step + 1, f"the gradient is not finite (first in {bad}), and the step was not taken"
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save and not all_finite(model.parameters()):
            self.stop(args, state.global_step, "the weights are not finite, which no checkpoint may keep")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite(logs.get("loss", 0.0)) and not args.fp16:
            self.stop(args, state.global_step, f"the loss is {logs['loss']}")
        for alarm in find_alarms(state.log_history):
            if alarm.name not in self.reported:
                self.reported.add(alarm.name)
                say("ALARM", f"{alarm.name} (step {alarm.step}): {alarm.text}")

    def stop(self, args: TrainingArguments, step: int, what: str) -> None:
        kept = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        where = f"The newest good checkpoint is {kept[-1].name}" if kept else "No checkpoint was written before it"
        raise TrainingStopped(
            step,
            f"at step {step} {what}: every weight would be NaN from there on. {where}. "
            "Lower learning_rate, set max_grad_norm: 1.0, or look at the rows of that step; then --start_over",
        )


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    flags = [tensor.isfinite().all() for tensor in tensors]
    whole = [flag.full_tensor() if isinstance(flag, torch.distributed.tensor.DTensor) else flag for flag in flags]
    return bool(torch.stack(whole).all())
