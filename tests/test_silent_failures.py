"""What goes wrong without a word, a case a way: made as a user makes it, told with what, where and mend.

Every case runs twice: as the code is, and with the check that it names switched off, where it must fail. The table of
docs/silent_failures.md is made of the same cases: `python tests/test_silent_failures.py > docs/silent_failures.md`.
"""

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import ROOT, digest
from stage import FOLDERS, assistant, pairs, sums, tasks, user
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments
from transformers.utils import get_json_schema
from trl import DPOConfig, GRPOConfig, SFTConfig

from dpo.config import DPORecipe
from online_rl import vllm_backend as backends
from online_rl.config import OnlineRLRecipe
from online_rl.rollouts import Completions
from sft.train import FORMATS
from utils.config import RecipeConfig, parse_config, read_config
from utils.config.findings import NAMES
from utils.config.parse import resolve
from utils.data import load_splits
from utils.generation.tools import calculator
from utils.rewards import functions as rewards

ERROR, DEFAULT, LOUD = "stops before the first step", "cannot happen", "says so, and the report keeps it"
TRAIN = ()  # no --check: the run trains


@dataclass
class Case:
    """One row of the table; `without` names the check that makes it: (where it stands, what stands there instead)."""

    row: str
    user: str
    trl: str
    ours: str
    without: list[tuple[str, object]]
    run: Callable


CASES: list[Case] = []
ALL_NAMES = NAMES | DPORecipe.FINDINGS | OnlineRLRecipe.FINDINGS


def nothing(*_, **__):
    """A check that is not there."""


def case(row, user, trl, ours, *without):
    def add(function):
        switched_off = [target if isinstance(target, tuple) else (target, nothing) for target in without]
        CASES.append(Case(row, user, trl, ours, switched_off, function))
        return function

    return add


MISTAKES = "utils.config.source.Source.mistake"


# --- the config ------------------------------------------------------------------------------------------------------


@case("C1", "`learnig_rate: 1e-3` in the YAML", "trains at the default rate", ERROR, MISTAKES)
def typo(stage):
    stage.run("learnig_rate: 1e-3").tells("run.yaml:1: learnig_rate: unknown key; did you mean learning_rate?")


@case(
    "C2",
    "keys of older versions (`warmup_ratio`, `max_seq_length`, `torch_dtype`, ...)",
    "ignores them",
    ERROR,
    MISTAKES,
)
def moved_keys(stage):
    text = "warmup_ratio: 0.1\nmax_seq_length: 512\nmax_prompt_length: 9\nevaluation_strategy: 'no'\n"
    text += "torch_dtype: bfloat16\noverwrite_output_dir: true\nreference_free: true\nno_cuda: true\ntokenizer: x"
    done = stage.run(text)
    done.tells("run.yaml:1: warmup_ratio: is not used here: write warmup_steps: 0.1", "write max_length: 512")
    done.tells("max_prompt_length: is not used here: remove it: filter long prompts", "write eval_strategy: no")
    done.tells("write dtype: bfloat16", "run.yaml:6: overwrite_output_dir", "gone from TRL", "write use_cpu: true")
    done.tells("9 mistakes in the config", "run.yaml:9: tokenizer: is not used here: remove it")


@case(
    "C3",
    "values of another type or out of range (`learning_rate: [1]`, `packing: 3`, `max_length: -5`)",
    "accepts them",
    ERROR,
    ("utils.config.parse.check_value", lambda key, value, *_: value),
)
def bad_values(stage):
    text = "learning_rate: [1]\nper_device_train_batch_size: 2.5\npacking: 3\n"
    text += "gradient_accumulation_steps: 0\nmax_length: -5"
    done = stage.run(text)
    done.tells("run.yaml:1: learning_rate: [1] is not a number", "2.5 is not a whole number", "3 is not true or false")
    done.tells("0 is out of range. Write at least 1", "run.yaml:5: max_length: -5 is out of range")


@case(
    "C4",
    "a bad choice (`loss_type: sigmiod`, `vllm_mode: x`, `scale_rewards: y`, `packing_strategy: foo`)",
    "accepts it; DPO fails at its first step",
    ERROR,
    ("utils.config.parse.check_value", lambda key, value, *_: value),
)
def bad_choice(stage):
    stage.run("packing_strategy: foo").tells("run.yaml:1: packing_strategy: 'foo' is not a choice; write one of bfd")
    stage.run("loss_type: sigmiod", method="dpo").tells("'sigmiod' is not a choice; did you mean sigmoid?")
    stage.run("vllm_mode: x\nscale_rewards: y", method="grpo").tells(
        "write one of colocate, server", "write one of group"
    )


@case("C5", "the same key twice", "takes the last", ERROR, ("utils.config.read.key_mistakes", lambda places: []))
def key_twice(stage):
    done = stage.run("learning_rate: 1e-3\nlearning_rate: 1e-4")
    done.tells("run.yaml:2: learning_rate: stands twice (first at", "Remove one")


@case(
    "C6",
    "`2e-5` unquoted, which YAML 1.1 reads as a text",
    "keeps the text",
    DEFAULT,
    ("utils.config.parse.check_value", lambda key, value, *_: str(value)),
)
def number_without_a_point(stage):
    assert config_of(stage, "learning_rate: 2e-5").training.learning_rate == 2e-5
    stage.run('learning_rate: "2e-5"').tells("'2e-5' is not a number. Write a number, without quotes")


@case(
    "C7",
    "`--config=file.yaml`, `--max-steps 3`, a dashed key in the YAML",
    "does not understand them",
    DEFAULT,
    ("utils.config.read.key_mistakes", lambda places: []),
)
def dashes(stage):
    path = stage.yaml("sft", "")
    assert parse_config(read_config("", [f"--config={path}", "--max-steps", "3"]), SFTConfig).training.max_steps == 3
    stage.run("learning-rate: 1e-3").tells("run.yaml:1: learning-rate: keys have no dashes. Write learning_rate")


@case(
    "C8",
    "`env:` with `HF_HOME`, or with any variable",
    "sets it after the library has read it; sets anything",
    DEFAULT,
    "utils.config.read.set_environment",
)
def env_block(stage):
    stage.monkeypatch.setenv("HF_HOME", "elsewhere")
    read_config("", ["--config", str(stage.yaml("sft", "env: {HF_HOME: /there}"))])
    assert os.environ["HF_HOME"] == "/there"
    script = "import sys, utils.config; print(sorted({'huggingface_hub', 'datasets', 'trl'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"  # so env: is set before they read it
    stage.run("env: {PATH: /there}").tells("run.yaml:1: env: PATH may not be set here. Set it in the shell")


