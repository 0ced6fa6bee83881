"""A local model answers prompts, by transformers or by vLLM: token ids in, token ids out."""

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig

from data_prep.sampling.replies import message_of, response_of
from utils.config import Config, Findings, RecipeConfig, Source, UserError, as_user_error
from utils.generation import (
    NEUTRAL,
    Dialogue,
    Toolbox,
    begin_dialogue,
    complete,
    cut_at_stop,
    generate,
    load_tools,
    stop_tokens,
)
from utils.model import context_length, load_model, load_tokenizer

if TYPE_CHECKING:
    from data_prep.generate import GenerateConfig

Engine = Callable[[list[list[int]], int], list[list[int]]]  # (n lists of tokens, seed) -> the tokens that follow each


def recipe_config(source: Source, config: "GenerateConfig") -> Config:
    """As much of a recipe's config as loads a model and its tokenizer."""
    recipe = RecipeConfig(chat_template=config.chat_template, tools=config.tools)
    model = ModelConfig(model_name_or_path=config.model_name_or_path, dtype=config.dtype or "auto")
    cpu = not torch.accelerator.is_available()
    training = SFTConfig(output_dir=tempfile.gettempdir(), use_cpu=cpu, bf16=False, report_to="none")
    return Config(recipe, model, training, {}, source, Findings())


class LocalModel:
    """The model, its sampling parameters, and its tools."""

    def __init__(self, config: "GenerateConfig", source: Source):
        self.config, recipe = config, recipe_config(source, config)
        self.tokenizer, self.toolbox = load_tokenizer(recipe), Toolbox(load_tools(config.tools))
        if not self.tokenizer.chat_template:
            raise UserError("chat_template: the tokenizer has none. Write one that TRL ships (qwen3) or a .jinja file")
        self.engine: Engine
        self.context: int | None
        if config.backend == "vllm":
            self.engine, self.context = vllm_engine(config)
            self.stops = stops_of(config.model_name_or_path, self.tokenizer)
        else:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            model = load_model(recipe).to(device).eval()
            self.stops, self.context = stop_tokens(model, self.tokenizer), context_length(model)
            batches = str(device) == "cpu"
            self.engine = transformers_engine(model, self.tokenizer, config, self.stops, batches=batches)

    def begin(self, number: int, row: dict) -> Dialogue:
        prompt = {key: row[key] for key in ("prompt", "tools", "chat_template_kwargs") if key in row}
        with as_user_error("the chat template"):
            dialogue = begin_dialogue(number, prompt, self.tokenizer, self.toolbox, self.config.chat_template_kwargs)
        assert dialogue, "only a plain text row begins none"
        return dialogue

    def has_room(self, dialogue: Dialogue) -> bool:
        """Whether the model's context holds the prompt and a whole completion."""
        return not self.context or len(dialogue.prompt_ids) + self.config.max_new_tokens <= self.context

    def answer(self, dialogues: list[Dialogue], seed: int) -> list[dict]:
        """A response to each; the same for the same dialogues and seed, on the same machine."""
        limits = (self.config.max_new_tokens, self.config.max_tool_calling_iterations)

        def make(prompts: list[list[int]]) -> list[list[int]]:
            return self.engine(prompts, seed)

        complete(dialogues, self.tokenizer, make, *limits, self.config.chat_template_kwargs, self.context)
        return [self.read(dialogue) for dialogue in dialogues]

    def read(self, dialogue: Dialogue) -> dict:
        # Some templates open the reasoning themselves, at the end of the prompt.
        opened = self.tokenizer.decode(dialogue.prompt_ids[-4:]).rstrip().endswith("<think>")
        completion = []
        for turn, message in enumerate(dialogue.messages):
            if message["role"] == "assistant":
                content = ("<think>" if opened and turn == 0 else "") + (message.get("content") or "")
                parts = (content, message.get("reasoning_content") or "", message.get("tool_calls") or [])
                message = message_of(*parts, keep_thinking=self.config.thinking == "keep")
            completion.append(message)
        finish_reason = "stop" if dialogue.stopped(self.stops) else "length"
        return response_of(completion, finish_reason, len(dialogue.prompt_ids), sum(dialogue.own))


def stops_of(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """EOS and the stop tokens of the model's generation config, where it has one: vLLM reads it too."""
    try:
        stops = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:
        stops = None
    return sorted({tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None})


def transformers_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: "GenerateConfig",
    stops: list[int],
    *,
    batches: bool,
) -> Engine:
    """transformers' continuous batching, or padded batches, which are many times faster on a CPU."""
    sampling = NEUTRAL | {"do_sample": config.temperature > 0, "max_new_tokens": config.max_new_tokens}
    if config.temperature > 0:
        sampling |= {"temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k or 0}
    generation = GenerationConfig(use_cache=True, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, **sampling)

    def engine(prompts: list[list[int]], seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        if batches:
            return generate(model, tokenizer, prompts, generation, config.batch_size)
        made = model.generate_batch(prompts, generation_config=generation)
        failed = [output.error for output in made.values() if output.error]
        if failed or len(made) != len(prompts):
            raise UserError(f"backend: continuous batching failed ({failed[:1]}). Write a smaller batch_size")
        return [cut_at_stop(output.generated_tokens, stops) for output in made.values()]

    return engine


def vllm_engine(config: "GenerateConfig") -> tuple[Engine, int]:
    """vLLM in this process, and its context length. Not tried on a GPU yet; called as vLLM 0.30 documents."""
    try:
        from vllm import LLM, SamplingParams, TokensPrompt
    except ImportError:
        raise UserError("backend: vLLM is not installed. pip install -r requirements-gpu.txt") from None
    llm = LLM(model=config.model_name_or_path, dtype=config.dtype or "auto", seed=config.seed)

    def engine(prompts: list[list[int]], seed: int) -> list[list[int]]:
        sampling = [
            SamplingParams(
                temperature=config.temperature, top_p=config.top_p, top_k=config.top_k or 0,
                max_tokens=config.max_new_tokens, seed=seed + number,
            )
            for number in range(len(prompts))
        ]  # fmt: skip
        requests = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return [list(made.outputs[0].token_ids) for made in llm.generate(requests, sampling, use_tqdm=False)]

    return engine, llm.llm_engine.model_config.max_model_len
