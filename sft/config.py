"""What SFT adds to the config: the findings of its preflight."""

from dataclasses import dataclass
from typing import ClassVar

from utils.config import RecipeConfig


@dataclass
class SFTRecipe(RecipeConfig):
    """No fields of its own: everything else is SFTConfig's."""

    FINDINGS: ClassVar[dict[str, str]] = {
        "no_supervised_tokens": "rows have no token to learn from",
        "mask_without_effect": "a mask is set that masks nothing",
        "prompts_trained": "the prompts are learnt as well as the answers",
        "wrapped_packing": "packed examples see each other",
    }