@case(
    "C9",
    "nothing about the device, or `bf16: true`, on a machine without an accelerator",
    '"Your setup doesn\'t support bf16/gpu"',
    DEFAULT,
    ("utils.config.parse.resolve", lambda source, values: dict(values)),
)
def no_accelerator(stage):
    done = stage.run("bf16: true")
    assert done.code == 0, done.said
    done.tells("no accelerator: training in float32 on the CPU")


@case("C10", "`eval_strategy` without rows to evaluate on", "`KeyError: 'test'`", ERROR, MISTAKES)
def nothing_to_evaluate(stage):
    done = stage.run("eval_strategy: steps")
    done.tells("run.yaml:1: eval_strategy: there are no rows to evaluate on. Write heldout_fraction")


@case(
    "C11",
    "no `model_name_or_path`",
    "`'NoneType' object has no attribute 'config'`",
    ERROR,
    "utils.config.parse.check_together",
)
def no_model(stage):
    stage.run("", drop=["model_name_or_path"]).tells("model_name_or_path: is missing. Write the model to start from")


@case(
    "C12",
    "a model of the hub, without a network",
    "minutes of retries, then a traceback",
    ERROR,
    "utils.config.hub.require_hub",
)
def no_network(stage):
    done = stage.run("model_name_or_path: Qwen/Qwen3-0.6B")
    done.tells("run.yaml:1: model_name_or_path: the model Qwen/Qwen3-0.6B is not on this machine", "cannot be reached")
    done.tells("Without a network, this runs as it is", "_tiny.yaml")


@case(
    "C13",
    "the output_dir of another run",
    "overwrites it, or goes on from it",
    ERROR,
    ("utils.run.run.folder_state", lambda *_: "new"),
)
def anothers_folder(stage):
    assert stage.run("max_steps: 1", flags=TRAIN).code == 0
    done = stage.run("max_steps: 2", flags=TRAIN)
    done.tells("holds a run of another config", "max_steps: 1 -> 2", "Write another output_dir")


# --- the data --------------------------------------------------------------------------------------------------------


@case("D1", "columns of another form", "`KeyError: 'text'`", ERROR, "utils.data.splits.row_fault")
def unknown_columns(stage):
    done = stage.run(rows=[{"instruction": "1 + 1?", "output": "2"}] * 3)
    done.tells("3 of 3 rows cannot be trained on", "rows.jsonl, row 1: has the columns instruction, output")
    done.tells("a row needs: messages; prompt and completion; text", "to_training_row")


@case(
    "D2",
    "empty `messages`, null content, an empty file",
    "`IndexError`, a template error, `StopIteration`",
    ERROR,
    "utils.data.splits.row_fault",
)
def empty_rows(stage):
    rows = sums(4)
    rows[1]["messages"][1]["content"] = None
    rows[2]["messages"] = []
    done = stage.run(rows=rows)
    done.tells("rows.jsonl, row 2: messages has an empty assistant message", "row 3: messages is empty")
    stage.run(rows="").tells("rows.jsonl: has no rows")


@case(
    "D3",
    "role typos, no assistant turn, empty text",
    "accepts them and learns nothing, or the wrong thing",
    ERROR,
    "utils.data.splits.row_fault",
)
def wrong_roles(stage):
    rows = sums(6)
    rows[2]["messages"][1]["role"] = "asistant"
    rows[4]["messages"] = rows[4]["messages"][:1]
    done = stage.run(rows=rows)
    done.tells("row 3: messages has the role 'asistant'; did you mean assistant?", "row 5: messages has no assistant")
    stage.run(rows=[{"text": " "}]).tells("row 1: text is empty", "Correct or remove them")


@case(
    "D4",
    "`completion_only_loss: true` on `messages` rows",
    "no effect: the prompts are learnt too",
    ERROR,
    "sft.checks.check_masks",
)
def mask_without_effect(stage):
    done = stage.run("completion_only_loss: true\nassistant_only_loss: false")
    done.tells("mask_without_effect: completion_only_loss: true masks nothing", "Write assistant_only_loss: true")


@case(
    "D5",
    "`assistant_only_loss` under a template without generation marks, or with marks around everything",
    "an error for unknown templates; a mask of all rows with a healthy-looking loss",
    ERROR,
    ("utils.config.read.as_user_error", lambda name: __import__("contextlib").nullcontext()),
    "sft.checks.check_masks",
)
def template_without_marks(stage):
    turn = "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}"
    plain = stage.write("plain.jinja", "{% for m in messages %}" + turn + "{% endfor %}")
    stage.run(f"chat_template: {plain}").tells("SFTTrainer refuses", "generation")
    marked = "{% for m in messages %}{% generation %}" + turn + "{% endgeneration %}{% endfor %}"
    done = stage.run(f"chat_template: {stage.write('all.jinja', marked)}\naccept: [template_mismatch]")
    done.tells("mask_without_effect: assistant_only_loss: true masks nothing: the chat template marks every token")


@case(
    "D6",
    "rows longer than `max_length`",
    "cuts them, the answers first; packing `bfd` drops the rest",
    ERROR,
    "utils.preflight.shared.check_lengths",
)
def truncated(stage):
    done = stage.run("max_length: 40")
    done.tells("truncated_rows: max_length = 40 cuts 24 of 24 sampled rows", "Write max_length: 49 to keep 99%")
    done = stage.run("max_length: 40\npacking: true\nassistant_only_loss: false")
    done.tells("truncated_rows", "or packing_strategy: bfd_split")
    done = stage.run(
        "max_length: 40\naccept: [truncated_rows]\noutput_dir: " + str(stage.folder / "out2"), flags=TRAIN
    )
    assert done.code == 0, done.said
    done.tells("ACCEPTED  truncated_rows")
    kept = json.loads((stage.folder / "out2/metrics.json").read_text())["findings"]
    assert [(f["name"], f["accepted"]) for f in kept] == [("truncated_rows", True)]
    assert "truncated_rows" in (stage.folder / "out2/report.html").read_text()


@case("D7", "`packing_strategy: wrapped`", "examples see each other", ERROR, "sft.checks.check_packing")
def wrapped_packing(stage):
    done = stage.run("packing: true\npacking_strategy: wrapped")
    done.tells(
        "wrapped_packing: packing_strategy: wrapped lets an example see the one before it",
        "Write packing_strategy: bfd",
    )


@case(
    "D8",
    "a tokenizer whose PAD is its EOS",
    "masks EOS out of the loss: the model never stops",
    DEFAULT,
    ("utils.model.SPARE_PADS", ()),
)
def pad_is_eos(stage):
    base = copied_base(stage, lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token))
    done = stage.run(f"model_name_or_path: {base}", flags=("--max_steps", 1))
    assert done.code == 0, done.said
    done.tells("100.0% of the rows end with <|im_end|>")
    assert AutoTokenizer.from_pretrained(stage.folder / "out").pad_token == "<|endoftext|>"


