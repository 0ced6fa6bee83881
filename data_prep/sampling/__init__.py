"""Responses to prompts, by OpenAI-compatible servers or by a local model, kept in a journal as they come.

generate.py samples with it, the judge of best_of_k.py sends its questions to the same servers. It never scores or
selects a response, and imports torch only for a local model.
"""

from data_prep.sampling.prompts import read_prompts
from data_prep.sampling.replies import COMPLETE, split_thinking
from data_prep.sampling.requests import load_tools, sample
from data_prep.sampling.server import FREE, Failed, Refused, ServerConfig, Servers

__all__ = [
    "COMPLETE", "FREE", "Failed", "Refused", "ServerConfig", "Servers", "load_tools", "read_prompts", "sample",
    "split_thinking",
]  # fmt: skip
