"""What SFT adds to the config: the findings of its preflight."""

from dataclasses import dataclass
from typing import ClassVar

from utils.config import RecipeConfig


@dataclass
class SFTRecipe(RecipeConfig):
    """It has no fields of its own; the rest is SFTConfig's."""

    FINDINGS: ClassVar[dict[str, str]] = {
        "no_supervised_tokens": "rows have no supervised tokens",
        "mask_without_effect": "a mask is set but masks nothing",
        "prompts_trained": "the loss includes the prompts, not only the answers",
        "wrapped_packing": "packed examples attend to each other",
    }
