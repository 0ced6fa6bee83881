"""Online RL while it trains: what the model tried is kept, and the true score stands beside the reward."""

from collections.abc import Callable
from pathlib import Path

import pandas
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

from online_rl.config import OnlineRLRecipe
from utils import trl_internals
from utils.config import Config
from utils.evaluation import SCORED_WHILE_TRAINING, Evaluation, answer, mean_scores
from utils.generation import Toolbox
from utils.report import dialogue_text


def watch_rollouts(
    trainer: GRPOTrainer,
    heldout: Dataset,
    metrics: dict[str, Callable],
    toolbox: Toolbox,
    config: Config[OnlineRLRecipe],
    before: Evaluation,
) -> None:
    """Keep the completions, and answer some held-out prompts `heldout_points` times, at equal distances in the run."""
    trainer.add_callback(Completions(trainer))
    if any(row["scores"] for row in before.rows):
        trainer.add_callback(HeldoutScores(trainer, heldout, metrics, toolbox, config, before))


class HeldoutScores(TrainerCallback):
    """Mean scores of the first held-out prompts, in the log beside the training reward."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        heldout: Dataset,
        metrics: dict[str, Callable],
        toolbox: Toolbox,
        config: Config[OnlineRLRecipe],
        before: Evaluation,
    ) -> None:
        self.trainer, self.metrics, self.toolbox, self.config, self.before = trainer, metrics, toolbox, config, before
        self.heldout = heldout.select(range(min(SCORED_WHILE_TRAINING, config.recipe.eval_prompts, len(heldout))))

    def on_train_begin(self, args, state, control, **kwargs):
        points = self.config.recipe.heldout_points + 1
        self.steps = {round(state.max_steps * part / points) for part in range(1, points)}
        if state.global_step == 0:
            self.log(mean_scores(self.before.rows))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step not in self.steps or state.global_step == state.max_steps:
            return
        model = self.trainer.model
        model.eval()
        with torch.inference_mode(), self.trainer.accelerator.autocast():
            rows = answer(self.trainer, self.heldout, self.metrics, self.toolbox, self.config, trained=False)
        model.train()
        self.log(mean_scores(rows))

    def log(self, scores: dict[str, float]) -> None:
        """Past GRPOTrainer.log, which would end the window of its averages, and without ending the trainer's own."""
        control = self.trainer.control
        wanted = control.should_log
        Trainer.log(self.trainer, scores | {"heldout/prompts": len(self.heldout)})
        control.should_log = wanted


def total_rewards(trainer: GRPOTrainer) -> list[float]:
    """The weighted rewards of the newest generation; a function that gave None (NaN here) has no part in the sum."""
    weights, scores = trainer.reward_weights.tolist(), trl_internals.rollout_logs(trainer)["rewards"].values()
    return [sum(w * s for w, s in zip(weights, row, strict=True) if s == s) for row in zip(*scores, strict=True)]


def equal_groups(trainer: GRPOTrainer) -> float:
    """The share of the newest generation's groups whose completions all got one reward.

    TRL's frac_reward_zero_std is 0 wherever a sum is not exact: eight times 1.2 have a spread of 1e-7, for TRL not 0.
    """
    totals, size = total_rewards(trainer), trainer.num_generations
    groups = [totals[start : start + size] for start in range(0, len(totals), size)]
    return sum(max(group) - min(group) < 1e-6 for group in groups) / len(groups)


class Completions(TrainerCallback):
    """At every log: the completions of the newest generation, of all processes, with rewards and advantages.

    As text. (TRL's log_completions keeps messages as nested columns; tool calls whose arguments differ in type would
    end the run there.)
    """

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer

    def on_log(self, args, state, control, logs=None, **kwargs):
        kept = trl_internals.rollout_logs(self.trainer)
        if "reward" not in logs or not kept["prompt"]:
            return
        state.log_history[-1]["frac_reward_zero_std"] = equal_groups(self.trainer)
        if not state.is_world_process_zero:
            return
        own = ("step", "prompt", "completion", "reward", "advantage")
        rewards = {f"rewards/{n}" if n in own else n: list(scores) for n, scores in kept["rewards"].items()}
        table = {
            "step": [state.global_step] * len(kept["prompt"]),
            "prompt": [dialogue_text(prompt) for prompt in kept["prompt"]],
            "completion": [dialogue_text(completion) for completion in kept["completion"]],
            **rewards,
            "reward": total_rewards(self.trainer),
            "advantage": list(kept["advantages"]),
        }
        folder = Path(args.output_dir, "completions")
        folder.mkdir(exist_ok=True)
        part = folder / "part"
        pandas.DataFrame(table).to_parquet(part)
        part.replace(folder / f"step-{state.global_step:06d}.parquet")
