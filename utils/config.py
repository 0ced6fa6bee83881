"""Strict config over TRL's own dataclasses: no field of TRL is mirrored here.

Every key, type, choice and range is checked against the dataclasses themselves, and all mistakes are reported
together, each with its file, line and mend.
"""

import dataclasses
import difflib
import enum
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from trl import ModelConfig, TrlParser

from utils.fields import MOVED, RANGES, RecipeConfig
from utils.source import ROOT, FlagText, Source, UserError, find_path, looks_local


@dataclass
class Config:
    """The checked config: ours, TRL's model fields, TRL's trainer fields, and the keys that were given by name."""

    recipe: RecipeConfig
    model: typing.Any
    training: typing.Any
    given: dict
    source: Source


def parse_config(source: Source, training_class: type) -> Config:
    """Check every key and value and build the dataclasses with TRL's own parser.

    Raises UserError with all mistakes at once. With no accelerator, the run is set to float32 on the CPU.
    """
    classes = (RecipeConfig, ModelConfig, training_class)
    hints = {name: hint for cls in classes for name, hint in typing.get_type_hints(cls).items()}
    fields = {f.name: f for cls in classes for f in dataclasses.fields(cls) if f.init}
    values = {}
    for key, value in source.values.items():
        if key in MOVED:
            source.mistake(key, f"is not used here: {MOVED[key]}")
        elif key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.7)
            source.mistake(key, f"unknown key; did you mean {near[0]}?" if near else "unknown key; see --help")
        else:
            try:
                checked = check_value(key, value, hints[key], fields[key].metadata.get("choices"))
                values[key] = value if checked == value else checked  # 5 stays 5 in a field of floats
            except ValueError as error:
                source.mistake(key, str(error))
    check_together(source, values)
    if source.mistakes:
        count = len(source.mistakes)
        raise UserError(f"{count} mistake{'s' * (count > 1)} in the config:\n  " + "\n  ".join(source.mistakes))
    values.setdefault("output_dir", f"outputs/{source.name}")
    given = dict(values)
    try:
        recipe, model, training = TrlParser(classes).parse_dict(resolve(source, values))
    except (ValueError, ImportError) as error:  # rules between TRL's own fields
        raise UserError(f"{source.path.name}: {' '.join(str(error).split())}") from None
    if training.n_gpu > 1:
        raise UserError(
            f"{training.n_gpu} GPUs are visible to one process. Write: accelerate launch --config_file "
            f"configs/accelerate/ddp.yaml --num_processes {training.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    return Config(recipe, model, training, given, source)


def check_value(key: str, value: object, hint: type, choices: list | None) -> object:
    """The value in the field's type. Raises ValueError whose text says what is wrong and what to write."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    members = typing.get_args(hint) if union else (hint,)
    if isinstance(value, FlagText):
        value = read_flag_text(value, members)
    elif isinstance(value, list):
        value = [read_flag_text(item, members) if isinstance(item, FlagText) else item for item in value]
    if value is None and type(None) not in members:
        raise ValueError(f"has no value. Write {expected(members)}, or remove the key")
    enums = [m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)]
    choices = choices or [member.value for e in enums for member in e]
    if choices and value is not None and value not in [str(c) for c in choices]:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1, cutoff=0.6)
        hint_text = f"did you mean {near[0]}?" if near else f"write one of {', '.join(str(c) for c in choices)}"
        raise ValueError(f"{value!r} is not a choice; {hint_text}")
    if list in members or any(typing.get_origin(m) is list for m in members):
        value = [value] if isinstance(value, str) and str not in members else value
    try:
        value = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        quoted = isinstance(value, str) and {int, float, bool} & set(members)
        mend = ", without quotes" if quoted else ""
        raise ValueError(f"{value!r} is not {expected(members)}. Write {expected(members)}{mend}") from None
    low, high = RANGES.get(key, (None, None))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or (low is not None and value < low) or (high is not None and value > high):
            least = f"at least {1 if low == 1e-9 and int in members else 'more than 0' if low == 1e-9 else low}"
            least = least.replace("at least more", "more")
            raise ValueError(f"{value} is out of range. Write {least}" + (f" and at most {high}" if high else ""))
        if key == "max_steps" and value != -1 and value < 1:
            raise ValueError(f"{value} is out of range. Write at least 1, or -1 to count in epochs")
    return value


def read_flag_text(text: str, members: tuple) -> object:
    if str in members and not {bool, int, float} & set(members) and not text.startswith(("{", "[")):
        return str(text)
    if text.lower() == "none" and type(None) in members:  # in a field of texts, `none` is a word (report_to: none)
        return None
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise ValueError(f"{str(text)!r} cannot be read. Write {expected(members)}") from None


def expected(members: tuple) -> str:
    """A field's type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
    named = []
    for member in members:
        origin = typing.get_origin(member) or member
        word = "a list" if origin is list else words.get(origin)
        if word and word not in named:
            named.append(word)
    return " or ".join(named) or "another type"


def check_together(source: Source, values: dict) -> None:
    """Rules between keys."""
    if "model_name_or_path" not in source.values:
        source.mistakes.append(f"{source.path.name}: model_name_or_path: is missing. Write the model to start from")
    if ("dataset_name" in source.values) == ("datasets" in source.values):
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
    revision = str(values.get("model_revision", "main"))
    pinned = len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)
    if values.get("trust_remote_code") and not pinned:
        source.mistake("trust_remote_code", "runs code of the model's owner. Pin model_revision to a full commit hash")
    name = values.get("model_name_or_path")
    if isinstance(name, str) and looks_local(name) and find_path(source, "model_name_or_path", name) is None:
        base = Path.cwd() if source.where["model_name_or_path"] == "command line" else ROOT
        made_by = ROOT / "configs" / f"{Path(name).name}.yaml"
        method = {"sft": "sft", "dpo": "dpo", "grpo": "online_rl"}.get(made_by.stem.split("_")[0])
        mend = f"Make it with: python {method}/train.py --config configs/{made_by.name}" if made_by.exists() else (
            "Write the path of a model's folder"
        )  # fmt: skip
        source.mistake("model_name_or_path", f"there is no {base / name}. {mend}")


def resolve(source: Source, values: dict) -> dict:
    """Absolute paths, and on a machine without an accelerator the settings that a CPU needs."""
    values = dict(values)
    for key in ("model_name_or_path", "dataset_name", "heldout_name", "chat_template", "deepspeed"):
        if isinstance(values.get(key), str) and (path := find_path(source, key, values[key])):
            values[key] = str(path)
    base = Path.cwd() if source.where.get("output_dir") == "command line" else ROOT
    values["output_dir"] = str(base / values["output_dir"])
    values.setdefault("include_num_input_tokens_seen", "non_padding")  # counted in checkpoints, so kept by a resume
    if not torch.accelerator.is_available():
        values |= {"use_cpu": True, "bf16": False, "fp16": False}
        values.pop("tf32", None)
    elif not values.get("bf16", True) and not values.get("fp16") and "dtype" not in values:
        values["dtype"] = "float32"
    if values.get("use_peft") and "dtype" not in values and torch.accelerator.is_available():
        values["dtype"] = "bfloat16"  # the frozen base; TRL would hold it in float32, at twice the memory
    if values.get("use_peft") and "lora_target_modules" not in values and "lora_target_parameters" not in values:
        values["lora_target_modules"] = ["all-linear"]  # TRL's default is q_proj and v_proj alone
    return values
