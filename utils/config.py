"""Strict config over TRL's own dataclasses: no field of TRL is mirrored here.

Every key, type, choice and range is checked against the dataclasses themselves, and all mistakes are reported
together, each with its file, line and mend.
"""

import dataclasses
import difflib
import os
import typing
from dataclasses import dataclass
from pathlib import Path

import torch
from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig, TrlParser

from utils.fields import CHOICES, RecipeConfig
from utils.findings import NAMES, Findings
from utils.moved import MIXTURES, RENAMED, what_to_write
from utils.source import ROOT, Source, UserError, find_path, missing_model
from utils.strict import check_value, raise_mistakes, unknown_key

GPUS_TO_A_PROCESS = 1  # a Trainer that sees more would split each batch among them in one process
METHODS = {SFTConfig: "sft", DPOConfig: "dpo", GRPOConfig: "grpo"}


@dataclass
class Config:
    """The checked config: ours, TRL's model fields, TRL's trainer fields, the keys that were given by name, and what
    was found on the way."""

    recipe: RecipeConfig
    model: typing.Any
    training: typing.Any
    given: dict
    source: Source
    findings: Findings

    @property
    def method(self) -> str:
        """sft, dpo or grpo."""
        return METHODS[type(self.training)]


def parse_config(source: Source, training_class: type, recipe_class: type = RecipeConfig) -> Config:
    """Check every key and value and build the dataclasses with TRL's own parser.

    Raises UserError with all mistakes at once. With no accelerator, the run is set to float32 on the CPU.
    """
    classes = (recipe_class, ModelConfig, training_class)
    hints = {name: hint for cls in classes for name, hint in typing.get_type_hints(cls).items()}
    fields = {f.name: f for cls in classes for f in dataclasses.fields(cls) if f.init}
    values = {}
    own = {f.name for f in dataclasses.fields(recipe_class)}
    for key, value in source.values.items():
        if key not in own and (mend := what_to_write(key, value)):
            name = RENAMED.get(key, key)
            if key in RENAMED and name not in fields:
                mend = f"{name}, its name today, {unknown(name, fields)}"
            source.mistake(key, f"is not used here: {mend}")
            name = RENAMED.get(key)  # a bad value is told too, even if its key has moved
        elif key in fields:
            name = key
        else:
            source.mistake(key, unknown(key, fields))
            name = None
        if name in fields:
            try:
                choices = fields[name].metadata.get("choices") or CHOICES[METHODS[training_class]].get(name)
                checked = check_value(name, value, hints[name], choices)
                if name == key:
                    values[key] = value if checked == value else checked  # 5 stays 5 in a field of floats
            except ValueError as error:
                source.mistake(key, str(error))
    check_together(source, values)
    if training_class is DPOConfig and values.get("label_smoothing"):
        losses = set(values.get("loss_type", ["sigmoid"]))
        if not losses & {"robust", "exo_pair", "aot", "aot_unpaired"}:
            source.mistake("label_smoothing", f"has no effect with {', '.join(losses)}. Write loss_type: robust")
    for name in values.get("model_init_kwargs") or {}:
        if name in ("dtype", "torch_dtype", "revision", "attn_implementation", "trust_remote_code"):
            today = {"torch_dtype": "dtype", "revision": "model_revision"}.get(name, name)
            source.mistake("model_init_kwargs", f"{name} is a key of its own. Write {today}: a line by itself")
    if training_class is DPOConfig and (weights := values.get("loss_weights")):
        losses = values.get("loss_type", ["sigmoid"])
        if len(weights) != len(losses):
            source.mistake("loss_weights", f"has {len(weights)} numbers for {len(losses)} losses. Write one for each")
    if training_class is GRPOConfig:
        check_generation(source, values, fields)
    raise_mistakes(source)
    values.setdefault("output_dir", f"outputs/{source.name}")
    given = dict(values)
    # Adam refuses whole numbers for its betas.
    values = {key: float(value) if hints[key] is float else value for key, value in values.items()}
    try:
        recipe, model, training = TrlParser(classes).parse_dict(resolve(source, values, training_class))
    except (ValueError, ImportError, OSError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        # Rules between TRL's own fields, and files that they name.
        said = " ".join(str(error).split())
        raise UserError(f"{source.path.name}: TRL refuses these values: {said or type(error).__name__}") from None
    if training.n_gpu > GPUS_TO_A_PROCESS:
        raise UserError(
            f"{training.n_gpu} GPUs are visible to one process. Write: accelerate launch --config_file "
            f"configs/accelerate/ddp.yaml --num_processes {training.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    return Config(recipe, model, training, given, source, Findings())


def unknown(key: str, fields: dict) -> str:
    """What to say of a key that no field has."""
    others = [cls.__name__ for cls in METHODS if key in {f.name for f in dataclasses.fields(cls)}]
    said = unknown_key(key, fields)
    return f"is a key of {' and '.join(others)} alone. Remove it" if others and "did you mean" not in said else said


def check_together(source: Source, values: dict) -> None:
    """Rules between keys."""
    given = {MIXTURES.get(key, RENAMED.get(key, key)) for key in source.values}
    if "model_name_or_path" not in given:
        source.mistakes.append(f"{source.path.name}: model_name_or_path: is missing. Write the model to start from")
    if ("dataset_name" in given) == ("datasets" in given):
        source.mistakes.append(f"{source.path.name}: dataset_name: give either dataset_name or datasets")
    for part in values.get("datasets") or []:
        unknown = set(part) - {"path", "name", "split", "data_files", "columns", "fraction"}
        if unknown or "path" not in part:
            allowed = "must have path, and may have name, split, data_files, columns, fraction"
            source.mistake("datasets", f"{part} {allowed}")
    if values.get("heldout_name") and values.get("heldout_fraction"):
        source.mistake("heldout_fraction", "heldout_name is given too. Remove one")
    evaluates = values.get("eval_strategy", "no") != "no" or values.get("eval_on_start")
    if evaluates and not (values.get("heldout_name") or values.get("heldout_fraction")):
        key = "eval_strategy" if "eval_strategy" in values else "eval_on_start"
        source.mistake(key, "there are no rows to evaluate on. Write heldout_fraction: 0.02, or heldout_name")
    for key in ("load_in_4bit", "load_in_8bit"):
        if values.get(key) and not values.get("use_peft"):
            source.mistake(key, "quantised weights cannot be trained. Write use_peft: true, which trains an adapter")
    for name in values.get("eval_guards") or {}:
        if name not in (measured := [*(values.get("eval_metrics") or []), "heldout_loss", "kl", "answer_tokens"]):
            source.mistake("eval_guards", f"{name!r} is not measured. Write one of {', '.join(measured)}")
    revision = str(values.get("model_revision", "main"))
    pinned = len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)
    if values.get("trust_remote_code") and not pinned:
        source.mistake("trust_remote_code", "runs code of the model's owner. Pin model_revision to a full commit hash")
    for name in values.get("accept") or []:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6)
            mend = f"did you mean {near[0]}?" if near else f"write one of: {', '.join(NAMES)}"
            source.mistake("accept", f"there is no finding {name!r}; {mend}")
    if missing := missing_model(source, values.get("model_name_or_path")):
        source.mistake("model_name_or_path", missing)