@case(
    "D9",
    "texts that begin with BOS, and a tokenizer that adds it",
    "two BOS in every row",
    ERROR,
    "utils.preflight.shared.check_tokens",
)
def double_bos(stage):
    def adds_bos(tokenizer):
        bos = tokenizer.bos_token = "<|endoftext|>"
        ids = [(bos, tokenizer.convert_tokens_to_ids(bos))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=ids)

    rows = [{"text": f"<|endoftext|>Ann has {n} nuts."} for n in range(8)]
    text = f"model_name_or_path: {copied_base(stage, adds_bos)}\nassistant_only_loss: false"
    done = stage.run(text, rows=rows)
    done.tells(
        "double_bos: 8 of 8 sampled rows (first 1, 2, 3, ...: '<|endoftext|>Ann",
        "begin with <|endoftext|> twice",
        "Remove",
    )


@case(
    "D10",
    "a template that drops `<think>` from earlier turns, or renders the prompt otherwise for generation",
    "trains on a text that the model will never see",
    ERROR,
    "utils.preflight.shared.check_template",
)
def template_differs(stage):
    thought = assistant("<think>\n1 and 1\n</think>\n\nThe answer is 2.")
    rows = [{"messages": [user(f"1 + {n}?"), thought, user("And 2 + 2?"), thought]} for n in range(8)]
    done = stage.run("assistant_only_loss: false", rows=rows)
    done.tells("lost_thinking: the chat template drops <think> from 8 of 8 sampled rows (first 1, 2, 3", "Keep one")
    turns = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    path = stage.write("other.jinja", turns + "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}")
    done = stage.run(f"chat_template: {path}\nassistant_only_loss: false", rows=sums(8))
    done.tells("template_mismatch: 8 of 8 sampled rows", "'Assistant: ' for generation, 'assistant: The answ")
    path = stage.write("small.jinja", turns.replace("m['content']", "m['content'].lower()"))
    stage.run(f"chat_template: {path}\nassistant_only_loss: false").tells(
        "altered_text: the chat template or tokenizer"
    )


@case(
    "D11",
    "DPO: chosen equal to rejected, an empty side, prompts longer than `max_length`",
    "no gradient; accepted; left out silently",
    ERROR,
    ("utils.data.splits.without_identical_pairs", lambda rows, *_: rows),
    "utils.data.splits.row_fault",
    "utils.preflight.shared.check_lengths",
    "dpo.checks.check_sides",
)
def broken_pairs(stage):
    rows = pairs(60)
    rows[6]["rejected"] = rows[6]["chosen"]
    stage.run(rows=rows, method="dpo").tells(
        "WARNING   identical_pairs: 1 of 60 pairs of rows.jsonl", "(rows 7)", "left out"
    )
    rows[8]["chosen"] = [assistant("")]
    stage.run(rows=rows, method="dpo").tells("row 9: chosen has an empty assistant message")
    long = pairs(60)
    for row in long[:40]:
        row["prompt"] = [user("word " * 300)]
    done = stage.run(rows=long, method="dpo")
    done.tells("dropped_rows: the trainer left out 40 of 60 rows: max_length = 256 leaves them nothing to learn")


@case(
    "D12",
    "DPO: a public pair set of which half is identical",
    "trains on pairs without a gradient",
    ERROR,
    ("utils.data.splits.without_identical_pairs", lambda rows, *_: rows),
    "dpo.checks.check_sides",
)
def identical_half(stage):
    rows = pairs(24)
    for row in rows[::2]:
        row["rejected"] = row["chosen"]
    done = stage.run(rows=rows, method="dpo")
    done.tells(
        "stopped this run before its first step", "identical_pairs: 12 of 24 pairs of rows.jsonl have chosen equal"
    )
    done.tells("(rows 1, 3, 5, 7, 9, ...)", "accept: [identical_pairs]")
    assert done.code == 2


@case(
    "D13",
    "`test_split_size`",
    "splits without a seed: two processes draw two test sets, and a resume a third",
    DEFAULT,
    ("utils.data.splits.is_held_out", lambda key, share: random.random() < share),
)
def split_by_content(stage):
    stage.run("test_split_size: 0.1").tells("write heldout_fraction: 0.1, the split is made by a hash of the prompt")
    held = []
    for rows in (sums(40), sums(40)[::-1]):
        _, heldout = splits_of(stage, "heldout_fraction: 0.3", rows)
        held.append({json.dumps(row["messages"]) for row in heldout})
    assert held[0] == held[1]
    assert 0 < len(held[0]) < 40


@case(
    "D14",
    "`fraction` in a mixture",
    "keeps the first rows, not a sample",
    DEFAULT,
    ("utils.data.splits.mix", lambda parts, shares, seed: parts[0].select(range(10))),
)
def mixture_is_a_sample(stage):
    one, two = stage.write("one.jsonl", sums(40)), stage.write("two.jsonl", sums(10, start=100))
    train, _ = splits_of(stage, f"datasets: [{{path: {one}, fraction: 0.5}}, {{path: {two}, fraction: 0.5}}]", None)
    numbers = [int(row["messages"][0]["content"].split()[2]) for row in train]
    assert len([n for n in numbers if n >= 100]) == 10
    assert max(n for n in numbers if n < 100) > 15


@case(
    "D15",
    "a held-out prompt in the training file, or nearly",
    "scores that mean nothing",
    LOUD,
    ("utils.config.findings.Findings.add", nothing),
    "utils.preflight.shared.check_near_copies",
)
def leaks(stage):
    long = "Ann has {} nuts in a basket and gives three of them to each of her friends at the old school. How many?"
    rows = [{"messages": [user(long.format(n) + " Think."), assistant(str(n))]} for n in (7, 8)] + sums(22)
    heldout = [*sums(2), {"messages": [user(long.format(9)), assistant("9")]}]
    done = stage.run(f"heldout_name: {stage.write('held.jsonl', heldout)}", rows=rows)
    done.tells(
        "heldout_in_training: 2 of 24 training rows ask a prompt of held.jsonl", "'Ann has 0 nuts", "are left out"
    )
    done.tells(
        "near_copies: 2 of 22 sampled rows (first 1, 2: 'Ann has 7 nuts",
        "nearly ask a held-out prompt",
        "22 to train on",
    )
    assert done.code == 0


@case(
    "D16",
    "ChatML rows",
    "trains the newline after `<|im_end|>` too",
    LOUD,
    ("sft.checks.facts", lambda context: {}),
)
def newline_is_trained(stage):
    stage.run().tells("and the template's newline after it is learnt too")


# --- online RL -------------------------------------------------------------------------------------------------------

STANDS = "accept: [equal_rewards, clipped_completions]"


@case("G1", "fewer prompts than one generation batch", 'no step, and "success"', ERROR, "online_rl.checks.check_steps")
def no_steps(stage):
    done = stage.run(f"{STANDS}\nper_device_train_batch_size: 16", rows=tasks(3), method="grpo")
    done.tells("no_steps: 3 prompts are fewer than the 4 of one generation (16 completions / num_generations = 4)")
    done.tells("Write generation_batch_size: 12")


