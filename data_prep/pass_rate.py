"""Keep the prompts that a model solves sometimes: those that it always or never solves give online RL no gradient.

    python data_prep/pass_rate.py --config configs/grpo_tiny.yaml --keep_to outputs/grpo_tiny_band.jsonl
    python online_rl/train.py --config configs/grpo_tiny.yaml --dataset_name outputs/grpo_tiny_band.jsonl

The config is that of the run to come: its model tries each prompt num_generations times, sampled as in the run, and
the first of its reward functions says what a pass is. Killed and started again, it goes on where it was.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from data_prep.jsonl import Output, publish, stop_if_done
from online_rl.train import to_training_row
from utils.fields import OnlineRLConfig
from utils.files import write_atomically
from utils.source import ROOT, UserError, read_config, run_main
from utils.terminal import say

BATCH = 16  # prompts at a time; each batch has a seed of its own, so that a resumed run samples what a whole one would


@dataclass
class PassRateConfig(OnlineRLConfig):
    """What the filter needs besides the run's own config."""

    keep_to: str | None = field(default=None, metadata={"help": "The JSONL file to write the kept rows to."})
    pass_rate: list[float] = field(
        default_factory=lambda: [0.1, 0.9], metadata={"help": "Least and greatest share of passes of a kept prompt."}
    )
    prompts: int = field(default=1000, metadata={"help": "How many of the training prompts are tried, at most."})


def read_progress(path: Path, asked: dict) -> list[float]:
    """The pass rates that an earlier start wrote for the same question; a line that a kill cut short is taken away."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    if lines and json.loads(lines[0]) != asked:
        raise UserError(f"keep_to: {path} holds the tries of another config. Name another file, or remove that one")

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(f"{line}\n" for line in lines or [json.dumps(asked)]))
    return [json.loads(line) for line in lines[1:]]


def fingerprint_of(model) -> float:
    """A number that another training of the same model would not have."""
    return sum(float(weights.detach().double().abs().sum()) for weights in model.parameters())


def main() -> None:
    source, began = read_config(__doc__), time.time()

    import torch
    from accelerate import PartialState
    from trl import GRPOConfig

    from utils.config import parse_config
    from utils.data import MARKS, fingerprint, load_rows, prepare
    from utils.evaluation import as_called
    from utils.generation import answer_prompts
    from utils.model import load_model, load_tokenizer
    from utils.named import called, load_rewards, load_toolbox
    from utils.run import quiet

    config = parse_config(source, GRPOConfig, PassRateConfig)
    recipe, training = config.recipe, config.training
    low, high = recipe.pass_rate if len(recipe.pass_rate) == 2 else (1.0, 0.0)
    if recipe.keep_to is None or not 0 <= low <= high <= 1:
        raise UserError("keep_to and pass_rate: write --keep_to FILE.jsonl, and --pass_rate 0.1 0.9 or the like")
    quiet()
    kept_to = ROOT / recipe.keep_to if source.where["keep_to"] != "command line" else Path(recipe.keep_to)
    if recipe.dataset_name is None:
        raise UserError("dataset_name: is missing (of a mixture, filter one part at a time)")
    tokenizer, toolbox, rewards = load_tokenizer(config), load_toolbox(config), load_rewards(config)
    if not rewards or isinstance(rewards[0], torch.nn.Module):
        raise UserError("reward_funcs: the first must be a function that tells what a pass is, such as exact_match")
    rows = load_rows(recipe.dataset_name, recipe.dataset_config, recipe.dataset_train_split, None)
    rows = rows.select(range(min(recipe.prompts, len(rows))))
    asked_rows = prepare(rows, recipe.dataset_name, to_training_row, config, None).remove_columns(MARKS)
    sampling = {
        "max_new_tokens": training.max_completion_length, "temperature": training.temperature,
        "top_p": training.top_p, "top_k": training.top_k, "min_p": training.min_p,
        "repetition_penalty": training.repetition_penalty, **(training.generation_kwargs or {}),
    }  # fmt: skip
    model = load_model(config).to(PartialState().device).eval()
    asked = {"rows": fingerprint(asked_rows), "model": config.given["model_name_or_path"], "seed": training.seed}
    asked |= {"weights": fingerprint_of(model), "template": tokenizer.chat_template, "tools": recipe.tools}
    asked |= {"tries": training.num_generations, "reward": recipe.reward_funcs[0], **sampling}
    stop_if_done([str(kept_to)], asked | {"band": [low, high]}, start_over=recipe.start_over)
    progress = kept_to.with_suffix(".pass_rates.jsonl")
    rates = read_progress(progress, asked)
    say("filter", f"{len(rows):,} prompts x {training.num_generations} tries; {len(rates):,} are done already")
    with progress.open("a", encoding="utf-8") as file:
        for first in range(len(rates), len(rows), BATCH):
            torch.manual_seed(training.seed + first)
            part = asked_rows.select(range(first, min(first + BATCH, len(rows)))).to_list()
            tried = list(enumerate(part)) * training.num_generations
            dialogues = answer_prompts(model, tokenizer, config, tried, toolbox, **sampling)
            scores = called(rewards[0], as_called(dialogues))
            for i in range(len(part)):
                passed = [s for dialogue, s in zip(dialogues, scores, strict=True) if dialogue.index == i]
                rates.append(sum((score or 0.0) > 0 for score in passed) / len(passed))
                file.write(json.dumps(rates[-1]) + "\n")
            file.flush()
            say("", f"{len(rates):,} of {len(rows):,}")
    kept = [row | {"pass_rate": rate} for row, rate in zip(rows.to_list(), rates, strict=True) if low <= rate <= high]
    counts = {"in": len(rows), "never": rates.count(0.0), "always": rates.count(1.0), "kept": len(kept)}
    with Output(kept_to, with_manifest=True) as file:
        for row in kept:
            file.write(row)
    publish([file], source, asked | {"band": [low, high]}, {"counts": counts}, began, ["trl"])
    say("done", f"{kept_to}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}")


if __name__ == "__main__":
    run_main(main)
