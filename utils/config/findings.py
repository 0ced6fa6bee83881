"""What is wrong, or worth reporting, before and during a run: each finding has a name that `accept:` takes."""

from dataclasses import dataclass

# name -> what was found. A finding that stops a run can be accepted by its name: `accept: [truncated_rows]`.
NAMES = {
    "heldout_in_training": "training rows repeat a held-out prompt (they are left out)",
    "near_copies": "training rows come close to a held-out prompt",
    "identical_pairs": "chosen and rejected are the same: no gradient (such pairs are left out)",
    "duplicate_rows": "rows occur more than once in the training data",
    "truncated_rows": "max_length cuts rows off, the ends of the answers first",
    "dropped_rows": "the trainer silently dropped rows",
    "over_context": "rows may be longer than the model's context",
    "double_bos": "rows begin with two BOS tokens",
    "eos_not_trained": "the end of an answer is not trained, so the model never stops",
    "pad_is_eos": "PAD and EOS are the same token, so the end of an answer is masked out",
    "template_mismatch": "the prompt is rendered differently in training and in generation",
    "altered_text": "the chat template changes the text of the answers",
    "lost_thinking": "the chat template drops <think> from answers that are trained on",
    "no_supervised_tokens": "rows have no supervised tokens",
    "mask_without_effect": "a mask is set but masks nothing",
    "prompts_trained": "the loss includes the prompts, not only the answers",
    "wrapped_packing": "packed examples attend to each other",
    "lost_updates": "updates are too small for bfloat16: the weights would not change",
    "no_steps": "the run would take no steps",
    "out_of_memory": "the longest batch does not fit",
    "busy_machine": "other processes are using the cores",
    "missing_processes": "the launcher started fewer processes than requested",
}


@dataclass
class Finding:
    """One thing found: its name; what, where, why it matters and what to write; whether it stops the run."""

    name: str
    text: str
    stops: bool = False
    accepted: bool = False


class Findings(list):
    """All findings of a run, in the order found; shown in the terminal, metrics.json and the report.

    Args:
        names: the method's own findings, in addition to NAMES.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        super().__init__()
        self.names = NAMES | (names or {})

    def add(self, name: str, text: str, stops: bool = False) -> None:
        assert name in self.names, name
        self.append(Finding(name, text, stops))