@case(
    "G2",
    "a batch not divisible by `num_generations`",
    "an error whose arithmetic is left to the user",
    ERROR,
    "online_rl.config.check_batches",
)
def uneven_groups(stage):
    done = stage.run("per_device_train_batch_size: 8\nnum_generations: 6", method="grpo")
    done.tells("run.yaml:2: num_generations: one generation makes 8 completions (1 processes x 8 rows x 1 steps)")
    done.tells("Write per_device_train_batch_size: 6 or 12, or num_generations: 4 or 8")


@case("G3", "all rewards equal", "loss 0 for ever, no warning", ERROR, "online_rl.checks.check_rollout")
def equal_rewards(stage):
    done = stage.run("accept: [clipped_completions]", method="grpo")
    done.tells(
        "equal_rewards: in 100% of 8 groups all 4 completions got the same reward (mean 0.00)", "Take prompts that"
    )


@case(
    "G4",
    "a reward that gives NaN, fails on an empty answer, or gives too few",
    "loss 0; a crash when it comes",
    ERROR,
    "online_rl.reward_checks.check_rewards",
)
def broken_reward(stage):
    rewards = {
        "nan": "[float('nan')] * len(completions)",
        "fails": "[1 / len(c[0]['content']) for c in completions]",
        "few": "[1.0]",
        "words": "['good'] * len(completions)",
    }
    own_rewards(stage, rewards)
    for name, said in {
        "nan": "nan gives nan for an empty answer (other): its group would have no gradient",
        "fails": "fails fails on an empty answer (other): ZeroDivisionError",
        "few": "few gives 1 scores for 8 completions. Give one a completion",
        "words": "words gives 'good' for an empty answer (other), which is no number",
    }.items():
        done = stage.run(f"{STANDS}\nreward_funcs: [my_rewards.{name}]", method="grpo")
        done.tells(f"bad_reward: {said}")


@case(
    "G5",
    "two reward functions of one name",
    "adds them up in one column",
    ERROR,
    "online_rl.reward_checks.check_reward_names",
)
def same_names(stage):
    own_rewards(stage, {"exact_match": "[float(len(str(c))) for c in completions]"})
    done = stage.run(f"{STANDS}\nreward_funcs: [exact_match, my_rewards.exact_match]", method="grpo")
    done.tells("same_reward_names: 2 reward functions are called exact_match", "Rename one")


@case(
    "G6",
    '`accuracy_reward` on "The answer is 4.", or with a gold that is no mathematics',
    "scores 0, or None, for every row",
    LOUD,
    "online_rl.reward_checks.check_rewards",
)
def boxed_only(stage):
    rows = [row | {"solution": f"${n + 3}$", "answer": str(n + 3)} for n, row in enumerate(tasks(24))]
    done = stage.run(f"{STANDS}\nreward_funcs: [trl.rewards.accuracy_reward]", rows=rows, method="grpo")
    done.tells("WARNING   gold_not_best: accuracy_reward gives the rows' own right answers no more than wrong ones")
    done.tells("tells them apart only in \\boxed{}. Ask for that form in the prompt")
    rows = [row | {"solution": "it depends"} for row in tasks(24)]
    done = stage.run(f"{STANDS}\nreward_funcs: [trl.rewards.accuracy_reward]", rows=rows, method="grpo")
    done.tells("constant_reward: accuracy_reward gives None for every answer", "the form of the gold")


@case(
    "G7",
    "completions all cut at `max_completion_length`",
    "reward 0, flat curves",
    ERROR,
    "online_rl.checks.check_rollout",
)
def clipped(stage):
    done = stage.run("accept: [equal_rewards]", method="grpo")
    done.tells("clipped_completions: 100% of the completions were cut at max_completion_length = 8", "Raise it, or")


def keeps_all(rows, *_):
    return rows


@case(
    "G8",
    "prompts of any length",
    "never filters them",
    DEFAULT,
    ("online_rl.prompts.drop_long_prompts", keeps_all),
)
def long_prompts(stage):
    rows = tasks(24)
    rows[3]["prompt"] = [user("word " * 600)]
    done = stage.run(STANDS, rows=rows, method="grpo")
    done.tells("WARNING   long_prompts: 1 of 24 prompts have more than 1016 tokens", "First: 'word word")
    done.tells("23 prompts to train on")


@case(
    "G9",
    "continuous batching with bf16",
    "casts the weights to bf16 in place, for good",
    ERROR,
    "online_rl.config.check_backends",
)
def cast_in_place(stage):
    done = stage.run("use_transformers_continuous_batching: true", method="grpo")
    done.tells(
        "run.yaml:1: use_transformers_continuous_batching: with bf16 it casts the float32 weights", "Write bf16: false"
    )


@case(
    "G10",
    "soft overlong punishment with its shipped numbers",
    "never fires at the default completion length",
    ERROR,
    "online_rl.reward_checks.check_rewards",
)
def punishment_that_never_fires(stage):
    own_rewards(stage, {"soft": "PUNISH(**kwargs)"}, "from trl.rewards import get_soft_overlong_punishment as made\n"
                "PUNISH = made(max_completion_len=1280, soft_punish_cache=256)\n")  # fmt: skip
    done = stage.run(f"{STANDS}\nreward_funcs: [exact_match, my_rewards.soft]", method="grpo")
    done.tells(
        "constant_reward: soft gives 0.0 to right, wrong, empty and very long answers alike",
        "under max_completion_length = 8",
    )


