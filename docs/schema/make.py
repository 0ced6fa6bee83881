"""Writes the JSON schemas of configs/*.yaml beside this file; each YAML names its own in its first line.

python docs/schema/make.py
"""

import ast
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # finds utils/, wherever it is started from

import trl

from data_prep.best_of_k import BestOfKConfig
from data_prep.filter import FilterConfig
from data_prep.generate import GenerateConfig
from utils.config import RecipeConfig, json_schema


def find_recipes() -> dict[str, tuple[str, type, type]]:
    """{how the names of its configs begin: (folder, trainer's config, our config)} of every method, read off its call
    `parse_config(source, XConfig, XRecipe)`.
    """
    found = {}
    for path in sorted(ROOT.glob("*/train.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        call = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "parse_config")
        trainer, *own = [argument.id for argument in call.args[1:] if isinstance(argument, ast.Name)]
        folder = path.parent.name
        recipe = vars(importlib.import_module(f"{folder}.config"))[own[0]] if own else RecipeConfig
        found[trainer.removesuffix("Config").lower()] = (folder, getattr(trl, trainer), recipe)
    return found


RECIPES = find_recipes()
CONFIGS: dict[str, tuple[type, ...]] = {
    "generate": (GenerateConfig,),
    "best_of_k": (BestOfKConfig,),
    "filter": (FilterConfig,),
    **{name: (recipe, trl.ModelConfig, trainer) for name, (_, trainer, recipe) in RECIPES.items()},
}


def schema_text(name: str) -> str:
    return json.dumps(json_schema(f"configs/{name}_*.yaml", *CONFIGS[name]), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name in CONFIGS:
        Path(__file__).with_name(f"{name}.json").write_text(schema_text(name), encoding="utf-8")
