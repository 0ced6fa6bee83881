"""Our own fields, and what is known of everybody else's: keys that moved, ranges, variables that may be set."""

from dataclasses import dataclass, field

# The variables that `env:` may set: where caches live, which device is seen, how libraries log. Keys and tokens are
# not among them: a config is committed, a key never is.
ENV_NAMES = {
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "NCCL_DEBUG", "TOKENIZERS_PARALLELISM", "WANDB_PROJECT", "WANDB_MODE",
    "TRACKIO_DIR",
}  # fmt: skip

# Keys of older versions and of other repositories' YAMLs -> what says the same today.
MOVED = {
    "evaluation_strategy": "write eval_strategy",
    "max_seq_length": "write max_length",
    "torch_dtype": "write dtype",
    "warmup_ratio": "write warmup_steps: a value under 1 is a share of all steps",
    "no_cuda": "write use_cpu",
    "overwrite_output_dir": "a run goes on or is refused by itself; give --start_over to begin again",
    "resume_from_checkpoint": "remove it: the same command goes on from the newest whole checkpoint by itself",
    "max_prompt_length": "remove it: filter long prompts in to_training_row, or raise max_length",
    "tokenizer": "remove it: the tokenizer is the model's; chat_template names another template",
    "tokenizer_name_or_path": "remove it: the tokenizer is the model's; chat_template names another template",
    "chat_template_path": "write chat_template: a name that TRL ships (qwen3) or a .jinja file",
    "use_flash_attention_2": "write attn_implementation: flash_attention_2",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "preprocessing_num_workers": "write dataset_num_proc",
    "dataset_mixer": "write datasets: a list of {path, split, fraction}",
    "dataset_mixture": "write datasets: a list of {path, split, fraction}",
    "dataset_splits": "write dataset_train_split and heldout_split",
    "dataset_test_split": "write heldout_name and heldout_split",
    "test_split_size": "write heldout_fraction: the split is made by a hash of the prompt",
    "dataset_streaming": "remove it: rows are read from memory-mapped files, not streamed",
    "streaming": "remove it: rows are read from memory-mapped files, not streamed",
    "push_to_hub_model_id": "write hub_model_id",
    "push_to_hub_token": "remove it and run `hf auth login`: a token does not belong in a config",
    "hub_token": "remove it and run `hf auth login`: a token does not belong in a config",
    "per_gpu_train_batch_size": "write per_device_train_batch_size",
    "per_gpu_eval_batch_size": "write per_device_eval_batch_size",
    "save_safetensors": "remove it: safetensors is the only format",
    "logging_dir": "remove it: the folder is the tracker's own setting",
    "reference_free": "remove it: it is gone from TRL",
    "do_train": "remove it: a recipe trains and evaluates",
    "do_eval": "remove it: a recipe trains and evaluates",
    "do_predict": "remove it: a recipe trains and evaluates",
    "pad_token": "remove it: the tokenizer's own pad token is used",
}

# Least and greatest value of the numbers that a run cannot do with outside of them.
RANGES = {
    "per_device_train_batch_size": (1, None), "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None), "max_length": (1, None), "num_train_epochs": (1e-9, None),
    "learning_rate": (0, 1), "warmup_steps": (0, None), "weight_decay": (0, 1), "max_grad_norm": (0, None),
    "adam_beta1": (0, 0.9999999), "adam_beta2": (0, 0.9999999), "logging_steps": (1e-9, None),
    "save_steps": (1e-9, None), "eval_steps": (1e-9, None), "save_total_limit": (1, None), "seed": (0, 2**32 - 1),
    "lora_r": (1, None), "lora_alpha": (1, None), "lora_dropout": (0, 0.9999999), "dataset_num_proc": (1, None),
    "heldout_fraction": (0, 0.5), "eval_prompts": (0, None), "eval_max_new_tokens": (1, None),
    "dataloader_num_workers": (0, None), "label_smoothing_factor": (0, 0.9999999),
}  # fmt: skip

# What may differ when the same run is asked for again: nothing that weights or figures could feel.
FREE_TO_CHANGE = {
    "output_dir", "report_to", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo", "log_level",
    "dataset_num_proc",
}  # fmt: skip
# What may also differ while the run is unfinished: how it is measured and kept (out of memory in an evaluation).
FREE_UNTIL_DONE = {
    "per_device_eval_batch_size", "eval_metrics", "eval_prompts", "eval_max_new_tokens", "merge_adapter",
    "save_total_limit",
}  # fmt: skip


@dataclass
class RecipeConfig:
    """Our own fields, shared by all recipes; everything else is TRL's."""

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
    eval_prompts: int = field(
        default=200, metadata={"help": "How many held-out prompts are answered before and after. 0: none."}
    )
    eval_max_new_tokens: int = field(default=256, metadata={"help": "Length limit of those answers, in tokens."})
    check: bool = field(
        default=False, metadata={"help": "Check config, data and template, print the arithmetic, and stop."}
    )
    start_over: bool = field(
        default=False, metadata={"help": "Move an earlier run in output_dir aside and begin again."}
    )
