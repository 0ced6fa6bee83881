"""Online RL while it trains: what the model tried is kept, and the true score stands beside the reward."""

import statistics

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from utils.completions import Completions
from utils.config import Config
from utils.evaluation import Evaluation, answer

MOST = 100  # prompts: enough to see a score fall, few enough to cost little


def watch_rollouts(trainer, heldout: Dataset, metrics: dict, config: Config, before: Evaluation) -> None:
    """Keep the completions, and answer some held-out prompts `heldout_points` times, at equal distances in the run."""
    trainer.add_callback(Completions(trainer))
    if any(row["scores"] for row in before.rows):
        trainer.add_callback(HeldoutScores(trainer, heldout, metrics, config, before))


def scores_of(rows: list[dict]) -> dict[str, float]:
    """{"heldout/NAME": mean score} of the first prompts, the same ones every time."""
    found: dict[str, list[float]] = {}
    for row in rows[:MOST]:
        for name, score in row["scores"].items():
            found.setdefault(f"heldout/{name}", []).append(score)
    return {name: statistics.fmean(scores) for name, scores in found.items()}


class HeldoutScores(TrainerCallback):
    def __init__(self, trainer, heldout: Dataset, metrics: dict, config: Config, before: Evaluation) -> None:
        self.trainer, self.metrics, self.config, self.before = trainer, metrics, config, before
        self.heldout = heldout.select(range(min(MOST, config.recipe.eval_prompts, len(heldout))))

    def on_train_begin(self, args, state, control, **kwargs):
        points = self.config.recipe.heldout_points + 1
        self.steps = {round(state.max_steps * part / points) for part in range(1, points)}
        if state.global_step == 0:
            self.log(scores_of(self.before.rows))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step not in self.steps or state.global_step == state.max_steps:
            return
        model = self.trainer.model
        model.eval()
        with torch.inference_mode(), self.trainer.accelerator.autocast():
            rows = answer(self.trainer, self.heldout, self.metrics, self.config, trained=False)
        model.train()
        self.log(scores_of(rows))

    def log(self, scores: dict[str, float]) -> None:
        """Past GRPOTrainer.log, which would end the window of its averages, and without ending the trainer's own."""
        control = self.trainer.control
        wanted = control.should_log
        Trainer.log(self.trainer, scores | {"heldout/prompts": len(self.heldout)})
        control.should_log = wanted
