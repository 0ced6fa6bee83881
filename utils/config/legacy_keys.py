"""Keys of older YAMLs (TRL to 0.29, transformers to 5.0, alignment-handbook, open-r1) and what says the same today."""

import json

RENAMED = {  # the same value under another name
    "evaluation_strategy": "eval_strategy",
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "preprocessing_num_workers": "dataset_num_proc",
    "push_to_hub_model_id": "hub_model_id",
    "hub_model_revision": "hub_revision",
    "use_liger": "use_liger_kernel",
    "use_liger_loss": "use_liger_kernel",
    "wandb_log_unique_prompts": "log_unique_prompts",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "vllm_max_model_len": "vllm_max_model_length",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
    "gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "model_name": "model_name_or_path",
    "sft_model_path": "model_name_or_path",
    "seq_length": "max_length",
    "block_size": "max_length",
    "batch_size": "per_device_train_batch_size",
    "peft_lora_r": "lora_r",
    "peft_lora_alpha": "lora_alpha",
    "target_modules": "lora_target_modules",
    "task_type": "lora_task_type",
    "use_4bit": "load_in_4bit",
    "use_nested_quant": "use_bnb_nested_quant",
    "log_with": "report_to",
    "log_freq": "logging_steps",
    "save_freq": "save_steps",
    "optimizer_type": "optim",
    "num_warmup_steps": "warmup_steps",
    "lr": "learning_rate",
    "exp_name": "run_name",
    "dataset_train_name": "dataset_train_split",
    "dataset_split": "dataset_train_split",
    "dataset_path": "dataset_name",
    "eval_dataset_path": "heldout_name",
    "rloo_k": "num_generations",
    "kl_coef": "beta",
    "init_kl_coef": "beta",
    "cliprange": "epsilon",
    "num_ppo_epochs": "num_iterations",
    "ppo_epochs": "num_iterations",
    "response_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
}

CONVERTED = {  # another way to say it
    "warmup_ratio": "write warmup_steps: {value}, a value under 1 is a share of all steps",
    "use_flash_attention_2": "write attn_implementation: flash_attention_2",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "adafactor": "write optim: adafactor",
    "evaluate_during_training": "write eval_strategy: steps",
    "tpu_metrics_debug": "write debug: tpu_metrics_debug",
    "mixed_precision": "write bf16: true, or fp16: true",
    "gradient_checkpointing_use_reentrant": "write gradient_checkpointing_kwargs: {{use_reentrant: {value}}}",
    "split_batches": "write accelerator_config: {{split_batches: {value}}}",
    "dispatch_batches": "write accelerator_config: {{dispatch_batches: {value}}}",
    "include_inputs_for_metrics": "write include_for_metrics: [inputs]",
    "push_to_hub_organization": "write hub_model_id: {value}/NAME",
    "push_to_hub_revision": "write push_to_hub: {value}, and hub_revision: NAME",
    "wandb_project": "write env: {{WANDB_PROJECT: {value}}}",
    "project_name": "write env: {{WANDB_PROJECT: {value}}}",
    "rpo_alpha": "write loss_type: [sigmoid, sft] and loss_weights: [1.0, {value}]",
    "normalize_advantage": "write scale_rewards: group",
    "normalize_advantages": "write scale_rewards: group",
    "normalize_reward": "write scale_rewards: group",
    "max_train_samples": "write dataset_train_split: train[:{value}]",
    "max_eval_samples": "write heldout_split: test[:{value}]",
    "sanity_check": "write dataset_train_split: train[:1000]",
    "test_split_size": "write heldout_fraction: {value}, the split is made by a hash of the prompt",
    "dataset_test_split": "write heldout_name: the data set, and heldout_split: {value}",
    "dataset_test_name": "write heldout_name: the data set, and heldout_split: {value}",
    "dataset_splits": "write dataset_train_split and heldout_name with heldout_split",
    "dataset_configs": "write dataset_config, or the name of each part of datasets",
    "chat_template_path": "write chat_template: a name that TRL ships (qwen3) or a .jinja file",
}

