"""What one state of the model does on held-out rows, before and after training, with intervals and paired tests.

The recipes call `evaluate` twice; the report compares. Answers are greedy and kept in the run's folder, so a resumed
run does not repeat them. It never trains, never touches the run's random numbers, and never sees a training row.
"""

from utils.evaluation.evaluation import (
    SCORED_WHILE_TRAINING,
    Evaluation,
    answer,
    compare,
    evaluate,
    mean_scores,
    preserve_rng_state,
    reward_arguments,
)

__all__ = [
    "SCORED_WHILE_TRAINING", "Evaluation", "answer", "compare", "evaluate", "mean_scores", "preserve_rng_state",
    "reward_arguments",
]  # fmt: skip