@case(
    "G11",
    "a reward that can be had without being right",
    "seen after training, elsewhere",
    LOUD,
    "utils.run.alarms.score_fell",
)
def reward_hacking(stage):
    own_rewards(stage, {
        "right": "[float(str(c).strip().split('.')[0] == a) for c, a in zip(completions, kwargs['answer'])]",
        "many_ones": "[str(c).count('1') / 6 for c in completions]",
    })  # fmt: skip
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(20, 60) for b in range(2, 8)]
    text = "accept: [gold_not_best, constant_reward, equal_rewards, clipped_completions]\nheldout_fraction: 0.2\n"
    text += "learning_rate: 1e-2\nreward_funcs: [my_rewards.many_ones]\neval_metrics: [my_rewards.right]\n"
    text += "eval_prompts: 40\nmax_steps: 14\n"
    text += "max_completion_length: 6\nper_device_train_batch_size: 32"
    done = stage.run(text, rows=rows, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    done.tells("ALARM     reward_hacking", "fell by", "while the training reward rose", "read the transcripts")
    alarms = json.loads((stage.folder / "out/metrics.json").read_text())["alarms"]
    assert "reward_hacking" in [alarm["name"] for alarm in alarms]


# --- the run ---------------------------------------------------------------------------------------------------------

SAVES = "save_strategy: steps\nsave_steps: 2"


@case(
    "R1",
    "killed while a checkpoint is written",
    "goes on from it, whole or not",
    DEFAULT,
    ("utils.run.run.newest_whole_checkpoint", lambda folder: folder / "checkpoint-4"),
)
def torn_checkpoint(stage):
    assert stage.run(SAVES, flags=TRAIN).code == 0
    (stage.folder / "out/metrics.json").unlink()  # as if killed: not finished
    state = stage.folder / "out/checkpoint-4/trainer_state.json"
    state.write_text(state.read_text()[:100])
    done = stage.run(SAVES, flags=TRAIN)
    assert done.code == 0, done.said
    done.tells("checkpoint-4 was not written to its end and is passed over", "checkpoint-2")


@case(
    "R2",
    "SIGTERM: a job that is pre-empted",
    "dies; what was learnt since the last checkpoint is lost",
    DEFAULT,
    "utils.run.progress.Preemption.request",
)
def preempted(stage):
    text = "save_strategy: steps\nsave_steps: 5\nmax_steps: 60"
    earlier = signal.signal(signal.SIGTERM, nothing)  # so that a test without the check does not end the tests
    threading.Thread(target=terminate_after, args=(stage.folder / "out/checkpoint-5",), daemon=True).start()
    try:
        done = stage.run(text, flags=TRAIN)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert done.code == 143, done.said
    done.tells("SIGTERM: checkpoint-", "the same command goes on from there")
    assert stage.run(text, flags=TRAIN).said.count("going on from") == 1
    alone = stage.run(f"{text}\noutput_dir: {stage.folder / 'alone'}", flags=TRAIN)
    assert alone.code == 0, alone.said
    assert digest(stage.folder / "out/model.safetensors") == digest(stage.folder / "alone/model.safetensors")


@case("R3", "`resume_from_checkpoint: true`", "crashes if there is no checkpoint", ERROR, MISTAKES)
def resume_by_key(stage):
    done = stage.run("resume_from_checkpoint: true")
    done.tells("resume_from_checkpoint: is not used here: remove it: the same command goes on")


def restarts_the_count(source, values):
    resolved = resolve(source, values)
    resolved.pop("include_num_input_tokens_seen")
    return resolved


@case(
    "R4",
    "an SFT or DPO run goes on",
    "`num_tokens` starts at 0 again",
    DEFAULT,
    ("utils.config.parse.resolve", restarts_the_count),
)
def tokens_are_kept(stage):
    assert stage.run(SAVES, flags=TRAIN).code == 0
    path = stage.folder / "out/metrics.json"
    alone = json.loads(path.read_text())["train"]["tokens"]
    path.unlink()
    shutil.rmtree(stage.folder / "out/checkpoint-4")
    stage.run(SAVES, flags=TRAIN).tells("going on from")
    assert json.loads(path.read_text())["train"]["tokens"] == alone > 100


@case(
    "R5",
    "the loss becomes NaN or infinite",
    "trains on",
    "stops before the step that would spread it",
    "utils.run.alarms.AlarmCallback.stop",
)
def not_finite(stage):
    text = "dtype: float16\nlearning_rate: 0.1\nmax_grad_norm: 0\nmax_steps: 6\nsave_strategy: steps\nsave_steps: 1"
    done = stage.run(text, flags=TRAIN)
    assert done.code == 2
    done.tells("Training stopped: at step", "the gradient is not finite (first in model.", "the step was not taken")
    done.tells("The newest good checkpoint is checkpoint-", "Lower learning_rate")
    found = json.loads((stage.folder / "out/metrics.json").read_text())
    assert found["alarms"][-1]["name"] == "not_finite"
    assert "after" not in found
    report = (stage.folder / "out/report.html").read_text()
    assert "not_finite" in report
    assert "There are no answers to compare" in report


@case(
    "R6",
    "the longest batch does not fit, an hour in",
    "out of memory",
    ERROR,
    "utils.preflight.steps.check_longest_batch",
)
def out_of_memory(stage):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")  # the device says it so

    with stage.monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", no_room)
        done = stage.run()
    done.tells("out_of_memory: the batch of the 4 longest rows (", "Write a smaller per_device_train_batch_size")


@case(
    "R7",
    "several GPUs to see, no launcher",
    "refuses, without the command",
    ERROR,
    ("utils.config.parse.GPUS_PER_PROCESS", 99),
)
def no_launcher(stage):
    with stage.monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
        stage.run().tells(
            "2 GPUs are visible to one process. Write: accelerate launch --config_file", "--num_processes 2"
        )


@case(
    "R8",
    "two threads beside another busy process",
    "10 to 20 times slower",
    LOUD,
    "utils.run.run.warn_of_busy_machine",
)
def busy_machine(stage):
    stage.monkeypatch.setattr("psutil.cpu_percent", lambda interval: 95.0)
    stage.monkeypatch.setattr("torch.get_num_threads", lambda: os.cpu_count())
    stage.run().tells("WARNING   busy_machine: other processes keep", "10 to 20 times slower", "set OMP_NUM_THREADS=1")


def plain_defaults(source, values):
    resolved = resolve(source, values)
    return {key: value for key, value in resolved.items() if key in values or key in ("output_dir", "use_cpu", "bf16")}


@case(
    "R9",
    "LoRA with nothing more said",
    "only q_proj and v_proj are trained; never merged",
    DEFAULT,
    ("utils.config.parse.resolve", plain_defaults),
)
def lora_defaults(stage):
    assert config_of(stage, "use_peft: true").model.lora_target_modules == "all-linear"
    done = stage.run("use_peft: true\nmerge_adapter: true\nmax_steps: 1", flags=TRAIN)
    assert done.code == 0, done.said
    assert (stage.folder / "out/merged/model.safetensors").is_file()


@case(
    "R10",
    "4-bit with nothing more said",
    "computes in float32",
    DEFAULT,
    ("utils.config.parse.resolve", plain_defaults),
)
def four_bit(stage):
    assert config_of(stage, "use_peft: true\nload_in_4bit: true").model.dtype == "bfloat16"  # TRL computes in dtype
    stage.run("load_in_4bit: true").tells("load_in_4bit: quantised weights cannot be trained. Write use_peft: true")


@case("R11", "a trainer is created", "telemetry is sent unless switched off", DEFAULT, ("utils.config.read.QUIET", {}))
def telemetry(stage):
    stage.monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    read_config("", ["--config", str(stage.yaml("sft", ""))])
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


@case(
    "R12",
    "the run ends",
    'no evaluation, no metrics, no record; "fine-tuned version of [None]"',
    DEFAULT,
    "utils.report.report.write_report",
)
def the_end_is_reported(stage):
    done = stage.run("heldout_fraction: 0.3\nmax_steps: 1\neval_prompts: 4", flags=TRAIN)
    assert done.code == 0, done.said
    found = json.loads((stage.folder / "out/metrics.json").read_text())
    assert found["before"]["heldout_loss"]["n"] == found["after"]["heldout_loss"]["n"] == 4
    assert {"command", "git_commit", "data", "versions"} <= set(
        json.loads((stage.folder / "out/run.json").read_text())
    )
    assert "[None]" not in (stage.folder / "out/README.md").read_text()


# --- found since -----------------------------------------------------------------------------------------------------


@case(
    "X1",
    "`accelerate launch --num_processes 2` on a machine without GPUs",
    "one process, and no word",
    LOUD,
    "utils.run.run.warn_of_missing_processes",
)
def fewer_processes(stage):
    stage.monkeypatch.setattr("psutil.Process.cmdline", lambda self: ["accelerate", "launch", "--num_processes", "2"])
    stage.run().tells("missing_processes: accelerate started 1 process, not 2. Add --config_file configs/accelerate")


@case("X2", "answers that lie past `max_length`", "leaves the rows out", ERROR, "utils.preflight.shared.check_lengths")
def dropped_rows(stage):
    done = stage.run("max_length: 20")
    done.tells(
        "dropped_rows: the trainer left out 24 of 24 rows: max_length = 20 leaves them nothing to learn. Raise it"
    )
    rows = [*sums(30), {"messages": [user("word " * 300), assistant("Yes.")]}]
    stage.run(rows=rows).tells("dropped_rows: the trainer left out 1 of 31 rows: max_length = 256 leaves them nothing")


@case(
    "X3",
    "killed after the last step, started again",
    "trains one step past `max_steps`",
    DEFAULT,
    ("utils.run.run.Run.restore", lambda *_: False),
)
def not_one_step_more(stage):
    text = f"{SAVES}\nlr_scheduler_type: constant"
    assert stage.run(text, flags=TRAIN).code == 0
    weights = digest(stage.folder / "out/model.safetensors")
    (stage.folder / "out/metrics.json").unlink()
    assert stage.run(text, flags=TRAIN).code == 0
    assert digest(stage.folder / "out/model.safetensors") == weights


@case(
    "X4",
    "`dtype: bfloat16` with a small learning rate",
    "most steps are rounded away: the weights never move",
    ERROR,
    "utils.preflight.shared.check_updates",
)
def rounded_updates(stage):
    done = stage.run("dtype: bfloat16\nlearning_rate: 1e-6")
    done.tells("lost_updates:", "of the weights are held in bfloat16", "learning_rate = 1e-06", "Write dtype: float32")


@case("X5", "DPO: `label_smoothing` with `loss_type: sigmoid`", "no effect since TRL 0.29", ERROR, MISTAKES)
def smoothing_without_effect(stage):
    done = stage.run("label_smoothing: 0.1", method="dpo")
    done.tells("run.yaml:1: label_smoothing: has no effect with sigmoid. Write loss_type: robust")


@case("X6", "DPO: other numbers of `loss_weights` than losses", "fails at its first step", ERROR, MISTAKES)
def weights_of_losses(stage):
    done = stage.run("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", method="dpo")
    done.tells("run.yaml:2: loss_weights: has 1 numbers for 2 losses. Write one for each")


@case("X7", "`messages` rows and no mask", "the users' turns are learnt as well", LOUD, "sft.checks.check_masks")
def prompts_trained(stage):
    done = stage.run("assistant_only_loss: false")
    done.tells("WARNING   prompts_trained: every token is learnt", "Write assistant_only_loss: true")


@case("X8", "rows that stand several times in the file", "they weigh more", LOUD, "utils.data.splits.find_duplicates")
def duplicates(stage):
    done = stage.run(rows=sums(20) + sums(1) * 4)
    done.tells(
        "WARNING   duplicate_rows: 4 of 24 training rows are copies of others (5 times: 'Ann has 0 nuts", "Remove"
    )


@case("X9", "DPO: chosen and rejected swapped", "learns the worse answers", ERROR, "dpo.checks.check_swapped")
def swapped(stage):
    rows = [row | {"score_chosen": 2.0, "score_rejected": 8.0} for row in pairs(24)]
    done = stage.run(rows=rows, method="dpo")
    done.tells("swapped_sides: chosen is worse than rejected in 24 of 24 pairs by score_chosen", "Swap the columns")
    rows = [row | {"chosen": row["rejected"], "rejected": row["chosen"], "answer": row["chosen"][0]["content"]}
            for row in pairs(24)]  # fmt: skip
    heldout = stage.write("held.jsonl", [row | {"prompt": [user(f"And {n}?")]} for n, row in enumerate(rows[:4])])
    done = stage.run(f"eval_metrics: [exact_match]\nheldout_name: {heldout}", rows=rows, method="dpo")
    done.tells("swapped_sides: chosen is worse than rejected in 24 of 24 pairs by exact_match")


@case("X10", "DPO: chosen nearly always the longer side", "learns the length", LOUD, "dpo.checks.check_length_bias")
def length_bias(stage):
    sides = {"chosen": [assistant("The answer, if one counts all, is three.")], "rejected": [assistant("3")]}
    rows = [row | sides for row in pairs(24)]
    stage.run(rows=rows, method="dpo").tells("WARNING   length_bias: chosen is the longer side in 100% of the pairs")


@case(
    "X11",
    "a reward that an empty answer gets more of than the right one",
    "learns to say nothing",
    ERROR,
    "online_rl.reward_checks.compare_gold",
)
def gold_is_not_best(stage):
    own_rewards(stage, {"empty_is_best": "[-float(len(str(c))) for c in completions]"})
    done = stage.run(f"{STANDS}\nreward_funcs: [my_rewards.empty_is_best]", method="grpo")
    done.tells(
        "gold_not_best: empty_is_best gives -38 to an empty answer and -47", "to the right one", "Correct the function"
    )


@case(
    "X12",
    "`max_length` over the model's context",
    "trains positions that were never seen",
    ERROR,
    "utils.preflight.shared.check_lengths",
)
def over_context(stage):
    rows = [*sums(8), {"messages": [user("Hello."), assistant("word " * 1000)]}]
    done = stage.run("max_length: 4096", rows=rows)
    done.tells(
        "over_context: rows have up to", "(max_length: 4096), and the model's context ends at 1024", "Write max_length"
    )
    done = stage.run("max_length: 1000", rows=rows)
    done.tells("truncated_rows", "The model's context ends at 1024: split the longer rows, or remove them")


@case(
    "X13",
    "DPO at a learning rate that destroys the model",
    "reward accuracy 1.0, and no word",
    LOUD,
    ("utils.run.alarms.RULES", ()),
)
def dpo_destroys(stage):
    rows = [
        {"prompt": f"{a} + {b} =", "chosen": f" {a + b}.", "rejected": f" {a + b + 1}."}
        for a in range(20, 40)
        for b in range(2, 6)
    ]
    done = stage.run("learning_rate: 1e-3\nmax_steps: 20", rows=rows, method="dpo", flags=TRAIN)
    assert done.code == 0, done.said
    done.tells("ALARM     likelihoods_falling", "Lower learning_rate, raise beta, or add sft to loss_type")
    assert "likelihoods_falling" in (stage.folder / "out/report.html").read_text()


@case("X14", "`model_init_kwargs: {dtype: ...}`", "`TypeError` or no effect", ERROR, MISTAKES)
def kwargs_of_the_model(stage):
    stage.run("model_init_kwargs: {dtype: bfloat16}").tells(
        "model_init_kwargs: dtype is a key of its own. Write dtype:"
    )


@case("X15", "a name in `accept:` that is no finding", "(there is no accept)", ERROR, MISTAKES)
def accepted_names(stage):
    stage.run("accept: [truncated_row]").tells(
        "run.yaml:1: accept: there is no finding 'truncated_row'; did you mean truncated_rows?"
    )


@case(
    "X16",
    "several turns, or tool calls, under Qwen3's own template and `assistant_only_loss`",
    "trains on a template of its own that keeps empty `<think>` blocks, which generation drops",
    ERROR,
    "utils.preflight.shared.check_template",
)
def template_of_trl(stage):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    asks = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [
        {"messages": [user(f"Add 1 and {n}."), asks, {"role": "tool", "name": "add", "content": "3"}, assistant("3.")]}
        for n in range(6)
    ]
    done = stage.run(rows=rows)
    done.tells("template_mismatch: 6 of 6 sampled rows", "write chat_template: qwen3_training, and generation has it")
    done = stage.run("chat_template: qwen3_training", rows=rows)
    assert done.code == 0, done.said


@case(
    "X17",
    "a template that does not render the answers",
    "leaves every row out, and fails without a reason",
    ERROR,
    "sft.checks.check_masks",
)
def no_answers(stage):
    path = stage.write("mute.jinja", "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}")
    rows = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in sums(8)]
    done = stage.run(f"chat_template: {path}\nassistant_only_loss: false", rows=rows)
    done.tells(
        "no_supervised_tokens: 8 of 8 sampled rows (first 1, 2, 3, ...: 'Ann has", "have no token to learn from"
    )