REMOVED = {  # why it is gone -> the keys
    "accelerate launch sets it": "local_rank",
    "a run goes on or is refused by itself; give --start_over to begin again": "overwrite_output_dir",
    "give it on the command line, as --config FILE": "config",
    "the folder is the tracker's own; for TensorBoard set TENSORBOARD_LOGGING_DIR in the shell": "logging_dir",
    "set WANDB_ENTITY in the shell": "wandb_entity",
    "set WANDB_RUN_GROUP in the shell": "wandb_run_group",
    "set WANDB_TAGS in the shell": "wandb_tags",
    "set WANDB_RUN_ID in the shell": "wandb_run_id",
    "a revision is pushed to, not overwritten; name another with hub_revision": "overwrite_hub_revision",
    "run `hf auth login`: a token does not belong in a config": (
        "push_to_hub_token use_auth_token hf_user_access_token hub_token"
    ),
    "eval_metrics score held-out prompts before and after training": "benchmarks",
    "a callback is added to the trainer in train.py": "callbacks",
    "safetensors is the only format": "save_safetensors use_safetensors",
    "the report tells tokens a second": "include_tokens_per_second",
    "the tokenizer is the model's; chat_template names another template": (
        "tokenizer tokenizer_name tokenizer_name_or_path"
    ),
    "model_revision pins weights and code": "base_model_revision model_code_revision",
    "dtype is the type of the computation too": "bnb_4bit_compute_dtype",
    "the machine's device is found by itself": "use_mps_device tpu_num_cores gpu_ids",
    "apex is gone; bf16 or fp16 uses PyTorch's own": "fp16_opt_level fp16_backend half_precision_backend",
    "it is gone from transformers": (
        "past_index jit_mode_eval use_ipex use_legacy_prediction_loop mp_parameters ray_scope tp_size use_loftq"
    ),
    "how a run is spread stands in an accelerate file": (
        "sharded_ddp fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap compute_environment deepspeed_config "
        "fsdp_config_file distributed_type downcast_bf16 machine_rank main_training_function num_machines "
        "rdzv_backend same_network tpu_env tpu_use_cluster tpu_use_sudo"
    ),
    "give --num_processes to accelerate launch": "num_processes",
    "it was a repair for GPT-2 on old PyTorch": "ignore_bias_buffers",
    "rows are read from memory-mapped files, not streamed": "dataset_streaming streaming shuffle_buffer",
    "train_test splits are made by a hash of the prompt; write heldout_fraction": "size_valid_set",
    "name the column in to_training_row": "dataset_prompt_column text_column prompt_field",
    "add a system message in to_training_row": "system_prompt",
    "no empty system message is added; add one in to_training_row": "auto_insert_empty_system_msg",
    "rows are cut at their end": "truncation_side",
    "filter long prompts in to_training_row, or raise max_length": "max_prompt_length max_source_length",
    "max_length counts prompt and answer together": "max_target_length",
    "packing fills rows of max_length tokens": "num_of_sequences chars_per_token",
    "the tokenizer's own pad token is used": "padding_value padding pad_token",
    "TRL masks by itself": "label_pad_token_id",
    "TRL chooses it": "dataset_batch_size",
    "name the files in datasets, as data_files": "subset train_subset eval_subset",
    "filter the rows before training": (
        "pass_rate_min pass_rate_max output_dataset_name dataset_start_index dataset_end_index "
        "high_reward_threshold low_reward_threshold"
    ),
    "it is gone from TRL": "reference_free use_logits_to_keep use_num_logits_to_keep base_model_attribute_name",
    "with an adapter the frozen base is the reference": "model_adapter_name ref_adapter_name force_use_ref_model",
    "the reference is loaded as the model is": "ref_model_init_kwargs",
    "only decoder models are trained": "is_encoder_decoder use_seq2seq",
    "answers to held-out prompts are written before and after training": "generate_during_eval",
    "write vllm_mode: colocate (vLLM on the training GPUs) or server (on its own)": "vllm_device",
    "with vllm_mode: server it is a setting of the server": "vllm_dtype vllm_enable_prefix_caching",
    "rewards are functions; name them in reward_funcs": (
        "reward_model_path reward_model_name_or_path reward_model reward_model_name judge"
    ),
    "it set a reward of open-r1; write the number into a function of utils/rewards.py": (
        "cosine_min_value_wrong cosine_max_value_wrong cosine_min_value_correct cosine_max_value_correct "
        "cosine_max_len repetition_n_grams repetition_max_penalty max_completion_len soft_punish_cache "
        "code_language code_eval_test_batch_size code_eval_scoring_mode"
    ),
    "no reward here runs code": (
        "parallel_code_exec_per_proc code_provider ioi_provider e2b_router_url morph_router_url"
    ),
    "it is BCO's, which has no recipe here": "prompt_sample_size min_density_ratio max_density_ratio",
    "it is CPO's, which has no recipe here": "cpo_alpha simpo_gamma",
    "it is XPO or CPO's, which has no recipe here": "alpha",
    "it is Nash-MD's, which has no recipe here": "mixture_coef",
    "it is GKD's, which has no recipe here": "lmbda seq_kd teacher_model_name_or_path teacher_model_init_kwargs",
    "it is reward modelling's, which has no recipe here": (
        "center_rewards_coefficient step_separator train_on_last_step_only eval_first_step"
    ),
    "it is PPO's; online RL here is GRPO": (
        "accelerator_kwargs adap_kl_ctrl backward_batch_size compare_steps early_stopping forward_batch_size "
        "gamma global_backward_batch_size global_batch_size horizon is_peft_model kl_estimator kl_penalty lam "
        "local_batch_size local_mini_batch_size local_rollout_forward_batch_size micro_batch_size mini_batch_size "
        "num_mini_batches num_total_batches optimize_cuda_cache optimize_device_cache project_kwargs "
        "push_to_hub_if_best_kwargs query_dataset ratio_threshold score_clip steps target target_kl task_name "
        "total_episodes tracker_kwargs tracker_project_name use_score_norm use_score_scaling vf_coef "
        "whiten_rewards world_size cliprange_value base_model rm_adapter cls_model_name lm_name ref_lm_name "
        "tk_name txt_in_len txt_out_len"
    ),
    "write mask_truncated_completions: true, or score a cut answer in a reward": (
        "missing_eos_penalty non_eos_penalty penalty_reward_value"
    ),
    "a completion ends at the tokenizer's EOS": "stop_token stop_token_id",
    "clip in the reward function": "reward_clip_range",
    "it is RLOO's, which has no recipe here": "token_level_kl",
    "write log_completions: true": "num_sample_generations",
    "the same command goes on from the newest whole checkpoint by itself": "resume_from_checkpoint",
    "a recipe trains and evaluates": "do_train do_eval do_predict",
}

