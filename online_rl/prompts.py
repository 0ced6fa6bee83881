"""The prompts of online RL: the system prompt before them, and those that leave no room for a completion."""

import json
from collections.abc import Callable

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from online_rl.config import OnlineRLRecipe
from utils.config import Config, UserError
from utils.data import BadRow, describe_row
from utils.generation import Toolbox, encode_prompt, template_settings
from utils.model import context_length


def with_system_prompt(to_training_row: Callable[[dict], dict], system_prompt: str | None) -> Callable[[dict], dict]:
    """`to_training_row`, and the config's system prompt before every prompt of messages that has none of its own."""
    if system_prompt is None:
        return to_training_row

    def row_with_system_prompt(row: dict) -> dict:
        row = to_training_row(row)
        prompt = row.get("prompt")
        if isinstance(prompt, str):
            raise BadRow("has a prompt of text, and a system_prompt needs messages")
        if not (isinstance(prompt, list) and prompt and isinstance(prompt[0], dict)):
            return row  # its fault is reported with those of the other rows
        if prompt[0].get("role") not in ("system", "developer"):
            row = row | {"prompt": [{"role": "system", "content": system_prompt}, *prompt]}
        return row

    return row_with_system_prompt


def drop_long_prompts(
    rows: Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    toolbox: Toolbox,
    config: Config[OnlineRLRecipe],
) -> Dataset:
    """The rows whose prompts leave room for a completion; the others, which TRL would let run into the end of the
    context, are counted in config.findings, and stop the run if they are most. What an environment adds to a prompt
    when it is reset is not counted: it would have to be built for every row.
    """
    limit, training = config.recipe.max_prompt_length, config.training
    contexts = [context_length(model), training.vllm_max_model_length if training.use_vllm else None]
    rooms = [context - training.max_completion_length for context in contexts if context]
    rooms += [limit] if limit else []
    if not rooms:
        return rows
    if min(rooms) < 1:
        raise UserError(
            f"max_completion_length: {training.max_completion_length} leaves no room for a prompt in a context of "
            f"{min(context for context in contexts if context)}. Lower it"
        )
    room = min(rooms)
    settings = template_settings(config, tokenizer, toolbox)

    def length(row: dict) -> int:
        return len(encode_prompt(tokenizer, row["prompt"], row, toolbox.tools_shown(row), settings))

    spare = length(rows[0]) + 16  # of the template, the tools, and what else is not the prompt's own text
    # No token is shorter than a byte, so most prompts need not be tokenized.
    doubtful = (i for i, row in enumerate(rows) if len(json.dumps(row["prompt"]).encode()) + spare > room)
    long = {i: n for i in doubtful if (n := length(rows[i])) > room}
    if long:
        what = "max_prompt_length" if room == limit else "the model's context less max_completion_length"
        config.findings.add(
            "long_prompts",
            f"{len(long):,} of {len(rows):,} prompts have more than {room} tokens ({what}; the longest "
            f"{max(long.values())}) and are left out: a completion would run into the end. "
            f"First: {describe_row(rows[min(long)])}",
            stops=len(long) > len(rows) / 2,
        )
    if len(long) == len(rows):
        raise UserError(f"max_prompt_length: all {len(rows):,} prompts have more than {room} tokens: none is left")
    return rows.select([i for i in range(len(rows)) if i not in long]) if long else rows
