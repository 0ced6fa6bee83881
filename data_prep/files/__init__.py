"""JSONL in, JSONL out, with a manifest beside each output, and the journal by which a killed run resumes.

The scripts of data_prep/ and online_rl/pass_rate.py call it. It never reads a row's content, and an output never
appears under its name before it is whole.
"""

from data_prep.files.journal import Journal
from data_prep.files.jsonl import (
    Output,
    check_outputs,
    digest_of,
    made_from,
    open_input,
    publish,
    read_manifest,
    read_rows,
    remove_outputs,
    stop_if_done,
    weights_digest,
)

__all__ = [
    "Journal", "Output", "check_outputs", "digest_of", "made_from", "open_input", "publish", "read_manifest",
    "read_rows", "remove_outputs", "stop_if_done", "weights_digest",
]  # fmt: skip