@case(
    "X18",
    "GRPO: a checkpoint between two steps on the completions of one generation",
    "a run that goes on generates anew: other weights than a run left alone",
    ERROR,
    "online_rl.config.check_batches",
)
def checkpoint_within_a_generation(stage):
    done = stage.run("save_steps: 3\nsave_strategy: steps\nsteps_per_generation: 2\nnum_iterations: 2", method="grpo")
    done.tells("run.yaml:1: save_steps: 3 falls between the steps of one generation", "Write save_steps: 4")
    text = "save_steps: 3\nsave_strategy: steps\ngeneration_batch_size: 8"
    stage.run(text, method="grpo").tells("save_steps: 3 falls between the steps", "Write save_steps: 2 or 4")


@case(
    "X19",
    "`train[:25%]` of a local file",
    "an unknown split",
    DEFAULT,
    (
        "utils.data.splits.load_rows",
        lambda name, *_: datasets.load_dataset("json", data_files=str(name), split="train"),
    ),
)
def slice_of_a_file(stage):
    train, _ = splits_of(stage, "dataset_train_split: train[:25%]", sums(40))
    assert len(train) == 10


@case(
    "X20",
    "DPO: sides of other prompts, or without any",
    "`IndexError`",
    ERROR,
    "utils.data.splits.row_fault",
)
def sides_without_a_common_prompt(stage):
    rows = [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in pairs(8)]
    stage.run(rows=rows, method="dpo").tells(
        "row 1: chosen and rejected begin with no common prompt; write it at the head"
    )


