"""What is a right answer: one verifier for rewards, best-of-K selection and evaluation.

The recipes call `load_metrics` and `load_rewards`; functions.py is the file to add a reward to, and is imported only
when a config names one. A reward is a pure function in TRL's signature: it never loads a model, trains or writes.
"""

from utils.rewards.answers import answer_text, final_number
from utils.rewards.loading import (
    NOT_ARGUMENTS,
    call_reward,
    find_reward,
    is_shipped,
    load_metrics,
    load_rewards,
    reward_columns,
    score_answers,
)

__all__ = [
    "NOT_ARGUMENTS",
    "answer_text",
    "call_reward",
    "final_number",
    "find_reward",
    "is_shipped",
    "load_metrics",
    "load_rewards",
    "reward_columns",
    "score_answers",
]
