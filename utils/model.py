"""Tokenizer, model and LoRA adapter, loaded the one right way: safetensors only, no remote code by default."""

from pathlib import Path

import trl
from accelerate import PartialState
from peft import AutoPeftModelForCausalLM, PeftConfig
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from trl import get_peft_config, get_quantization_config

from utils.config import ROOT, Config, UserError

# Tokens that the model families keep for padding or never produce.
SPARE_PADS = ("<|endoftext|>", "<pad>", "<|finetune_right_pad_id|>", "<unk>")


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with `chat_template` of the config in place of its own if one is named.

    Raises UserError if it cannot be loaded, if it has no pad token that differs from its EOS (training would then
    mask EOS, and the model never learn to stop), or if there is no such template.
    """
    name = config.model.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.model.model_revision, trust_remote_code=config.training.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model_name_or_path: no tokenizer can be loaded from {name}: {first_line(error)}") from None
    if config.recipe.chat_template:
        tokenizer.chat_template = read_template(config.recipe.chat_template)
    eos = vars(config.training).get("eos_token") or tokenizer.eos_token  # SFTConfig alone can set it
    if eos not in tokenizer.get_vocab():
        raise UserError(f"eos_token: {eos!r} is not in the tokenizer of {name}. Write the token that ends a turn")
    if tokenizer.pad_token is None or tokenizer.pad_token == eos:
        spare = [token for token in SPARE_PADS if token in tokenizer.get_vocab() and token != eos]
        if not spare:
            raise UserError(f"{name}: PAD and EOS are both {eos!r}, so the end of an answer would not be learnt")
        tokenizer.pad_token = spare[0]
    if config.recipe.tools or config.recipe.environment_factory:
        read_tool_calls(tokenizer)
    return tokenizer


def read_tool_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer read tool calls back. Raises UserError for a chat template that cannot hold tools, or that
    TRL does not know how to read.
    """
    from utils import trl_internals  # a recipe without tools needs no such file

    if not trl_internals.can_call_tools(tokenizer):
        raise UserError("tools: the chat template shows no tool calls or results. Write chat_template: qwen3_training")
    try:
        trl_internals.add_response_template(tokenizer)
    except ValueError:
        raise UserError(
            "tools: TRL cannot read tool calls in this chat template. Write chat_template: qwen3_training, "
            "or give the tokenizer a response_template (transformers, Response parsing)"
        ) from None


def read_template(name: str) -> str:
    """A chat template's text: written out, from a .jinja file, or by the name of one that TRL ships."""
    if "{{" in name or "{%" in name:
        return name
    folder = Path(trl.__file__).parent / "chat_templates"
    path = Path(name) if Path(name).is_file() else folder / f"{name}.jinja"
    if not path.is_file():
        shipped = sorted(p.stem for p in folder.glob("*.jinja") if not p.stem.endswith("_training"))
        raise UserError(f"chat_template: {name!r} is neither a file nor one of TRL's: {', '.join(shipped)}")
    return path.read_text(encoding="utf-8")


def load_model(config: Config) -> PreTrainedModel:
    """The causal language model, in `dtype`, quantised if the config says so."""
    quantization = get_quantization_config(config.model)
    try:
        return AutoModelForCausalLM.from_pretrained(
            config.model.model_name_or_path,
            revision=config.model.model_revision,
            trust_remote_code=config.training.trust_remote_code,
            dtype=config.model.dtype,
            attn_implementation=config.model.attn_implementation,
            quantization_config=quantization,
            device_map={"": PartialState().device} if quantization is not None else None,
            use_safetensors=True,
            **(config.training.model_init_kwargs or {}),
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"model_name_or_path: {config.model.model_name_or_path}: {first_line(error)}") from None


def context_length(model: PreTrainedModel) -> int | None:
    """The model's context in tokens, where its config states one, under whichever name."""
    config, name = model.config.get_text_config(), "max_position_embeddings"
    return vars(config).get(config.attribute_map.get(name, name))


def load_reward_model(name: str, dtype: str | None, key: str = "reward_funcs") -> PreTrainedModel:
    """A sequence-classification model with one score, by a hub name or a folder, ready to judge. `key` names it.

    Raises UserError if it cannot be loaded, gives several scores, or lacks its head: transformers would make one up.
    """
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            find_folder(name), dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{key}: {name} cannot be loaded as a reward model: {first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{key}: {name} is not a reward model: it lacks {', '.join(missing[:3])}, and random weights would "
            "score. Name a sequence-classification model that was trained to score"
        )
    if model.config.num_labels != 1:
        raise UserError(
            f"{key}: {name} gives {model.config.num_labels} scores, and a reward model must give one. "
            "Name one with num_labels = 1"
        )
    return model.to(PartialState().device).eval()


def find_folder(name: str) -> str:
    """A folder named from the repository's root, as in the YAML's other paths, or the name as it is."""
    return str(ROOT / name) if (ROOT / name).is_dir() else name


def load_adapter(config: Config) -> PeftConfig | None:
    """The LoRA adapter's configuration, or None for full fine-tuning."""
    return get_peft_config(config.model)


def save_model(trainer: Trainer, config: Config) -> None:
    """The trained model and its tokenizer into output_dir, ready for `from_pretrained`.

    EOS comes first in the generation config, so that generation stops where the training rows did. With LoRA the
    adapter is saved, and with `merge_adapter` the merged model too, in `output_dir/merged`.
    """
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    stops = model.generation_config.eos_token_id
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    model.generation_config.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *stops]))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = True
    trainer.save_model(config.training.output_dir)
    if trainer.is_world_process_zero():
        model.generation_config.save_pretrained(config.training.output_dir)  # an adapter is saved without it
    if config.recipe.merge_adapter and config.model.use_peft and trainer.is_world_process_zero():
        # A copy from disk: the trainer's own model stays as it is, for the evaluation that follows.
        merged = AutoPeftModelForCausalLM.from_pretrained(config.training.output_dir).merge_and_unload()
        merged.generation_config = model.generation_config
        merged.save_pretrained(Path(config.training.output_dir, "merged"))
        tokenizer.save_pretrained(Path(config.training.output_dir, "merged"))
    trainer.accelerator.wait_for_everyone()


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
