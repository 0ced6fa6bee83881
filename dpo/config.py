"""What DPO adds to the config: choices and rules that TRL checks too late or not at all, and one default."""

from dataclasses import dataclass
from typing import ClassVar

from utils.config import RecipeConfig, Source

SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # the losses that read label_smoothing


@dataclass
class DPORecipe(RecipeConfig):
    """It has no fields of its own; the rest is DPOConfig's."""

    MEASURES_KL: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, tuple]] = {  # trl 1.16, dpo_trainer.py
        "loss_type": (
            "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
            "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
        ),
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    }  # fmt: skip
    FINDINGS: ClassVar[dict[str, str]] = {
        "swapped_sides": "chosen has a lower score than rejected, by the rows' own scores",
        "length_bias": "chosen is systematically longer or shorter than rejected",
    }

    @staticmethod
    def check_values(source: Source, values: dict, fields: dict) -> None:
        losses, weights = values.get("loss_type", ["sigmoid"]), values.get("loss_weights")
        if values.get("label_smoothing") and not SMOOTHED & set(losses):
            source.mistake("label_smoothing", f"has no effect with {', '.join(losses)}. Write loss_type: robust")
        if weights and len(weights) != len(losses):
            source.mistake("loss_weights", f"has {len(weights)} numbers for {len(losses)} losses. Write one for each")

    @staticmethod
    def set_defaults(values: dict) -> None:
        if not values.get("use_peft") and not values.get("sync_ref_model"):
            # TRL would hold a second model in memory; an adapter is simply switched off.
            values.setdefault("precompute_ref_log_probs", True)
