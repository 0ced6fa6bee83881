"""The preflight passes healthy runs, and does not change them."""

import importlib
import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from safetensors.torch import load_file
from stage import FOLDERS, ROWS, assistant, pairs, sums, tasks, user
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

THOUGHT = assistant("<think>\nOne more.\n</think>\n\nIt is 3.")
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}}}}  # fmt: skip
TEXT = {"prompt": "Ann has", "completion": " 3 nuts."}
ACCEPT = "accept: [equal_rewards, clipped_completions]"


def chats(*turns, **columns):
    return [{"messages": [user(f"What of {n}?"), *turns]} | columns for n in range(8)]


SYSTEM = {"role": "system", "content": "Be short."}
HEALTHY = {
    "several turns": ("chat_template: qwen3_training", chats(assistant("3."), user("And?"), assistant("4."))),
    "thinking in every turn": ("chat_template: qwen3_training", chats(THOUGHT, user("And?"), THOUGHT)),
    "a system prompt": ("", [{"messages": [SYSTEM, *row["messages"]]} for row in sums(8)]),
    "an empty system prompt": ("", [{"messages": [SYSTEM | {"content": ""}, *row["messages"]]} for row in sums(8)]),
    "tools": ("max_length: 512", chats(assistant("3."), tools=[TOOL])),
    "text": ("assistant_only_loss: false", [{"text": f"{n} + 1 = {n + 1}."} for n in range(8)]),
    "prompt and completion": (
        "assistant_only_loss: false",
        [{"prompt": f"{n} + 1 =", "completion": " 2."} for n in range(8)],
    ),
    "packing": ("packing: true", sums(24)),
    "LoRA": ("use_peft: true", sums(8)),
    "bfloat16 weights and a learning rate large enough": ("dtype: bfloat16\nlearning_rate: 1e-2", sums(8)),
    "long max_length, short rows": ("max_length: 4096", sums(8)),
    "rows held out": ("heldout_fraction: 0.3\neval_strategy: steps\neval_steps: 2", sums(40)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_sft_passes_without_a_warning(stage, name):
    text, rows = HEALTHY[name]
    done = stage.run(text, rows=rows)
    assert done.code == 0, done.said
    assert "WARNING" not in done.said


@pytest.mark.parametrize("text", ["", "use_peft: true", "precompute_ref_log_probs: true", "loss_type: [sigmoid, sft]"])
@pytest.mark.parametrize("form", ["messages", "implicit", "texts", "implicit texts"])
def test_healthy_dpo_passes_without_a_warning(stage, form, text):
    rows = pairs(12)
    if "texts" in form:
        rows = [{"prompt": f"{n} + 1 =", "chosen": f" {n + 1}.", "rejected": f" {n + 2}."} for n in range(12)]
    if "implicit" in form:
        rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    done = stage.run(text, rows=rows, method="dpo")
    assert done.code == 0, done.said
    assert "WARNING" not in done.said


@pytest.mark.parametrize(
    ("functions", "names", "answer"),
    [
        ({}, "[exact_match]", "3"),
        ({"bonus": "[0.1 * ('<b>' in str(c)) for c in completions]"}, "[exact_match, my_rewards.bonus]", "3"),
        ({"choice": "[float(f'Answer: {a}' in str(c)) for c, a in zip(completions, kwargs['answer'])]"},
         "[my_rewards.choice]", "B"),
        ({"first": "[float(c[0]['content'].startswith(a.split()[0])) for c, a in zip(completions, kwargs['answer'])]"},
         "[my_rewards.first]", "5 apples (see figure 2)"),
        ({"half": "[numpy.float32(a in str(c)) for c, a in zip(completions, kwargs['answer'])]"},
         "[my_rewards.half]", "3"),
    ],
)  # fmt: skip
def test_healthy_rewards_are_not_stopped(stage, functions, names, answer):
    body = "".join(f"def {name}(completions, **kwargs):\n    return {code}\n" for name, code in functions.items())
    stage.module("my_rewards", "import numpy\n" + body)
    rows = [row | {"answer": answer} for row in tasks(12)]
    done = stage.run(f"{ACCEPT}\nreward_funcs: {names}", rows=rows, method="grpo")
    if "bonus" in functions:  # no answer that was tried earns it: this is reported, and may be intended
        done.tells("constant_reward: bonus gives 0.0 to right, wrong")
        accept = ACCEPT.replace("]", ", constant_reward]")
        done = stage.run(f"{accept}\nreward_funcs: {names}", rows=rows, method="grpo")
    assert done.code == 0, done.said
    assert ("gold_not_best" in done.said) == (answer == "B")  # it wants a format of its own: a warning


def test_a_metric_of_the_users_own_that_fails_is_reported(stage):
    stage.module("my_rewards", "def needs(completions, **kwargs):\n    return kwargs['nowhere']\n")
    held = stage.write("held.jsonl", sums(2, start=90))
    done = stage.run(f"eval_metrics: [my_rewards.needs]\nheldout_name: {held}")
    assert done.code == 2
    done.tells(
        "eval_metrics: my_rewards.needs cannot score held-out row 1: KeyError: 'nowhere' "
        "at my_rewards.py:2, in needs. Remove the metric"
    )


def test_gold_answers_in_the_column_that_trl_reads(stage):
    rows = [{"prompt": row["prompt"], "solution": "$3$"} for row in tasks(12)]
    done = stage.run(f"{ACCEPT}\nreward_funcs: [trl.rewards.accuracy_reward]", rows=rows, method="grpo")
    assert done.code == 0, done.said
    assert "constant_reward" not in done.said


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_context_length_by_another_name_is_known(stage, method):
    """GPT-2 calls it n_positions; rows that exceed it are reported, and do not end in an index error."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/base")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2))
    model.save_pretrained(stage.folder / "gpt2")
    tokenizer.save_pretrained(stage.folder / "gpt2")
    long = [user("word " * 80)]
    rows = {
        "sft": [{"messages": long + row["messages"][1:]} for row in sums(8)],
        "dpo": [row | {"prompt": long} for row in pairs(8)],
        "grpo": [row | {"prompt": long} for row in tasks(8)],
    }
    done = stage.run(f"model_name_or_path: {stage.folder / 'gpt2'}", rows=rows[method], method=method)
    assert done.code == 2
    done.tells("all 8 prompts have more than 56 tokens" if method == "grpo" else "over_context")


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_preflight_leaves_no_trace(stage, method):
    """With dropout, sampling and a random reward, a run is the same with the checks and without them."""
    dice = "import random\ndef dice(completions, **kwargs):\n    return [random.random() for c in completions]\n"
    stage.module("my_rewards", dice)
    text = "use_peft: true\nlora_dropout: 0.1\nsave_strategy: steps\nsave_steps: 4\nlearning_rate: 1e-3\n"
    text += {"grpo": "accept: [clipped_completions]\nreward_funcs: [my_rewards.dice]"}.get(method, "")
    ends = []
    for checked in (True, False):
        if not checked:
            stage.monkeypatch.setattr(importlib.import_module(f"{FOLDERS[method]}.checks"), "CHECKS", ())
        out = stage.folder / f"out_{checked}"
        assert stage.run(f"{text}\noutput_dir: {out}", rows=ROWS[method], method=method, flags=()).code == 0
        logs = json.loads((out / "checkpoint-4/trainer_state.json").read_text())["log_history"]
        for log in logs:
            for key in [key for key in log if "time" in key or "second" in key or "runtime" in key]:
                del log[key]
        ends.append((load_file(out / "adapter_model.safetensors"), logs))
    (weights, logs), (others, other_logs) = ends
    assert all((weights[name] == others[name]).all() for name in weights)
    assert logs == other_logs


def test_check_is_quick():
    """--check on the tiny recipe: under 1.5 times the import of TRL's trainer and 5 seconds."""
    seconds = []
    check = ["sft/train.py", "--config", "configs/sft_tiny.yaml", "--check"]
    for words in (["-c", "from trl import SFTTrainer"], check):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.perf_counter() - begun)
    assert seconds[1] < 1.5 * seconds[0] + 5
