"""Our own fields, and what TRL's own declarations lack: ranges, fields a recipe refuses, keys that may change."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from utils.config.source import Source

if TYPE_CHECKING:
    from transformers import TrainingArguments

# The variables that `env:` may set: where caches live, which device is seen, how libraries log. Keys and tokens are
# not among them: a config is committed, a key never is.
ENV_NAMES = {
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "WANDB_PROJECT", "WANDB_MODE",
    "TRACKIO_DIR",
}  # fmt: skip

# Fields of TRL and transformers that a recipe does not take, and why.
REFUSED = {
    "do_train": "a recipe trains and evaluates",
    "do_eval": "a recipe trains and evaluates",
    "do_predict": "a recipe trains and evaluates",
    "resume_from_checkpoint": "the same command goes on from the newest complete checkpoint by itself",
    "hub_token": "run `hf auth login`: a token does not belong in a config",
    "local_rank": "accelerate launch sets it",
    "pad_token": "the tokenizer's own pad token is used",
    "chat_template_path": "write chat_template: a name that TRL ships (qwen3) or a .jinja file",
}

# The numbers outside of which no run works. Our own fields have theirs beside them.
RANGES = {
    "per_device_train_batch_size": {"ge": 1}, "per_device_eval_batch_size": {"ge": 1}, "max_length": {"ge": 1},
    "gradient_accumulation_steps": {"ge": 1}, "dataset_num_proc": {"ge": 1}, "save_total_limit": {"ge": 1},
    "max_completion_length": {"ge": 1}, "generation_batch_size": {"ge": 1}, "steps_per_generation": {"ge": 1},
    "num_iterations": {"ge": 1}, "num_generations": {"ge": 2}, "lora_r": {"ge": 1}, "lora_alpha": {"ge": 1},
    "lora_dropout": {"ge": 0, "lt": 1}, "label_smoothing_factor": {"ge": 0, "lt": 1}, "beta": {"ge": 0},
    "adam_beta1": {"ge": 0, "lt": 1}, "adam_beta2": {"ge": 0, "lt": 1}, "adam_epsilon": {"ge": 1e-30},
    "learning_rate": {"ge": 0, "le": 1}, "weight_decay": {"ge": 0, "le": 1}, "max_grad_norm": {"ge": 0},
    "warmup_steps": {"ge": 0}, "num_train_epochs": {"gt": 0}, "logging_steps": {"gt": 0}, "save_steps": {"gt": 0},
    "eval_steps": {"gt": 0}, "dataloader_num_workers": {"ge": 0}, "seed": {"ge": 0, "lt": 2**32},
    "temperature": {"gt": 0}, "top_p": {"gt": 0, "le": 1},
}  # fmt: skip

# What may change between two starts of the same run: nothing that affects weights or figures.
FREE_TO_CHANGE = {
    "output_dir", "report_to", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo", "log_level",
    "dataset_num_proc",
}  # fmt: skip
# What may also change while the run is unfinished: how it is measured and kept (an evaluation ran out of memory, say).
FREE_UNTIL_DONE = {
    "per_device_eval_batch_size", "eval_metrics", "eval_guards", "eval_prompts", "eval_max_new_tokens",
    "merge_adapter", "save_total_limit", "accept", "heldout_points",
}  # fmt: skip


def absolute(path: str, info: ValidationInfo) -> str:
    return str(Path(info.context or "") / Path(path).expanduser()) if path else path


def existing(path: str) -> str:
    if path and not Path(path).is_file():
        raise PydanticCustomError("no_file", "there is no file {path}", {"path": path})
    return path


# A path to read or write. A relative one starts at the folder that the validation gives as its context.
OutputFile = Annotated[str, AfterValidator(absolute)]
InputFile = Annotated[OutputFile, AfterValidator(existing)]


@dataclass
class RecipeConfig:
    """Our own fields, shared by all recipes; the rest is TRL's. A method that needs more has a subclass in its folder,
    with fields, choices, findings, rules and defaults of its own.
    """

    CHOICES: ClassVar[dict[str, tuple]] = {}  # of fields whose values TRL does not check before training
    FINDINGS: ClassVar[dict[str, str]] = {}  # what only this method's preflight can find
    MEASURES_KL: ClassVar[bool] = False  # whether it trains against a reference model
    environment_factory: ClassVar[str | dict | None] = None  # only online RL has environments

    dataset_name: Annotated[
        str | None, Field(description="Rows to train on: a .jsonl, .json, .parquet or .csv file, or a hub name.")
    ] = None
    dataset_config: Annotated[str | None, Field(description="The hub data set's configuration.")] = None
    dataset_train_split: Annotated[str, Field(description="The hub data set's split to train on.")] = "train"
    datasets: Annotated[
        list[dict] | None,
        Field(description="A mixture instead of dataset_name: a list of {path, name, split, columns, fraction}."),
    ] = None
    heldout_name: Annotated[
        str | None, Field(description="Rows to evaluate on, never trained on: a file or a hub name.")
    ] = None
    heldout_config: Annotated[str | None, Field(description="The configuration of heldout_name on the hub.")] = None
    heldout_split: Annotated[str, Field(description="The split of heldout_name, if that is a hub name.")] = "test"
    heldout_fraction: Annotated[
        float,
        Field(ge=0, le=0.5, description="Without heldout_name: the share of prompts held out, chosen by their hash."),
    ] = 0.0
    chat_template: Annotated[
        str | None,
        Field(description="For a base model without one: a template that TRL ships (qwen3, llama3) or a .jinja file."),
    ] = None
    merge_adapter: Annotated[bool, Field(description="LoRA: save a merged model too, in output_dir/merged.")] = False
    eval_metrics: Annotated[
        list[str], Field(description="Functions of utils/rewards/ that score greedy answers to held-out prompts.")
    ] = field(default_factory=list)
    eval_guards: Annotated[
        dict[str, float],
        Field(description="Metrics that must not get worse by more than this: {exact_match: 0.03}."),
    ] = field(default_factory=dict)
    eval_prompts: Annotated[
        int, Field(ge=0, description="How many held-out prompts are answered before and after training; 0: none.")
    ] = 200
    eval_max_new_tokens: Annotated[int, Field(ge=1, description="Length limit of those answers, in tokens.")] = 256
    tools: Annotated[
        list[str],
        Field(
            description="What the model may call: functions of utils/generation/tools.py, or dotted paths. SFT and "
            "DPO use them to answer held-out prompts; their training rows have a column `tools`."
        ),
    ] = field(default_factory=list)
    accept: Annotated[
        list[str],
        Field(description="Preflight findings to go on with, by name; they stay visible in the report."),
    ] = field(default_factory=list)
    check: Annotated[bool, Field(description="Check config, data and template, print the arithmetic; stop.")] = False
    start_over: Annotated[bool, Field(description="Move an earlier run in output_dir aside and begin again.")] = False

    @staticmethod
    def check_values(source: Source, values: dict, fields: dict) -> None:
        """Rules between the method's own keys; each broken one is added to `source.mistakes`."""

    @staticmethod
    def set_defaults(values: dict) -> None:
        """Defaults of the method that differ from TRL's."""

    @staticmethod
    def may_stop(args: "TrainingArguments", step: int) -> bool:
        """Whether a run can resume from a checkpoint written after this step."""
        return True
