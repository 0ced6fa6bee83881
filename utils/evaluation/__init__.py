"""What one state of the model does on held-out rows, before and after training, with intervals and paired tests.

The recipes call `evaluate` twice, the report `compare`. Answers are greedy and kept in the run's folder, so that a
resumed run does not repeat them. Nothing here trains, changes the run's random numbers, or reads a training row.
"""

from utils.evaluation.answers import SCORED_WHILE_TRAINING, answer, mean_scores, preserve_rng_state, reward_arguments
from utils.evaluation.evaluation import evaluate
from utils.evaluation.results import Evaluation, compare

__all__ = [
    "SCORED_WHILE_TRAINING", "Evaluation", "answer", "compare", "evaluate", "mean_scores", "preserve_rng_state",
    "reward_arguments",
]  # fmt: skip
