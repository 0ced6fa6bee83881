"""Keep the prompts that a model solves sometimes: those that it always or never solves give online RL no gradient.

    python online_rl/pass_rate.py --config configs/grpo_tiny.yaml --keep_to outputs/grpo_tiny_band.jsonl
    python online_rl/train.py --config configs/grpo_tiny.yaml --dataset_name outputs/grpo_tiny_band.jsonl

The config is that of the run to come: its model tries each prompt num_generations times, sampled as in the run, and
the first of its reward functions says what a pass is. Killed and started again, it goes on where it was.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from data_prep.files import Journal, Output, publish, stop_if_done
from online_rl.config import OnlineRLRecipe
from online_rl.prompts import with_system_prompt
from online_rl.train import FORMATS, to_training_row
from utils.config import ROOT, UserError, read_config, run_main
from utils.files import Ticker, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 16  # prompts at a time; each batch has a seed of its own, so that a resumed run samples what a whole one would


@dataclass
class PassRateConfig(OnlineRLRecipe):
    """What the filter needs besides the run's own config."""

    keep_to: Annotated[str | None, Field(description="The JSONL file to write the kept rows to.")] = None
    pass_rate: Annotated[
        list[float], Field(description="The least and the greatest share of passes of a kept prompt.")
    ] = field(default_factory=lambda: [0.1, 0.9])
    prompts: Annotated[int, Field(ge=1, description="How many of the training prompts are tried, at most.")] = 1000


def fingerprint_of(model: "PreTrainedModel") -> float:
    """A number that another training of the same model would not have."""
    return sum(float(weights.detach().double().abs().sum()) for weights in model.parameters())


def main() -> None:
    source, began = read_config(__doc__, fields=PassRateConfig), time.time()

    import torch
    from accelerate import PartialState
    from trl import GRPOConfig

    from utils.config import parse_config
    from utils.data import fingerprint, load_rows, prepare_rows
    from utils.evaluation import reward_arguments
    from utils.generation import answer_prompts, load_toolbox
    from utils.model import load_model, load_tokenizer
    from utils.rewards import call_reward, load_rewards
    from utils.run import quiet

    config = parse_config(source, GRPOConfig, PassRateConfig)
    recipe, training = config.recipe, config.training
    low, high = recipe.pass_rate if len(recipe.pass_rate) == 2 else (1.0, 0.0)
    if recipe.keep_to is None or not 0 <= low <= high <= 1:
        raise UserError("keep_to and pass_rate: write --keep_to FILE.jsonl, and --pass_rate 0.1 0.9 or the like")
    quiet()
    keep_to = ROOT / recipe.keep_to if source.where["keep_to"] != "command line" else Path(recipe.keep_to)
    if recipe.dataset_name is None:
        raise UserError("dataset_name: is missing (of a mixture, filter one part at a time)")
    tokenizer, toolbox, rewards = load_tokenizer(config), load_toolbox(config), load_rewards(config)
    if not rewards or isinstance(rewards[0], torch.nn.Module):
        raise UserError("reward_funcs: the first must be a function that tells what a pass is, such as exact_match")
    rows = load_rows(recipe.dataset_name, recipe.dataset_config, recipe.dataset_train_split, None)
    rows = rows.select(range(min(recipe.prompts, len(rows))))
    row_function = with_system_prompt(to_training_row, recipe.system_prompt)
    prompts = prepare_rows(rows, recipe.dataset_name, row_function, FORMATS, config)
    sampling = {
        "max_new_tokens": training.max_completion_length, "temperature": training.temperature,
        "top_p": training.top_p, "top_k": training.top_k, "min_p": training.min_p,
        "repetition_penalty": training.repetition_penalty, **(training.generation_kwargs or {}),
    }  # fmt: skip
    model = load_model(config).to(PartialState().device).eval()
    settings = {"rows": fingerprint(prompts), "model": config.given["model_name_or_path"], "seed": training.seed}
    settings |= {"weights": fingerprint_of(model), "template": tokenizer.chat_template, "tools": recipe.tools}
    settings |= {"tries": training.num_generations, "reward": recipe.reward_funcs[0], **sampling}
    made_of = settings | {"band": [low, high]}
    stop_if_done([str(keep_to)], made_of, start_over=recipe.start_over)
    journal = Journal(keep_to, settings, len(rows), start_over=False)  # what was tried serves every band
    done = int(journal.answered.sum())
    say("pass rate", f"{len(rows):,} prompts x {training.num_generations} tries; {done:,} are done already")
    with Ticker("pass rate", len(rows), done, unit="prompts") as ticker:
        for first in range(done, len(rows), BATCH):
            torch.manual_seed(training.seed + first)
            part = prompts.select(range(first, min(first + BATCH, len(rows)))).to_list()
            tried = list(enumerate(part)) * training.num_generations
            dialogues = answer_prompts(model, tokenizer, config, tried, toolbox, **sampling)
            scores = call_reward(rewards[0], reward_arguments(dialogues))
            toolbox.release(dialogue.environment for dialogue in dialogues)
            passes = [0] * len(part)
            for dialogue, score in zip(dialogues, scores, strict=True):
                passes[dialogue.index] += (score or 0.0) > 0
            rates = [count / training.num_generations for count in passes]
            journal.add([{"request": first + i, "pass_rate": rate} for i, rate in enumerate(rates)])
            ticker.tick(len(part))
    rates = [answer["pass_rate"] for i in range(len(rows)) if (answer := journal.get(i))]
    kept = [row | {"pass_rate": rate} for row, rate in zip(rows.to_list(), rates, strict=True) if low <= rate <= high]
    counts = {"in": len(rows), "never": rates.count(0.0), "always": rates.count(1.0), "kept": len(kept)}
    with Output(keep_to, with_manifest=True) as file:
        for row in kept:
            file.write(row)
    publish([file], source, made_of, {"counts": counts}, began, ["trl"])
    journal.close(remove=False)  # another band is then chosen without trying again
    say("done", f"{keep_to}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")


if __name__ == "__main__":
    run_main(main)
