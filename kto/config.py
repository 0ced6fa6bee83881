"""What KTO adds to the config: rules that TRL checks too late or not at all, findings of its preflight, a default."""

from dataclasses import dataclass
from typing import ClassVar

from utils.config import RecipeConfig, Source


@dataclass
class KTORecipe(RecipeConfig):
    """No fields of its own: everything else is KTOConfig's."""

    MEASURES_KL: ClassVar[bool] = True
    FINDINGS: ClassVar[dict[str, str]] = {
        "one_label": "all rows have the same label: nothing to tell apart",
        "unbalanced_labels": "the labels' numbers, times their weights, are far from equal",
        "contradictory_labels": "the same answer to the same prompt is labelled good and bad",
        "flipped_labels": "good answers are wrong, and bad ones right, by the rows' own gold answers",
        "bad_references": "a held-out answer that is labelled bad would serve as the gold answer",
    }

    @staticmethod
    def check_values(source: Source, values: dict, fields: dict) -> None:
        for key in ("desirable_weight", "undesirable_weight"):
            if values.get(key, 1) <= 0:
                source.mistake(key, f"{values[key]} leaves one label without a loss. Write a number above 0")
        if values.get("loss_type", "kto") != "kto":
            return
        if values.get("per_device_train_batch_size") == 1:
            source.mistake(
                "per_device_train_batch_size",
                "the KL term is estimated from the other rows of a batch. Write at least 2, better 8",
            )
        if values.get("train_sampling_strategy", "sequential") != "sequential":
            source.mistake(
                "train_sampling_strategy",
                "the KL term is prepared for batches in the rows' order, which is shuffled by `seed` here. Remove it",
            )

    @staticmethod
    def set_defaults(values: dict) -> None:
        if not values.get("use_peft") and not values.get("sync_ref_model"):
            # TRL would hold a second model in memory; an adapter is simply switched off.
            values.setdefault("precompute_ref_log_probs", True)
