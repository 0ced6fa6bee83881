"""What is found wrong, or worth saying, before and during a run: each finding by a name that `accept:` can take."""

from dataclasses import dataclass

# name -> what it is about. A finding that stops a run can be accepted by its name: `accept: [truncated_rows]`.
NAMES = {
    "heldout_in_training": "training rows ask a held-out prompt (they are left out)",
    "near_copies": "training rows nearly ask a held-out prompt",
    "identical_pairs": "chosen and rejected are the same: no gradient (they are left out)",
    "duplicate_rows": "rows stand several times in the training data",
    "truncated_rows": "max_length cuts rows, the ends of the answers first",
    "dropped_rows": "the trainer left rows out without a word",
    "over_context": "rows may be longer than the model's context",
    "double_bos": "rows begin with two BOS tokens",
    "eos_not_trained": "the end of an answer is not trained, so the model never stops",
    "pad_is_eos": "PAD and EOS are one token, so the end of an answer is masked out",
    "template_mismatch": "the prompt is rendered otherwise in training than for generation",
    "altered_text": "the chat template changes the answers' text",
    "lost_thinking": "the chat template drops <think> from answers that are trained on",
    "lost_updates": "steps smaller than bfloat16 can hold: weights would not move",
    "no_steps": "the run would take no step",
    "out_of_memory": "the longest batch does not fit",
    "busy_machine": "other processes keep the cores busy",
    "missing_processes": "the launcher started fewer processes than asked for",
}


@dataclass
class Finding:
    """One thing found: its name of NAMES; what, where, why it matters and what to write; whether it stops the run."""

    name: str
    text: str
    stops: bool = False
    accepted: bool = False


class Findings(list):
    """All findings of a run in the order found; shown in terminal, metrics.json and report.

    Args:
        names: what can be found besides NAMES: the method's own.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        super().__init__()
        self.names = NAMES | (names or {})

    def add(self, name: str, text: str, stops: bool = False) -> None:
        assert name in self.names, name
        self.append(Finding(name, text, stops))
