"""Answers to prompts, with tools where there are any: several turns to an answer."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from utils import trl_internals
from utils.config import Config
from utils.data import split_prompt
from utils.generation.tools import Environment, Toolbox, call_tools, tool_suffix
from utils.model import context_length

# What transformers would otherwise take from the model's own generation config, and training does not.
NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "length_penalty": 1.0}


@dataclass
class Dialogue:
    """One prompt and what the model made of it, turn by turn."""

    index: int  # of its held-out row
    row: dict
    prompt: list[dict] | str
    reference: str
    prompt_ids: list[int]
    tools: list = field(default_factory=list)
    environment: Environment | None = None
    ids: list[int] = field(default_factory=list)  # the completion, with tool results
    own: list[bool] = field(default_factory=list)  # which of these tokens the model made
    messages: list[dict] = field(default_factory=list)
    turns: int = 0

    def completion(self) -> list[dict] | str:
        """In the form in which TRL gives completions to reward functions."""
        return self.messages if isinstance(self.prompt, list) else self.messages[0]["content"]

    def stopped(self, stops: list[int]) -> bool:
        return bool(self.own) and self.own[-1] and self.ids[-1] in stops

    def text(self, tokenizer: PreTrainedTokenizerBase, stops: list[int]) -> str:
        """For people: the model's turns, and between them the tool results."""
        if not self.tools:
            return tokenizer.decode([token for token in self.ids if token not in stops])
        return tokenizer.decode(self.ids).removesuffix(tokenizer.eos_token)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[dict] | str,
    row: dict,
    tools: list | None = None,
    settings: dict | None = None,
) -> list[int]:
    """The prompt's token ids, with the row's tools and template settings as TRL reads them."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    written = row.get("tools")
    tools = tools or (json.loads(written) if isinstance(written, str) else written)
    settings = (settings or {}) | (row.get("chat_template_kwargs") or {})
    encoded = tokenizer.apply_chat_template(
        prompt, tools=tools, add_generation_prompt=True, return_dict=True, **settings
    )
    return encoded["input_ids"]


def template_settings(config: Config, tokenizer: PreTrainedTokenizerBase, toolbox: Toolbox) -> dict:
    """What prompts are rendered with: online RL's chat_template_kwargs, and with tools a template that adds turns."""
    settings = dict(vars(config.training).get("chat_template_kwargs") or {})
    template = trl_internals.template_for_more_turns(tokenizer) if toolbox else None
    return settings | ({"chat_template": template} if template else {})


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """EOS, and what else the model's generation config stops at."""
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    return sorted({tokenizer.eos_token_id, *stops} - {None})


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    rows: list[tuple[int, dict]],
    toolbox: Toolbox,
    **sampling: float,
) -> list[Dialogue]:
    """Answers to (number, row) pairs, greedy if no sampling settings are given; plain text rows have none.

    A turn that calls tools is answered by them, and the model goes on, until it calls none, has used up its tokens
    (tool results counted) or, with max_tool_calling_iterations, its turns.

    Args:
        sampling: max_new_tokens (by default eval_max_new_tokens), temperature, top_p, top_k, min_p.
    """
    settings = template_settings(config, tokenizer, toolbox)
    started = [begin_dialogue(index, row, tokenizer, toolbox, settings) for index, row in rows]
    dialogues = [dialogue for dialogue in started if dialogue]
    stops = stop_tokens(model, tokenizer)
    how = NEUTRAL | {"max_new_tokens": config.recipe.eval_max_new_tokens, "do_sample": bool(sampling)} | sampling
    generation = GenerationConfig(use_cache=True, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id, **how)
    size = config.training.per_device_eval_batch_size
    turns = vars(config.training).get("max_tool_calling_iterations")  # GRPOConfig alone has it

    def make(prompts: list[list[int]]) -> list[list[int]]:
        return generate(model, tokenizer, prompts, generation, size)

    complete(dialogues, tokenizer, make, generation.max_new_tokens, turns, settings, context_length(model))
    return dialogues


def complete(
    dialogues: list[Dialogue],
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[[list[list[int]]], list[list[int]]],
    limit: int,
    turns: int | None,
    settings: dict,
    context: int | None,
) -> None:
    """Take all turns of dialogues that have begun.

    Args:
        make: the tokens that follow each of n lists of tokens.
        limit: tokens of a completion, tool results counted.
        turns: how often tools may be called; None: as often as the tokens allow.
        settings: of the chat template.
        context: the model's, in tokens.
    """
    pending = dialogues
    while pending:
        made = make([d.prompt_ids + d.ids for d in pending])
        for dialogue, ids in zip(pending, made, strict=True):
            take_turn(dialogue, ids[: limit - len(dialogue.ids)], tokenizer)
        pending = [
            dialogue
            for dialogue in pending
            if dialogue.messages[-1].get("tool_calls")
            and (turns is None or dialogue.turns <= turns)
            and use_tools(dialogue, tokenizer, settings, limit, context)
        ]


def begin_dialogue(
    index: int, row: dict, tokenizer: PreTrainedTokenizerBase, toolbox: Toolbox, settings: dict
) -> Dialogue | None:
    """A row's prompt as the model is shown it, with what it may call; None for a plain text row."""
    prompt, reference = split_prompt(row)
    if prompt is None:
        return None
    tools: list[Callable] = []
    environment = None
    with_tools = "tools" not in row or row["tools"]  # in a mixture, rows without tools have the column empty
    if toolbox and with_tools and isinstance(prompt, list):
        prompt, tools, environment = toolbox.open(row, until_asked(prompt))
    ids = encode_prompt(tokenizer, prompt, row, tools, settings)
    return Dialogue(index, row, prompt, reference, ids, tools, environment)


def until_asked(prompt: list[dict]) -> list[dict]:
    """Without the tool calls, and what came of them, that a row of a whole dialogue has after its last question."""
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    return prompt[: last + 1]


def take_turn(dialogue: Dialogue, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    dialogue.turns += 1
    if not ids:  # tool results used up the room
        return
    if dialogue.tools:
        prefix = dialogue.prompt_ids + dialogue.ids
        message = trl_internals.parse_response(tokenizer, ids, prefix, dialogue.tools)
    else:
        message = {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
    dialogue.messages.append(message)
    dialogue.ids += ids
    dialogue.own += [True] * len(ids)


def use_tools(
    dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, settings: dict, limit: int, context: int | None
) -> bool:
    """Answer the tool calls of the last turn; False if no room is left to go on: the answers are then not given."""
    answered = call_tools(dialogue.messages[-1], dialogue.tools)
    ids = tool_suffix(tokenizer, answered, settings)
    length = len(dialogue.ids) + len(ids)
    if length > limit or (context and len(dialogue.prompt_ids) + length >= context):
        return False
    dialogue.messages += answered
    dialogue.ids += ids
    dialogue.own += [False] * len(ids)
    return True


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    settings: GenerationConfig,
    size: int,
) -> list[list[int]]:
    """The tokens that follow each prompt, to the first stop: left-padded batches of like length."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    found: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        inputs = tokenizer.pad({"input_ids": [prompts[i] for i in part]}, padding_side="left", return_tensors="pt")
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            made = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :]
        for i, ids in zip(part, made.tolist(), strict=True):
            found[i] = cut_at_stop(ids, settings.eos_token_id)
    return found


def cut_at_stop(ids: list[int], stops: list[int]) -> list[int]:
    """The ids up to and with the first stop; what follows it is padding."""
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in stops), ids)