def check_generation(source: Source, values: dict, fields: dict) -> None:
    """GRPO: the completions of one generation make whole groups, and continuous batching casts no weights."""
    names = ["per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "steps_per_generation"]
    names.append("generation_batch_size")
    if any(name in source.values and name not in values for name in names):
        return  # a bad value was told already
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
            f"one generation makes {batch} completions ({made}), which is no multiple of num_generations = {group}. "
            f"Write {key}: {nearest(valid, whole or rows)}" + (f", or num_generations: {groups}" if groups else ""),
        )
    cycle = steps * values.get("num_iterations", 1)  # batches that one generation serves
    saves, strategy = values.get("save_steps", fields["save_steps"].default), values.get("save_strategy", "steps")
    if strategy == "steps" and saves >= 1 and saves * accumulated % cycle:
        valid = [n for n in range(1, int(saves) + cycle + 1) if n * accumulated % cycle == 0]
        source.where.setdefault("save_steps", source.path.name)
        source.mistake(
            "save_steps",
            f"{saves:g} falls between the steps of one generation, which no checkpoint holds: a run that goes on from "
            f"there would make another one. Write save_steps: {nearest(valid, int(saves))}",
        )
    if values.get("use_vllm") and values.get("use_transformers_continuous_batching"):
        source.mistake("use_vllm", "use_transformers_continuous_batching is another backend. Keep one of them")
    casts = values.get("use_transformers_continuous_batching") and values.get("bf16") is not False
    if casts and values.get("dtype") != "bfloat16":
        source.mistake(
            "use_transformers_continuous_batching",
            "with bf16 it casts the float32 weights to bfloat16 in place and for good, so small steps are lost. "
            "Write bf16: false; or dtype: bfloat16, to train in bfloat16 knowingly",
        )


def nearest(valid: list[int], wanted: int) -> str:
    """The valid numbers next below and next above, as `4 or 8`."""
    below, above = (
        max((n for n in valid if n <= wanted), default=None),
        min((n for n in valid if n >= wanted), default=None),
    )
    return " or ".join(str(n) for n in (below, above) if n is not None)


def resolve(source: Source, values: dict, training_class: type) -> dict:
    """Absolute paths, defaults that TRL has otherwise, and what a machine without an accelerator needs."""
    values = dict(values)
    for key in ("model_name_or_path", "dataset_name", "heldout_name", "chat_template", "deepspeed"):
        if isinstance(values.get(key), str) and (path := find_path(source, key, values[key])):
            values[key] = str(path)
    base = Path.cwd() if source.where.get("output_dir") == "command line" else ROOT
    values["output_dir"] = str(base / values["output_dir"])
    values.setdefault("include_num_input_tokens_seen", "non_padding")  # counted in checkpoints, so kept by a resume
    values.setdefault("logging_nan_inf_filter", False)  # it would write the last good loss in place of a NaN
    if not torch.accelerator.is_available():
        values |= {"use_cpu": True, "bf16": False, "fp16": False}
        values.pop("tf32", None)
    elif not values.get("bf16", True) and not values.get("fp16") and "dtype" not in values:
        values["dtype"] = "float32"
    quantised = values.get("load_in_4bit") or values.get("load_in_8bit")
    if values.get("use_peft") and "dtype" not in values and (quantised or torch.accelerator.is_available()):
        values["dtype"] = "bfloat16"  # the frozen base; TRL would hold it in float32, at twice the memory
    if values.get("use_peft") and "lora_target_modules" not in values and "lora_target_parameters" not in values:
        values["lora_target_modules"] = ["all-linear"]  # TRL's default is q_proj and v_proj alone
    if training_class is DPOConfig and not values.get("use_peft") and not values.get("sync_ref_model"):
        values.setdefault(
            "precompute_ref_log_probs", True
        )  # TRL would hold a second model; an adapter is switched off
    return values
