"""Writes the JSON schemas of configs/*.yaml beside this file; each YAML names its own in its first line.

python docs/schema/make.py
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # finds utils/, wherever it is started from

from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, SFTConfig

from data_prep.best_of_k import BestOfKConfig
from data_prep.filter import FilterConfig
from data_prep.generate import GenerateConfig
from dpo.config import DPORecipe
from kto.config import KTORecipe
from online_rl.config import OnlineRLRecipe
from utils.config import RecipeConfig, json_schema

CONFIGS = {
    "sft": (RecipeConfig, ModelConfig, SFTConfig),
    "dpo": (DPORecipe, ModelConfig, DPOConfig),
    "kto": (KTORecipe, ModelConfig, KTOConfig),
    "grpo": (OnlineRLRecipe, ModelConfig, GRPOConfig),
    "generate": (GenerateConfig,),
    "best_of_k": (BestOfKConfig,),
    "filter": (FilterConfig,),
}


def schema_text(name: str) -> str:
    return json.dumps(json_schema(f"configs/{name}_*.yaml", *CONFIGS[name]), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name in CONFIGS:
        Path(__file__).with_name(f"{name}.json").write_text(schema_text(name), encoding="utf-8")
