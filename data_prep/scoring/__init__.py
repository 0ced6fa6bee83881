"""Scores of responses, by reward functions, reward models or an LLM judge, kept in journals beside the data set.

best_of_k.py calls `score_all`. It never selects a response, and imports transformers only for a reward model.
"""

from data_prep.scoring.judge import JudgeConfig
from data_prep.scoring.scoring import score_all

__all__ = ["JudgeConfig", "score_all"]
