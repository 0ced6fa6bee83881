"""Our own fields, and what is known of everybody else's: ranges, variables that may be set, keys that may change."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from utils.config.source import Source

# The variables that `env:` may set: where caches live, which device is seen, how libraries log. Keys and tokens are
# not among them: a config is committed, a key never is.
ENV_NAMES = {
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "WANDB_PROJECT", "WANDB_MODE",
    "TRACKIO_DIR",
}  # fmt: skip

# Least and greatest value of the numbers that a run cannot do with outside of them.
RANGES = {
    "per_device_train_batch_size": (1, None), "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None), "max_length": (1, None), "num_train_epochs": (1e-9, None),
    "learning_rate": (0, 1), "warmup_steps": (0, None), "weight_decay": (0, 1), "max_grad_norm": (0, None),
    "adam_epsilon": (1e-30, None), "adam_beta1": (0, 0.9999999), "adam_beta2": (0, 0.9999999),
    "logging_steps": (1e-9, None),
    "save_steps": (1e-9, None), "eval_steps": (1e-9, None), "save_total_limit": (1, None), "seed": (0, 2**32 - 1),
    "lora_r": (1, None), "lora_alpha": (1, None), "lora_dropout": (0, 0.9999999), "dataset_num_proc": (1, None),
    "heldout_fraction": (0, 0.5), "eval_prompts": (0, None), "eval_max_new_tokens": (1, None),
    "dataloader_num_workers": (0, None), "label_smoothing_factor": (0, 0.9999999), "num_generations": (2, None),
    "max_completion_length": (1, None), "max_prompt_length": (1, None), "heldout_points": (0, 1000), "beta": (0, None),
    "temperature": (1e-9, None), "top_p": (1e-9, 1),
    "num_iterations": (1, None), "generation_batch_size": (1, None), "steps_per_generation": (1, None),
}  # fmt: skip

# What may differ when the same run is asked for again: nothing that weights or figures could feel.
FREE_TO_CHANGE = {
    "output_dir", "report_to", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo", "log_level",
    "dataset_num_proc",
}  # fmt: skip
# What may also differ while the run is unfinished: how it is measured and kept (out of memory in an evaluation).
FREE_UNTIL_DONE = {
    "per_device_eval_batch_size", "eval_metrics", "eval_guards", "eval_prompts", "eval_max_new_tokens",
    "merge_adapter", "save_total_limit", "accept", "heldout_points",
}  # fmt: skip


@dataclass
class RecipeConfig:
    """Our own fields, shared by all recipes; everything else is TRL's. A method that needs more has a subclass in its
    folder, with fields, choices, findings, rules and defaults of its own.
    """

    CHOICES: ClassVar[dict[str, tuple]] = {}  # of TRL's fields, where TRL accepts anything before training
    FINDINGS: ClassVar[dict[str, str]] = {}  # what only this method's preflight can find
    MEASURES_KL: ClassVar[bool] = False  # whether it trains against a reference model
    environment_factory: ClassVar[str | dict | None] = None  # online RL alone has environments

    dataset_name: str | None = field(
        default=None, metadata={"help": "Rows to train on: a .jsonl, .json, .parquet or .csv file, or a hub name."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The hub data set's configuration."})
    dataset_train_split: str = field(default="train", metadata={"help": "The hub data set's split to train on."})
    datasets: list[dict] | None = field(
        default=None,
        metadata={"help": "A mixture in place of dataset_name: a list of {path, name, split, columns, fraction}."},
    )
    heldout_name: str | None = field(
        default=None, metadata={"help": "Rows to evaluate on, never trained on: a file or a hub name."}
    )
    heldout_config: str | None = field(
        default=None, metadata={"help": "The configuration of heldout_name on the hub."}
    )
    heldout_split: str = field(default="test", metadata={"help": "The split of heldout_name, if it is a hub name."})
    heldout_fraction: float = field(
        default=0.0, metadata={"help": "Without heldout_name: the share of prompts held out, chosen by their hash."}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "For a base model without one: a template that TRL ships (qwen3, llama3) or a .jinja file."},
    )
    merge_adapter: bool = field(
        default=False, metadata={"help": "LoRA: also save the merged model, in output_dir/merged."}
    )
    eval_metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "Functions of utils/rewards.py that score greedy answers to held-out prompts."},
    )
    eval_guards: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "Metrics that may not get worse by more than this: {exact_match: 0.03}."},
    )
    eval_prompts: int = field(
        default=200, metadata={"help": "How many held-out prompts are answered before and after. 0: none."}
    )
    eval_max_new_tokens: int = field(default=256, metadata={"help": "Length limit of those answers, in tokens."})
    tools: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What the model may call: functions of utils/tools.py, or dotted paths. SFT and DPO use them to "
            "answer held-out prompts; their training rows have a column `tools`."
        },
    )
    accept: list[str] = field(
        default_factory=list,
        metadata={"help": "Findings of the preflight that may stand, by name; they stay visible in the report."},
    )
    check: bool = field(
        default=False, metadata={"help": "Check config, data and template, print the arithmetic, and stop."}
    )
    start_over: bool = field(
        default=False, metadata={"help": "Move an earlier run in output_dir aside and begin again."}
    )

    @staticmethod
    def check_values(source: "Source", values: dict, fields: dict) -> None:
        """Rules between the method's own keys; each broken one is added to `source.mistakes`."""

    @staticmethod
    def set_defaults(values: dict) -> None:
        """Defaults of the method that differ from TRL's."""
