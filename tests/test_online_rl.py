"""Online RL: what is kept of it, resume, rewards by model, tools, environments, backends, pass rates, real configs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas
import pytest
from conftest import ROOT, digest
from stage import tasks, user
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from online_rl import vllm_backend as backends
from online_rl.config import OnlineRLRecipe
from utils.rewards.sandbox import unsupported

TRAIN = ()
STANDS = "accept: [equal_rewards, clipped_completions, gold_not_best, constant_reward]"
# A reward that the untrained base gets more and less of, so that there is a gradient.
VARIED = "def digits(completions, **kwargs):\n    return [sum(c.isdigit() for c in str(x)) / 9 for x in completions]\n"


def learning(stage, text=""):
    stage.module("my_rewards", VARIED)
    return f"{STANDS}\nreward_funcs: [my_rewards.digits]\nlearning_rate: 1e-3\n{text}"


def metrics(stage, folder="out"):
    return json.loads((stage.folder / folder / "metrics.json").read_text())


def history(stage, checkpoint):
    return json.loads((stage.folder / "out" / checkpoint / "trainer_state.json").read_text())["log_history"]


# --- what is kept, and resume ----------------------------------------------------------------------------------------


def test_completions_are_kept_and_shown(stage):
    stage.module("my_rewards", VARIED + "def maybe(completions, **kwargs):\n    return [None] * len(completions)\n")
    text = f"{STANDS}\nreward_funcs: [my_rewards.digits, my_rewards.maybe]\nreward_weights: [0.5, 1.0]"
    rows = [row | {"prompt": [user(f"<b>{n}</b> nuts and 3?")]} for n, row in enumerate(tasks(24))]
    assert stage.run(text, rows=rows, method="grpo", flags=TRAIN).code == 0
    files = sorted((stage.folder / "out/completions").iterdir())
    assert [path.name for path in files] == [f"step-00000{step}.parquet" for step in (1, 2, 3, 4)]
    table = pandas.read_parquet(files[-1])
    assert len(table) == 4
    assert table["reward"].tolist() == pytest.approx((0.5 * table["digits"]).tolist())
    assert table["advantage"].sum() == pytest.approx(0, abs=1e-3)
    page = (stage.folder / "out/report.html").read_text()
    assert page.count("mean reward") == 4  # one a quarter
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_the_true_score_stands_beside_the_reward(stage):
    held = stage.write("held.jsonl", tasks(40)[30:])
    text = f"heldout_name: {held}\neval_metrics: [exact_match, ends_with_answer]\nsave_strategy: steps\nsave_steps: 4"
    assert stage.run(learning(stage, text), method="grpo", flags=TRAIN).code == 0
    points = [log for log in history(stage, "checkpoint-4") if "heldout/exact_match" in log]
    assert [log["step"] for log in points] == [0, 1, 2, 3]
    assert all(log["heldout/prompts"] == 10 for log in points)
    rewards = [log["reward"] for log in history(stage, "checkpoint-4") if "reward" in log]
    shutil.rmtree(stage.folder / "out")
    # Looking does not change what is trained.
    done = stage.run(learning(stage, text + "\nheldout_points: 0"), method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    assert rewards == [log["reward"] for log in history(stage, "checkpoint-4") if "reward" in log]


def test_reward_hacking_shows_while_it_trains():
    from utils.run import find_alarms

    logs = [{"step": step, "reward": 0.3 + step / 20} for step in range(1, 13)]
    logs += [{"step": 0, "heldout/right": 0.6, "heldout/prompts": 100}]
    fell = [*logs, {"step": 12, "heldout/right": 0.3, "heldout/prompts": 100}]
    stood = [*logs, {"step": 12, "heldout/right": 0.55, "heldout/prompts": 100}]
    (alarm,) = find_alarms(fell)
    assert alarm.name == "reward_hacking"
    assert "right on held-out prompts fell from 0.60 to 0.30" in alarm.text
    assert find_alarms(stood) == []


def test_a_killed_run_ends_with_the_same_weights(stage, tmp_path):
    """SIGKILL between two steps of the real command line, and the same command again."""
    (tmp_path / "kill_rewards.py").write_text(VARIED)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    text = f"{STANDS}\nreward_funcs: [kill_rewards.digits]\nlearning_rate: 1e-3\nheldout_fraction: 0.3\n"
    text += "save_strategy: steps\nsave_steps: 2\nmax_steps: 40"
    stage.write("rows.jsonl", tasks(24))
    command = [sys.executable, str(ROOT / "online_rl/train.py"), "--config", str(stage.yaml("grpo", text))]
    alone = [*command, "--output_dir", str(tmp_path / "alone")]
    assert subprocess.run(alone, env=environment, capture_output=True, timeout=300).returncode == 0
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "out/checkpoint-6/trainer_state.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out/metrics.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stdout
    assert digest(tmp_path / "out/model.safetensors") == digest(tmp_path / "alone/model.safetensors")
    assert digest(ROOT / "tiny/base/model.safetensors") != digest(tmp_path / "alone/model.safetensors")
    kept = sorted(path.name for path in (tmp_path / "alone/completions").iterdir())
    assert kept == sorted(path.name for path in (tmp_path / "out/completions").iterdir())


@pytest.mark.parametrize("loss", OnlineRLRecipe.CHOICES["loss_type"])
def test_every_loss_passes_through(stage, loss):
    level = "sequence" if loss == "luspo" else "token"
    text = learning(stage, f"loss_type: {loss}\nimportance_sampling_level: {level}\nmax_steps: 1\nheldout_points: 0")
    assert stage.run(text + "\ntop_p: 0.9\nmin_p: 0.01\ntop_k: 50", method="grpo", flags=TRAIN).code == 0
    assert metrics(stage)["train"]["steps"] == 1
    asked = json.loads((stage.folder / "out/run.json").read_text())["training_arguments"]
    assert (asked["loss_type"], asked["top_k"], asked["min_p"]) == (loss, 50, 0.01)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_long_prompts_are_dropped_with_a_count(stage):
    rows = tasks(24)
    rows[3]["prompt"] = [user("word " * 600)]
    done = stage.run(STANDS, rows=rows, method="grpo")
    assert done.code == 0
    done.tells(
        "long_prompts: 1 of 24 prompts have more than 1016 tokens", "First: 'word word", "23 prompts to train on"
    )
    done = stage.run(f"{STANDS}\nmax_prompt_length: 60", rows=rows, method="grpo")
    done.tells("long_prompts: 1 of 24 prompts have more than 60 tokens (max_prompt_length")
    done = stage.run(f"{STANDS}\nmax_prompt_length: 5", method="grpo")
    assert done.code == 2
    done.tells("max_prompt_length: all 24 prompts have more than 5 tokens")
    done = stage.run(f"{STANDS}\nmax_completion_length: 1024", method="grpo")
    assert done.code == 2
    done.tells("max_completion_length: 1024 leaves no room for a prompt in a context of 1024")
    mostly = [row | {"prompt": [user("word " * 600)]} if n % 4 else row for n, row in enumerate(tasks(24))]
    done = stage.run(STANDS, rows=mostly, method="grpo")
    assert done.code == 2
    done.tells("long_prompts: 18 of 24 prompts")


def test_a_system_prompt_is_put_before_every_prompt(stage):
    rows = tasks(24)
    rows[0]["prompt"] = [{"role": "system", "content": "Its own."}, user("3 nuts?")]
    done = stage.run(f"{STANDS}\nsystem_prompt: 'Answer after ####.'", rows=rows, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    asked = pandas.concat(map(pandas.read_parquet, (stage.folder / "out/completions").iterdir()))["prompt"]
    assert {text.split("\n")[0] for text in asked} <= {"Answer after ####.", "Its own."}


# --- a reward model --------------------------------------------------------------------------------------------------


def test_a_reward_model_by_its_folder(stage):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/base")
    judge = AutoModelForSequenceClassification.from_pretrained(ROOT / "tiny/base", num_labels=1)
    judge.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = AutoTokenizer.from_pretrained(ROOT / "tiny/base").chat_template or "{{ messages }}"
    for part in (judge, tokenizer):
        part.save_pretrained(stage.folder / "judge")
    text = f"{STANDS}\nreward_funcs: [{stage.folder / 'judge'}]\nlearning_rate: 1e-3"
    done = stage.run(text, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    scores = pandas.read_parquet(stage.folder / "out/completions/step-000004.parquet")["judge"]
    assert scores.nunique() > 1


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
def test_code_as_a_reward(stage):
    """What the model writes is run, and training goes on; tests that test nothing are reported before it starts."""
    rows = [{"prompt": row["prompt"], "tests": "assert add(2, 3) == 5"} for row in tasks(24)]
    text = f"{STANDS}\nreward_funcs: [my_rewards.digits, code_passes_tests]\nmax_steps: 2"
    stage.module("my_rewards", VARIED)
    done = stage.run(text, rows=rows, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    table = pandas.read_parquet(stage.folder / "out/completions/step-000002.parquet")
    assert set(table["code_passes_tests"]) == {0.0}
    rows[20]["tests"] = "x = 1"
    stage.run(text, rows=rows, method="grpo").tells(
        "bad_reward: code_passes_tests fails on", "the tests assert nothing"
    )


def test_what_is_no_reward_model_is_refused(stage):
    stage.run(f"{STANDS}\nreward_funcs: [tiny/base]", method="grpo").tells(
        "reward_funcs: tiny/base is not a reward model: it lacks score.weight, and random weights would score"
    )
    several = AutoModelForSequenceClassification.from_pretrained(ROOT / "tiny/base", num_labels=3)
    several.save_pretrained(stage.folder / "several")
    stage.run(f"{STANDS}\nreward_funcs: [{stage.folder / 'several'}]", method="grpo").tells(
        "gives 3 scores, and a reward model must give one"
    )
    stage.run(f"{STANDS}\nreward_funcs: [no/such-model]", method="grpo").tells("reward_funcs: no/such-model cannot be")
    stage.run(f"{STANDS}\nreward_funcs: [exact_macth]", method="grpo").tells(
        "exact_macth is not a reward", "There are"
    )


# --- backends --------------------------------------------------------------------------------------------------------


def test_continuous_batching_trains(stage):
    text = learning(stage, "use_transformers_continuous_batching: true\nbf16: false\nmax_steps: 2")
    done = stage.run(text, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    assert metrics(stage)["train"]["steps"] == 2
    stage.run("use_vllm: true\nuse_transformers_continuous_batching: true\nbf16: false", method="grpo").tells(
        "run.yaml:1: use_vllm: use_transformers_continuous_batching is another backend. Keep only one"
    )


def test_vllm_that_is_not_there(stage):
    stage.run("use_vllm: true", method="grpo").tells("use_vllm: vLLM is not installed", "requirements-gpu.txt")
    stage.monkeypatch.setattr(backends, "version", lambda name: "0.9.1")
    stage.run("use_vllm: true", method="grpo").tells("vLLM is version 0.9.1, and TRL works with 0.22.0 to 0.31.0")
    stage.monkeypatch.setattr(backends, "version", lambda name: "0.30.0+cu130")
    stage.run("use_vllm: true", method="grpo").tells("vLLM in the training process needs a GPU")


ANSWERS = {
    "/health": {},
    "/version": {"version": "0.30.0"},
    "/server_info?config_format=json": {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}},
    "/v1/models": {"data": [{"id": "tiny/base", "max_model_len": 1024}]},
}


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"/version": {"version": "0.8.0"}}, "is version 0.8.0, and TRL works with"),
        ({"/server_info?config_format=json": None}, "does not answer as vLLM does (HTTP Error 404"),
        (
            {"/server_info?config_format=json": {"vllm_config": {"weight_transfer_config": None}}},
            "does not accept new weights",
        ),
        (
            {"/v1/models": {"data": [{"id": "Qwen/Qwen3-8B", "max_model_len": 9}]}},
            "serves Qwen/Qwen3-8B, but tiny/base",
        ),
        (
            {"/v1/models": {"data": [{"id": "tiny/base", "max_model_len": 8}]}},
            "has a context of 8, which leaves no room",
        ),
        ({"/version": {}}, "is not a vLLM server (KeyError: 'version')"),
        ({"/version": {"version": "main-abc"}}, "is not a vLLM server (InvalidVersion"),
        ({"/v1/models": {"data": []}}, "is not a vLLM server (IndexError"),
        ({"/health": None}, "no vLLM server answers at http://127.0.0.1:"),
        ({"/health": "sleep"}, "no vLLM server answers at http://127.0.0.1:"),
    ],
)
def test_a_vllm_server_is_looked_at_first(stage, answers, said):
    """Up, of a version that TRL takes, able to take weights, with the model that is trained: in a time limit."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = (ANSWERS | answers).get(self.path)
            if answer == "sleep":
                time.sleep(3)
            self.send_response(200 if answer is not None else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stage.monkeypatch.setattr(backends, "version", lambda name: "0.30.0")
    stage.monkeypatch.setattr(backends, "PATIENCE", 0.5)
    text = f"use_vllm: true\nvllm_mode: server\nvllm_server_timeout: 1.0\nvllm_server_port: {server.server_port}\n"
    started = time.perf_counter()
    done = stage.run(text + "vllm_server_host: 127.0.0.1", method="grpo")
    server.shutdown()
    assert done.code == 2
    done.tells(said)
    assert time.perf_counter() - started < 20


# --- pass rates ------------------------------------------------------------------------------------------------------


def pass_rate(stage, *flags):
    config = stage.yaml("grpo", learning(stage, "max_completion_length: 12\nper_device_eval_batch_size: 64"))
    command = [sys.executable, str(ROOT / "online_rl/pass_rate.py"), "--config", str(config), *flags]
    environment = os.environ | {"PYTHONPATH": str(stage.folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_pass_rates_and_their_resume(stage):
    stage.write("rows.jsonl", tasks(40))
    whole, again = stage.folder / "whole.jsonl", stage.folder / "again.jsonl"
    done = pass_rate(stage, "--keep_to", str(whole))
    assert done.returncode == 0, done.stderr
    counts = json.loads(whole.with_suffix(".manifest.json").read_text())["counts"]
    kept = [json.loads(line) for line in whole.read_text().splitlines()]
    assert counts["in"] == 40
    assert counts["kept"] == len(kept) > 0
    assert all(0.1 <= row["pass_rate"] <= 0.9 for row in kept)
    # As if killed within the second batch, half a line on the disk.
    lines = whole.with_suffix(".journal.jsonl").read_text().splitlines(keepends=True)
    again.with_suffix(".journal.jsonl").write_text("".join(lines[:2]) + lines[2][:9])
    done = pass_rate(stage, "--keep_to", str(again))
    assert "16 are done already" in done.stdout
    assert again.read_text() == whole.read_text()
    done = pass_rate(stage, "--keep_to", str(again))
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True)
    done = pass_rate(stage, "--keep_to", str(again), "--seed", "3")
    assert (done.returncode, "was made with other settings" in done.stderr) == (2, True)
    again.unlink()
    done = pass_rate(stage, "--keep_to", str(again), "--seed", "3")
    assert (done.returncode, "holds the results of an unfinished run" in done.stderr) == (2, True)
    assert pass_rate(stage).returncode == 2


# --- the real configs ------------------------------------------------------------------------------------------------

GSM8K = [{"question": f"Ann has {n} nuts and finds 3. How many?", "answer": f"{n}+3=<<{n}+3={n + 3}>>\n#### {n + 3}"}
         for n in range(24)]  # fmt: skip
MATHS = [{"problem": f"What is $\\frac{{{n}}}{{2}}$?", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$.",
          "answer": f"\\frac{{{n}}}{{2}}"} for n in range(1, 25)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows"), [("grpo_qwen", GSM8K), ("grpo_qwen_think", MATHS), ("grpo_qwen_tools", GSM8K)]
)
def test_the_real_configs_take_rows_of_their_data_sets(stage, name, rows):
    """The columns of openai/gsm8k, open-r1/OpenR1-Math-220k and MATH-500, on the tiny base, without vLLM."""
    from ruamel.yaml import YAML

    config = YAML(typ="safe").load((ROOT / f"configs/{name}.yaml").read_text())
    for key in [key for key in config if key.startswith(("vllm", "dataset", "heldout", "save"))]:
        del config[key]
    asks = next(iter(rows[0]))
    held = stage.write("held.jsonl", [row | {asks: f"Again: {row[asks]}"} for row in rows])
    config |= {
        "use_vllm": False, "model_name_or_path": "tiny/base", "heldout_name": str(held), "chat_template": "qwen3",
        "max_steps": 1, "max_completion_length": 24, "eval_max_new_tokens": 24, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8, "eval_prompts": 4, "heldout_points": 0, "max_prompt_length": 600,
        "accept": ["equal_rewards", "clipped_completions", "constant_reward"], "dataset_name": "rows",
    }  # fmt: skip
    config.pop("num_train_epochs", None)
    del config["dataset_name"]
    path = stage.folder / "real.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(config, file)
    done = stage.run(path.read_text(), rows=rows, method="grpo", flags=TRAIN, drop=list(config))
    assert done.code == 0, done.said
    assert set(config["eval_metrics"]) <= set(metrics(stage)["after"])


def test_messages_have_the_form_that_rewards_get(stage):
    """A metric is called as a reward is: messages for messages, with the rows' columns."""
    stage.module("my_rewards", VARIED + (
        "def form(completions, prompts, completion_ids, answer, kind, **kwargs):\n"
        "    assert all(c[-1]['role'] == 'assistant' for c in completions)\n"
        "    assert all(p[-1]['role'] == 'user' for p in prompts)\n"
        "    assert all(isinstance(i[0], int) for i in completion_ids) and set(kind) == {'sum'}\n"
        "    return [1.0] * len(completions)\n"
    ))  # fmt: skip
    rows = [row | {"kind": "sum"} for row in tasks(24)]
    text = f"{STANDS}\nreward_funcs: [my_rewards.digits]\nheldout_fraction: 0.4\neval_metrics: [my_rewards.form]"
    done = stage.run(text, rows=rows, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    assert metrics(stage)["after"]["my_rewards.form"]["value"] == 1.0
