"""A model of this machine answers prompts: token ids in, token ids out, by transformers or by vLLM."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel
from trl import ModelConfig, SFTConfig

from data_prep.sampling.replies import message_of, reply
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

Make = Callable[[list[list[int]], int], list[list[int]]]  # (n lists of tokens, seed) -> the tokens that follow each


def model_config(source: Source, name: str, dtype: str | None, chat_template: str | None, tools: list[str]) -> Config:
    """As much of a recipe's config as loads a model and its tokenizer."""
    recipe = RecipeConfig(chat_template=chat_template, tools=tools)
    model = ModelConfig(model_name_or_path=name, dtype=dtype or "auto")
    cpu = not torch.accelerator.is_available()
    training = SFTConfig(output_dir=tempfile.gettempdir(), use_cpu=cpu, bf16=False, report_to="none")
    return Config(recipe, model, training, {}, source, Findings())


class LocalModel:
    """The model, how it is asked, and what it may call."""

    def __init__(self, settings, source: Source):
        self.settings = settings
        config = model_config(
            source, settings.model_name_or_path, settings.dtype, settings.chat_template, settings.tools
        )
        self.tokenizer, self.toolbox = load_tokenizer(config), Toolbox(load_tools(settings.tools))
        if not self.tokenizer.chat_template:
            raise UserError("chat_template: the tokenizer has none. Write one that TRL ships (qwen3) or a .jinja file")
        if settings.backend == "vllm":
            self.make, self.context = vllm_engine(config.model.model_name_or_path, settings)
            self.stops = stops_of(config.model.model_name_or_path, self.tokenizer)
        else:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            model = load_model(config).to(device).eval()
            self.stops, self.context = stop_tokens(model, self.tokenizer), context_length(model)
            self.make = transformers_engine(model, self.tokenizer, settings, self.stops, batches=str(device) == "cpu")

    def begin(self, number: int, row: dict) -> Dialogue:
        asked = {key: row[key] for key in ("prompt", "tools", "chat_template_kwargs") if key in row}
        with as_user_error("the chat template"):
            return begin_dialogue(number, asked, self.tokenizer, self.toolbox, self.settings.chat_template_kwargs)

    def room(self, dialogue: Dialogue) -> bool:
        """Whether the model's context holds the prompt and a whole completion."""
        return not self.context or len(dialogue.prompt_ids) + self.settings.max_new_tokens <= self.context

    def answer(self, dialogues: list[Dialogue], seed: int) -> list[dict]:
        """A reply to each; the same for the same dialogues and seed, on the same machine."""
        settings = self.settings

        def make(prompts: list[list[int]]) -> list[list[int]]:
            return self.make(prompts, seed)

        limits = (settings.max_new_tokens, settings.max_tool_calling_iterations)
        complete(dialogues, self.tokenizer, make, *limits, settings.chat_template_kwargs, self.context)
        return [self.read(dialogue) for dialogue in dialogues]

    def read(self, dialogue: Dialogue) -> dict:
        # Some templates open the reasoning themselves, at the end of the prompt.
        opened = self.tokenizer.decode(dialogue.prompt_ids[-4:]).rstrip().endswith("<think>")
        completion = []
        for turn, message in enumerate(dialogue.messages):
            if message["role"] == "assistant":
                content = ("<think>" if opened and turn == 0 else "") + (message.get("content") or "")
                parts = (content, message.get("reasoning_content") or "", message.get("tool_calls") or [])
                message = message_of(*parts, keep_thinking=self.settings.thinking == "keep")
            completion.append(message)
        ended = "stop" if dialogue.stopped(self.stops) else "length"
        return reply(completion, ended, len(dialogue.prompt_ids), sum(dialogue.own))


def stops_of(name: str, tokenizer) -> list[int]:
    """EOS, and what else the model's generation config stops at, where it has one: vLLM reads it too."""
    try:
        stops = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:
        stops = None
    return sorted({tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None})


def transformers_engine(model: PreTrainedModel, tokenizer, settings, stops: list[int], *, batches: bool) -> Make:
    """transformers' continuous batching, or padded batches, which on a CPU are many times faster."""
    greedy = settings.temperature == 0
    sampling = {} if greedy else {
        "temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k or 0,
    }  # fmt: skip
    how = NEUTRAL | {"do_sample": not greedy, "max_new_tokens": settings.max_new_tokens} | sampling
    generation = GenerationConfig(use_cache=True, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, **how)

    def make(prompts: list[list[int]], seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        if batches:
            return generate(model, tokenizer, prompts, generation, settings.batch_size)
        made = model.generate_batch(prompts, generation_config=generation)
        failed = [output.error for output in made.values() if output.error]
        if failed or len(made) != len(prompts):
            raise UserError(f"backend: continuous batching failed ({failed[:1]}). Write a smaller batch_size")
        return [cut_at_stop(output.generated_tokens, stops) for output in made.values()]

    return make


def vllm_engine(name: str, settings) -> tuple[Make, int]:
    """vLLM in this process. Not tried on a GPU yet; calls as vLLM 0.30 documents them."""
    try:
        from vllm import LLM, SamplingParams, TokensPrompt
    except ImportError:
        raise UserError("backend: vLLM is not installed. pip install -r requirements-gpu.txt") from None
    engine = LLM(model=name, dtype=settings.dtype or "auto", seed=settings.seed)

    def make(prompts: list[list[int]], seed: int) -> list[list[int]]:
        sampling = [
            SamplingParams(
                temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k or 0,
                max_tokens=settings.max_new_tokens, seed=seed + number,
            )
            for number in range(len(prompts))
        ]  # fmt: skip
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return [list(made.outputs[0].token_ids) for made in engine.generate(asked, sampling, use_tqdm=False)]

    return make, engine.llm_engine.model_config.max_model_len


def weights_digest(name: str) -> str | None:
    """What tells one training of a local model from another: sizes of its files of weights and a part of each."""
    folder = Path(name)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in (0, size // 2, max(0, size - 2**20)):
                file.seek(place)
                digest.update(file.read(2**20))
    return digest.hexdigest()[:16] if folder.is_dir() else None
