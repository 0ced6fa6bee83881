"""Strict config over TRL's own dataclasses: no field of TRL is mirrored here.

Every key, type, choice and range is checked against the dataclasses themselves, and all mistakes are reported
together, each with its file, line and fix. TRL and PyTorch are imported only here, after the YAML has been read.
"""

import dataclasses
import difflib
import typing
from dataclasses import dataclass
from pathlib import Path

from utils.config.fields import REFUSED, RecipeConfig
from utils.config.findings import NAMES, Findings
from utils.config.hub import missing_model
from utils.config.legacy_keys import name_today, what_to_write
from utils.config.schema import check_value, field_types, members_of, raise_mistakes, unknown_key
from utils.config.source import ROOT, Source, UserError, local_path

if typing.TYPE_CHECKING:
    from transformers import TrainingArguments
    from trl import ModelConfig

# Of model_init_kwargs -> their own keys.
MODEL_KEYS: dict[str, str | None] = {"torch_dtype": "dtype", "revision": "model_revision"}
MODEL_KEYS |= dict.fromkeys(("dtype", "attn_implementation", "trust_remote_code"))
GPUS_PER_PROCESS = 1  # a Trainer that sees more would split each batch among them in one process


Recipe = typing.TypeVar("Recipe", bound=RecipeConfig, covariant=True)


@dataclass
class Config(typing.Generic[Recipe]):
    """The checked config.

    Attributes:
        recipe: our own fields.
        model: TRL's ModelConfig.
        training: the trainer's own config, such as SFTConfig.
        given: the values that the user wrote, checked.
        source: the YAML file and the flags.
        findings: what is found during the run, by name.
    """

    recipe: Recipe
    model: "ModelConfig"
    training: "TrainingArguments"
    given: dict
    source: Source
    findings: Findings


def parse_config(source: Source, training_class: type, recipe_class: type[RecipeConfig] = RecipeConfig) -> Config:
    """Check every key and value and build the dataclasses with TRL's own parser.

    Raises UserError with all mistakes at once. With no accelerator, the run is set to float32 on the CPU.
    """
    from trl import ModelConfig, TrlParser

    classes = (recipe_class, ModelConfig, training_class)
    hints = {name: hint for cls in classes for name, hint in field_types(cls, recipe_class.CHOICES).items()}
    fields = {f.name: f for cls in classes for f in dataclasses.fields(cls) if f.init}
    values = check_keys(source, hints)
    check_together(source, values, NAMES | recipe_class.FINDINGS)
    recipe_class.check_values(source, values, fields)
    raise_mistakes(source)
    values.setdefault("output_dir", f"outputs/{source.name}")
    given = dict(values)
    # Adam refuses whole numbers for its betas.
    values = {key: float(value) if members_of(hints[key]) == (float,) else value for key, value in values.items()}
    values = resolve(source, values)
    recipe_class.set_defaults(values)
    try:
        recipe, model, training = TrlParser(classes).parse_dict(values)
    except (ValueError, ImportError, OSError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        # rules between TRL's own fields, and files that they name
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source.path.name}: TRL rejects these values: {reason}") from None
    if training.n_gpu > GPUS_PER_PROCESS:
        raise UserError(
            f"{training.n_gpu} GPUs are visible to one process. Write: accelerate launch --config_file "
            f"configs/accelerate/ddp.yaml --num_processes {training.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    return Config(recipe, model, training, given, source, Findings(recipe_class.FINDINGS))


def check_keys(source: Source, hints: dict[str, type]) -> dict:
    """The values whose key and value are right; a mistake is added to the source for every other one."""
    values = {}
    for key, value in source.values.items():
        name = key
        if key not in hints or key in REFUSED:
            fix = what_to_write(key, value)
            name = name_today(key)  # a bad value is reported too, even if its key has moved
            if fix and name != key and name not in hints:
                fix = f"{name}, its name today, {unknown(name, hints)}"
            source.mistake(key, f"is not used here: {fix}" if fix else unknown(key, hints))
        if name not in hints:
            continue
        try:
            checked = check_value(name, value, hints[name])
        except ValueError as error:
            source.mistake(key, str(error))
        else:
            if name == key:
                values[key] = value if checked == value else checked  # 5 stays 5 in a field of floats
    return values


def unknown(key: str, fields: dict) -> str:
    """What to say about a key that no field has: another trainer's, or the nearest name."""
    import trl
    from transformers import TrainingArguments

    configs = [getattr(trl, name) for name in dir(trl) if name.endswith("Config")]  # not the experimental ones
    classes = [cls for cls in configs if issubclass(cls, TrainingArguments)]
    owners = [cls.__name__ for cls in classes if key in {f.name for f in dataclasses.fields(cls)}]
    return f"is a key of {' and '.join(owners)} alone. Remove it" if owners else unknown_key(key, fields)


def check_together(source: Source, values: dict, findings: dict[str, str]) -> None:
    """Rules between keys."""
    given = {key if key in values else name_today(key) for key in source.values}
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
        source.mistake("trust_remote_code", "runs the model author's code. Pin model_revision to a full commit hash")
    for name in values.get("accept") or []:
        if name not in findings:
            near = difflib.get_close_matches(name, findings, n=1, cutoff=0.6)
            fix = f"did you mean {near[0]}?" if near else f"write one of: {', '.join(findings)}"
            source.mistake("accept", f"there is no finding {name!r}; {fix}")
    for name in values.get("model_init_kwargs") or {}:
        if name in MODEL_KEYS:
            source.mistake(
                "model_init_kwargs",
                f"{name} is a key of its own. Write {MODEL_KEYS[name] or name}: on a line of its own",
            )
    if missing := missing_model(source, values.get("model_name_or_path")):
        source.mistake("model_name_or_path", missing)


def resolve(source: Source, values: dict) -> dict:
    """Absolute paths, defaults that differ from TRL's, and what a machine without an accelerator needs."""
    import torch

    values = dict(values)
    for key in ("model_name_or_path", "dataset_name", "heldout_name", "chat_template", "deepspeed"):
        if isinstance(values.get(key), str) and (path := local_path(source, key, values[key])):
            values[key] = str(path)
    base = Path.cwd() if source.where.get("output_dir") == "command line" else ROOT
    values["output_dir"] = str(base / values["output_dir"])
    values.setdefault("include_num_input_tokens_seen", "non_padding")  # stored in checkpoints, so a resume counts on
    values.setdefault("logging_nan_inf_filter", False)  # it would log the last good loss instead of NaN
    if not torch.accelerator.is_available():
        values |= {"use_cpu": True, "bf16": False, "fp16": False}
        values.pop("tf32", None)
    elif not values.get("bf16", True) and not values.get("fp16") and "dtype" not in values:
        values["dtype"] = "float32"
    quantised = values.get("load_in_4bit") or values.get("load_in_8bit")
    if values.get("use_peft") and "dtype" not in values and (quantised or torch.accelerator.is_available()):
        values["dtype"] = "bfloat16"  # the frozen base; TRL would load it in float32, at twice the memory
    if values.get("use_peft") and "lora_target_modules" not in values and "lora_target_parameters" not in values:
        values["lora_target_modules"] = ["all-linear"]  # TRL's default is only q_proj and v_proj
    return values
