"""Answers of a model to prompts, with tools and environments where there are any.

The evaluation, online RL's pass rates and data preparation call it; its turns are TRL's token for token. It never
scores an answer, and what a tool raises is given to the model, never to the caller.
"""

from utils.generation.dialogues import (
    NEUTRAL,
    Dialogue,
    answer_prompts,
    begin_dialogue,
    complete,
    cut_at_stop,
    encode_prompt,
    generate,
    stop_tokens,
    template_settings,
)
from utils.generation.tools import Scoring, Toolbox, call_tools, load_toolbox, load_tools

__all__ = [
    "NEUTRAL", "Dialogue", "Scoring", "Toolbox", "answer_prompts", "begin_dialogue", "call_tools", "complete",
    "cut_at_stop", "encode_prompt", "generate", "load_toolbox", "load_tools", "stop_tokens", "template_settings",
]  # fmt: skip