MIXTURES = {"dataset_mixer": "datasets", "dataset_mixture": "datasets"}

VALUES = {  # values that are gone, of keys that stayed
    "optim": {"adamw_hf": "write adamw_torch", "adamw_apex_fused": "write adamw_torch_fused"},
    "packing_strategy": {"ffd": "write bfd", "fixed": "write wrapped", "bfd-requeue": "write bfd_split"},
    "scale_rewards": {True: "write group", False: "write none"},
    "loss_type": {
        "aot_pair": "write aot_unpaired, the same loss",
        "kto_pair": "it is gone from TRL; apo_zero is the nearest loss of pairs",
        "chunked_nll": "write nll",
    },
}

REASONS = {key: reason for reason, keys in REMOVED.items() for key in keys.split()}


def what_to_write(key: str, value: object) -> str | None:
    """What says the same as `key: value` today, or None if the key is not one of an older version."""
    if key == "torch_dtype" and value is None:
        return "write dtype: float32, which null meant"
    if key in CONVERTED and value is False and "{value}" not in CONVERTED[key]:
        return "remove it: false is the default"
    if key in RENAMED:
        return f"write {RENAMED[key]}: {shown(value)}"
    if key in CONVERTED:
        return CONVERTED[key].format(value=shown(value))
    if key in MIXTURES:
        return mixture(value)
    reason = REASONS.get(key)
    return reason if reason is None or reason.startswith("write ") else f"remove it: {reason}"


def mixture(value: object) -> str:
    """alignment-handbook's {name: share of that set} and TRL's {datasets: [{path, ...}]} as our list.

    Their shares are of each data set, the first rows of it; our `fraction` is a share of the mixture.
    """
    if isinstance(value, dict) and isinstance(value.get("datasets"), list):  # open-r1 and TRL 0.18 on
        parts = [part for part in value["datasets"] if isinstance(part, dict)]
        items = [(p.get("path", p.get("id")), p.get("weight"), p.get("name", p.get("config"))) for p in parts]
    elif isinstance(value, dict):
        items = [(path, share, None) for path, share in value.items()]
    else:
        return "write datasets: a list of {path, name, split, columns, fraction}"
    parts = []
    for path, share, name in items:
        share = share if isinstance(share, (int, float)) else 1
        percent = round(share * 100, 6)  # a slice of a data set is written in whole percents or in rows
        first = f"{percent:g}%" if percent == int(percent) else f"({share} x its rows)"
        split = f", split: 'train[:{first}]'" if percent < 100 else ""
        if percent > 0:
            parts.append(f"{{path: {path}" + (f", name: {name}" if name else "") + f"{split}}}")
    return f"write datasets: [{', '.join(parts)}]"


def shown(value: object) -> str:
    """A value as YAML writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