@case(
    "X21",
    "DPO: another `max_length` with `truncation_mode: keep_end` and precomputed reference log-probabilities",
    "takes those of the answers as they were cut before, from its cache",
    DEFAULT,
    ("utils.data.splits.cut_settings", lambda config: ""),
)
def stale_reference(stage):
    text = "truncation_mode: keep_end\nprecompute_ref_log_probs: true\nmax_steps: 1\naccept: [truncated_rows]\n"
    assert stage.run(f"{text}max_length: 256", method="dpo").code == 0
    done = stage.run(f"{text}max_length: 24", method="dpo", flags=TRAIN)  # the same file: another would have no cache
    assert done.code == 0, done.said
    # At the first step the model is its own reference.
    first = json.loads((stage.folder / "out/metrics.json").read_text())["train"]["first_loss"]
    assert abs(first - math.log(2)) < 1e-4


CUT = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "calculator", "arguments": {"a": 1}}}]},
    {"role": "tool", "name": "calculator", "content": "19"},
]


@case(
    "X22",
    "GRPO with tools: a completion that is cut after a tool spoke",
    "gives rewards its last message, so what the tool said scores as the model's answer",
    DEFAULT,
    ("utils.rewards.answers.answer_text", lambda completion: completion[-1]["content"]),
)
def a_tool_is_no_answer(stage):
    assert rewards.exact_match([CUT], answer=["19"]) == [0.0]


def load_carelessly(config, name):
    return AutoModelForSequenceClassification.from_pretrained(ROOT / name, num_labels=1)


@case(
    "X23",
    "a reward model that is a language model, without a trained head",
    "makes a random head up and trains on its scores",
    ERROR,
    ("utils.model.load_reward_model", load_carelessly),
)
def random_judge(stage):
    done = stage.run(f"{STANDS}\nreward_funcs: [tiny/base]", method="grpo")
    done.tells("reward_funcs: tiny/base is no reward model: it lacks score.weight, and random weights would judge")


@case(
    "X24",
    '`log_completions` where tool calls have arguments of several types (`5` and `"5"`)',
    "ends the run in pyarrow",
    DEFAULT,
    ("utils.report.completions.dialogue_text", lambda said: said),
)
def tool_calls_are_kept(stage):
    calls = [[CUT[0] | {"tool_calls": [{"function": {"name": "f", "arguments": {"a": a}}}]}] for a in (5, "5", [5])]
    logs = {"prompt": ["?"] * 3, "completion": calls, "rewards": {"r": [1.0] * 3}, "advantages": [0.0] * 3}
    trainer = SimpleNamespace(_logs=logs, reward_weights=torch.ones(1), num_generations=3)
    state = SimpleNamespace(global_step=1, is_world_process_zero=True, log_history=[{}])
    Completions(trainer).on_log(SimpleNamespace(output_dir=stage.folder), state, None, logs={"reward": 1.0})
    assert (stage.folder / "completions/step-000001.parquet").is_file()


