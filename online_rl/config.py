"""What online RL adds to the config: rewards, tools, environments, and the arithmetic of a generation."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from utils.config import RecipeConfig, Source

if TYPE_CHECKING:
    from trl import GRPOConfig


@dataclass
class OnlineRLRecipe(RecipeConfig):
    """The fields that online RL adds."""

    MEASURES_KL: ClassVar[bool] = True
    CHOICES: ClassVar[dict[str, tuple]] = {  # trl 1.16, grpo_trainer.py
        "loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
        "scale_rewards": ("group", "batch", "none"),
        "importance_sampling_level": ("token", "sequence"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
        "vllm_mode": ("colocate", "server"),
        "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    }
    FINDINGS: ClassVar[dict[str, str]] = {
        "long_prompts": "prompts leave no room for a completion in the model's context (they are left out)",
        "bad_reward": "a reward function fails, or returns something that is not a score",
        "gold_not_best": "a correct answer does not get the highest reward",
        "constant_reward": "a reward function gives every answer the same score",
        "same_reward_names": "two reward functions have the same name and would be logged as one",
        "equal_rewards": "in the first rollout most groups have equal rewards: no gradient",
        "no_true_score": "nothing but the reward is measured, so reward hacking would not show",
        "clipped_completions": "in the first rollout most completions are cut off at max_completion_length",
    }

    reward_funcs: Annotated[
        list[str],
        Field(
            description="Functions of utils/rewards/, dotted paths (my_package.my_rewards.score), or reward models: "
            "hub names (owner/name) or folders."
        ),
    ] = field(default_factory=list)
    system_prompt: Annotated[
        str | None, Field(description="Put before every prompt of messages that has no system message of its own.")
    ] = None
    environment_factory: Annotated[  # type: ignore[misc]  # other methods have the base's class variable
        str | dict | None,
        Field(description="A class by its dotted path, as TRL takes it; or {name: class}, chosen by a row's column."),
    ] = None
    heldout_points: Annotated[
        int,
        Field(ge=0, le=1000, description="How often, during training, up to 100 held-out prompts are scored."),
    ] = 3
    max_prompt_length: Annotated[
        int | None,
        Field(ge=1, description="Prompts of more tokens are left out. By default what the model's context leaves."),
    ] = None

    @staticmethod
    def check_values(source: Source, values: dict, fields: dict) -> None:
        check_batches(source, values, fields)
        check_backends(source, values)

    @staticmethod
    def may_stop(args: "GRPOConfig", step: int) -> bool:
        """Between generations: one generation may serve several steps, and no checkpoint holds its completions."""
        return step * args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0


def check_batches(source: Source, values: dict, fields: dict) -> None:
    """The completions of one generation form whole groups, and no checkpoint falls between its steps."""
    names = ["per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "steps_per_generation"]
    names.append("generation_batch_size")
    if any(name in source.values and name not in values for name in names):
        return  # a bad value is reported already
    rows, accumulated, group, per_generation, whole = (values.get(name, fields[name].default) for name in names)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = max(1, whole // (processes * rows)) if whole else per_generation or accumulated
    batch = whole or processes * rows * steps
    made = f"generation_batch_size: {whole}" if whole else f"{processes} processes x {rows} rows x {steps} steps"
    if batch % group:
        sizes = [size for size in range(2, batch + 1) if batch % size == 0]
        groups = nearest(sizes, group)
        key, most = "generation_batch_size" if whole else names[0], 8 * max(batch, group)
        valid = [n for n in range(1, most) if processes * n * steps % group == 0]
        if whole:
            valid = [n for n in range(1, most) if n % group == 0 and n % (processes * rows) == 0]
        source.where.setdefault("num_generations", source.where.get(key, source.path.name))
        source.mistake(
            "num_generations",
            f"one generation makes {batch} completions ({made}), not a multiple of num_generations = {group}. "
            f"Write {key}: {nearest(valid, whole or rows)}" + (f", or num_generations: {groups}" if groups else ""),
        )
    cycle = steps * values.get("num_iterations", 1)  # batches that one generation serves
    saves, strategy = values.get("save_steps", fields["save_steps"].default), values.get("save_strategy", "steps")
    if strategy == "steps" and saves >= 1 and saves * accumulated % cycle:
        valid = [n for n in range(1, int(saves) + cycle + 1) if n * accumulated % cycle == 0]
        source.where.setdefault("save_steps", source.path.name)
        source.mistake(
            "save_steps",
            f"{saves:g} falls between the steps of one generation, which no checkpoint stores: a run resumed from "
            f"there would generate anew. Write save_steps: {nearest(valid, int(saves))}",
        )


def check_backends(source: Source, values: dict) -> None:
    """One generation backend, and none that casts the weights."""
    if values.get("use_vllm") and values.get("use_transformers_continuous_batching"):
        source.mistake("use_vllm", "use_transformers_continuous_batching is another backend. Keep only one")
    casts = values.get("use_transformers_continuous_batching") and values.get("bf16") is not False
    if casts and values.get("dtype") != "bfloat16":
        source.mistake(
            "use_transformers_continuous_batching",
            "with bf16 it casts the float32 weights to bfloat16 in place, for good, so small updates are lost. "
            "Write bf16: false; or dtype: bfloat16, to train in bfloat16 on purpose",
        )


def nearest(valid: list[int], wanted: int) -> str:
    """The nearest valid numbers below and above: `4 or 8`."""
    below, above = (
        max((n for n in valid if n <= wanted), default=None),
        min((n for n in valid if n >= wanted), default=None),
    )
    return " or ".join(str(n) for n in (below, above) if n is not None)
