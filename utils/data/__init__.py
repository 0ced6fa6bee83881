"""Rows, from files or the hub to what a trainer is given: checked, mixed, and split by a hash of their prompts.

The recipes call `load_splits`; preflight, evaluation and data preparation read rows by the functions of rows.py, the
one place that knows TRL's row formats. It never tokenizes, and never changes a row's content.
"""

from utils.data.rows import (
    BadRow,
    Messages,
    RowParts,
    answer_texts,
    describe_row,
    is_held_out,
    labelled_turns,
    message_text,
    messages_text,
    prompt_key,
    questions_of,
    row_fault,
    split_pair,
    split_prompt,
)
from utils.data.splits import fingerprint, load_rows, load_splits, prepare_rows

__all__ = [
    "BadRow", "Messages", "RowParts", "answer_texts", "describe_row", "fingerprint", "is_held_out", "labelled_turns",
    "load_rows", "load_splits", "message_text", "messages_text", "prepare_rows", "prompt_key", "questions_of",
    "row_fault", "split_pair", "split_prompt",
]  # fmt: skip