@case(
    "X25",
    "`vllm_mode: server`, and something else listens there, or nothing",
    "waits without a time limit for a server that says nothing",
    ERROR,
    "online_rl.vllm_backend.check_server",
)
def no_server(stage):
    stage.monkeypatch.setattr(backends, "version", lambda name: "0.30.0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stage.monkeypatch.setattr(backends, "PATIENCE", 0.3)
        port = silent.getsockname()[1]
        text = f"use_vllm: true\nvllm_mode: server\nvllm_server_base_url: http://127.0.0.1:{port}\n"
        done = stage.run(text + "vllm_server_timeout: 0.5", method="grpo")
    done.tells(f"vllm_mode: no vLLM server answers at http://127.0.0.1:{port} after 0.5 s", "Start it with: ")


@case(
    "X26",
    "SFT on tool rows whose schema is not that of the tool",
    "trains on a prompt that generation never shows",
    ERROR,
    "utils.preflight.shared.check_template",
)
def another_schema(stage):
    schema = get_json_schema(calculator)
    schema["function"]["description"] = "Another text."
    tools = json.dumps([schema])
    rows = [{"messages": [row["messages"][0], *CUT, row["messages"][1]], "tools": tools} for row in sums(8)]
    done = stage.run("chat_template: qwen3_training\nmax_length: 700\ntools: [calculator]", rows=rows)
    done.tells("template_mismatch: 8 of 8 sampled rows", "Another text.")


@case(
    "X27",
    "GRPO with nothing measured beside the reward",
    "plots the reward alone, which rises when it is gamed too",
    LOUD,
    "online_rl.checks.check_true_score",
)
def reward_alone(stage):
    done = stage.run(STANDS, method="grpo")
    done.tells("WARNING   no_true_score: nothing is measured on held-out prompts", "eval_metrics: [exact_match]")


@case(
    "X28",
    "GRPO with all rewards equal, and a weight such as 0.2 that is no sum of powers of two",
    "counts such groups as unequal: `frac_reward_zero_std` is 0 for ever",
    ERROR,
    ("online_rl.rollouts.equal_groups", lambda trainer: trainer._metrics["train"]["frac_reward_zero_std"][-1]),
)
def equal_but_for_rounding(stage):
    own_rewards(stage, {"one": "[1.0 for c in completions]", "two": "[1.0 for c in completions]"})
    text = "accept: [clipped_completions, gold_not_best, constant_reward]\n"
    text += "reward_funcs: [my_rewards.one, my_rewards.two]\n"
    done = stage.run(
        f"{text}reward_weights: [1.0, 0.2]\nnum_generations: 8\nper_device_train_batch_size: 8", method="grpo"
    )
    assert done.code == 2
    done.tells("equal_rewards: in 100% of", "and such a group has no gradient")


# --- helpers ---------------------------------------------------------------------------------------------------------


def config_of(stage, text, method="sft"):
    classes = {
        "sft": (SFTConfig, RecipeConfig),
        "dpo": (DPOConfig, DPORecipe),
        "grpo": (GRPOConfig, OnlineRLRecipe),
    }
    return parse_config(read_config("", ["--config", str(stage.yaml(method, text))]), *classes[method])


def splits_of(stage, text, rows):
    drop = ["dataset_name"] if rows is None else []
    if rows is not None:
        stage.write("rows.jsonl", rows)
    source = read_config("", ["--config", str(stage.yaml("sft", text, drop))])
    return load_splits(parse_config(source, SFTConfig), lambda row: row, FORMATS, has_template=True)


def copied_base(stage, change):
    """The tiny base with another tokenizer."""
    folder = stage.folder / "base"
    if not folder.exists():
        shutil.copytree(ROOT / "tiny/base", folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
    return folder


def own_rewards(stage, functions, head=""):
    """my_rewards.py: the user's own reward functions."""
    text = head + "".join(f"def {n}(completions, **kwargs):\n    return {body}\n" for n, body in functions.items())
    stage.module("my_rewards", text)


def terminate_after(checkpoint: Path):
    while not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def switch_off(monkeypatch, target, instead):
    """Put something else in the place of a check, wherever it was imported to or stands in a tuple of checks."""
    path, _, name = target.rpartition(".")
    if path.split(".")[-1][0].isupper():  # a method of a class
        module, _, owner = path.rpartition(".")
        monkeypatch.setattr(vars(sys.modules[module])[owner], name, instead)
        return
    original = vars(sys.modules[path])[name]
    for module in [module for key, module in sys.modules.items() if key.split(".")[0] in ("utils", *FOLDERS.values())]:
        for key, value in list(vars(module).items()):
            if value is original:
                monkeypatch.setattr(module, key, instead)
            elif isinstance(value, tuple) and any(part is original for part in value):
                monkeypatch.setattr(module, key, tuple(part for part in value if part is not original))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}-{case.run.__name__}")
def test_it_is_told(stage, case):
    case.run(stage)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}-{case.run.__name__}")
def test_without_its_check_it_is_not(stage, case):
    for target, instead in case.without:
        switch_off(stage.monkeypatch, target, instead)
    with pytest.raises((Exception, SystemExit)):
        case.run(stage)


def table() -> str:
    lines = [
        "# What goes wrong without a word, and what happens here",
        "",
        "Made by `python tests/test_silent_failures.py > docs/silent_failures.md` from the cases of that test, which",
        "runs each one as the code is and again with its check switched off. C: the config, D: the data, G: online",
        "RL, R: the run, X: found since. The third column was measured, read in the source, or reported by users, for",
        "trl 1.16.0. A finding that stops a run can be accepted by name (`accept: [truncated_rows]`); it stays in the",
        "report. R6 to R8 and X1 stand in for machines that a test has not: what the device or system says is put in.",
        "",
        "| | what the user did | what TRL's own script does | what happens here |",
        "|---|---|---|---|",
    ]
    cells = [[text.replace("|", "\\|") for text in (c.row, c.user, c.trl, c.ours)] for c in CASES]
    lines += [f"| {' | '.join(row)} |" for row in cells]
    lines += ["", "## Findings, by the names that `accept:` takes", "", "| name | what was found |", "|---|---|"]
    lines += [f"| `{name}` | {text.replace('<think>', '`<think>`')} |" for name, text in ALL_NAMES.items()]
    return "\n".join(lines) + "\n"


def test_the_table_is_of_these_cases():
    assert (ROOT / "docs/silent_failures.md").read_text() == table()
    listed = {f"C{n}" for n in range(1, 14)} | {f"D{n}" for n in range(1, 17)} | {f"G{n}" for n in range(1, 12)}
    assert listed | {f"R{n}" for n in range(1, 13)} <= {case.row for case in CASES}


if __name__ == "__main__":
    print(table(), end="")
