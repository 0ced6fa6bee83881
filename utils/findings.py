"""What is found wrong, or worth saying, before and during a run: each finding by a name that `accept:` can take."""

from dataclasses import dataclass

# name -> what it is about. A finding that stops a run can be accepted by its name: `accept: [truncated_rows]`.
NAMES = {
    # every method
    "heldout_in_training": "training rows ask a held-out prompt (they are left out)",
    "near_copies": "training rows nearly ask a held-out prompt",
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
    # SFT
    "no_supervised_tokens": "rows have no token to learn from",
    "mask_without_effect": "a mask was asked for that masks nothing",
    "prompts_trained": "the prompts are learnt as well as the answers",
    "wrapped_packing": "packed examples see each other",
    # DPO
    "identical_pairs": "chosen and rejected are the same: no gradient (they are left out)",
    "swapped_sides": "chosen is worse than rejected by the rows' own score",
    "length_bias": "chosen is systematically longer or shorter than rejected",
    # GRPO
    "long_prompts": "prompts leave no room for a completion in the model's context (they are left out)",
    "bad_reward": "a reward function fails, or gives what is no score",
    "gold_not_best": "a right answer does not get the highest reward",
    "constant_reward": "a reward function gives every answer the same score",
    "same_reward_names": "two reward functions have one name and would be logged as one",
    "equal_rewards": "in the first rollout most groups have equal rewards: no gradient",
    "no_true_score": "nothing is measured beside the reward, so its gaming would not show",
    "clipped_completions": "in the first rollout most completions are cut at max_completion_length",
}


@dataclass
class Finding:
    """One thing found: its name of NAMES; what, where, why it matters and what to write; whether it stops the run."""

    name: str
    text: str
    stops: bool = False
    accepted: bool = False


class Findings(list):
    """All findings of a run in the order found; shown in terminal, metrics.json and report."""

    def add(self, name: str, text: str, stops: bool = False) -> None:
        assert name in NAMES, name
        self.append(Finding(name, text, stops))
