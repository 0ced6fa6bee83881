"""Silent failures: online RL but for its rewards: batches, prompts, completions, servers."""

import socket
from types import SimpleNamespace

import torch
from silent_cases import CALL_AND_RESULT, PREVENTED, STOPS, case
from stage import tasks, user

from online_rl import vllm_backend as backends
from online_rl.rollouts import Completions

ACCEPT = "accept: [equal_rewards, clipped_completions]"


@case(
    "G1",
    "fewer prompts than one generation batch needs",
    "takes no step and reports success",
    STOPS,
    "online_rl.checks.check_steps",
)
def test_no_steps(stage):
    done = stage.run(f"{ACCEPT}\nper_device_train_batch_size: 16", rows=tasks(3), method="grpo")
    done.tells("no_steps: 3 prompts are fewer than the 4 of one generation (16 completions / num_generations = 4)")
    done.tells("Write generation_batch_size: 12")


@case(
    "G2",
    "a batch size that `num_generations` does not divide",
    "an error that leaves the arithmetic to the user",
    STOPS,
    "online_rl.config.check_batches",
    without_it="generation_batch_size (8) must be divisible by num_generations (6)",
)
def test_uneven_groups(stage):
    done = stage.run("per_device_train_batch_size: 8\nnum_generations: 6", method="grpo")
    done.tells("run.yaml:2: num_generations: one generation makes 8 completions (1 processes x 8 rows x 1 steps)")
    done.tells("Write per_device_train_batch_size: 6 or 12, or num_generations: 4 or 8")


@case(
    "G7",
    "all completions are cut at `max_completion_length`",
    "reward 0, flat curves",
    STOPS,
    "online_rl.checks.check_rollout",
)
def test_clipped(stage):
    done = stage.run("accept: [equal_rewards]", method="grpo")
    done.tells("clipped_completions: 100% of the completions were cut at max_completion_length = 8", "Raise it, or")


def keeps_all(rows, *_):
    return rows


@case(
    "G8",
    "prompts of any length",
    "never filters them",
    PREVENTED,
    ("online_rl.prompts.drop_long_prompts", keeps_all),
)
def test_long_prompts(stage):
    rows = tasks(24)
    rows[3]["prompt"] = [user("word " * 600)]
    done = stage.run(ACCEPT, rows=rows, method="grpo")
    done.tells("WARNING   long_prompts: 1 of 24 prompts have more than 1016 tokens", "First: 'word word")
    done.tells("23 prompts to train on")


@case(
    "G9",
    "continuous batching with bf16",
    "casts the weights to bf16 in place, permanently",
    STOPS,
    "online_rl.config.check_backends",
)
def test_cast_in_place(stage):
    text = f"use_transformers_continuous_batching: true\n{ACCEPT}"
    done = stage.run(text, rows=tasks(4), method="grpo")
    done.tells(
        "run.yaml:1: use_transformers_continuous_batching: with bf16 it casts the float32 weights", "Write bf16: false"
    )


@case(
    "X18",
    "GRPO: a checkpoint between two steps on the completions of one generation",
    "a resumed run generates again, and ends with other weights than an uninterrupted run",
    STOPS,
    "online_rl.config.check_batches",
)
def test_checkpoint_within_a_generation(stage):
    text = f"save_steps: 3\nsave_strategy: steps\nsteps_per_generation: 2\nnum_iterations: 2\n{ACCEPT}"
    done = stage.run(text, method="grpo")
    done.tells("run.yaml:1: save_steps: 3 falls between the steps of one generation", "Write save_steps: 4")
    text = "save_steps: 3\nsave_strategy: steps\ngeneration_batch_size: 8"
    stage.run(text, method="grpo").tells("save_steps: 3 falls between the steps", "Write save_steps: 2 or 4")


@case(
    "X24",
    '`log_completions` with tool calls whose arguments have several types (`5` and `"5"`)',
    "crashes in pyarrow",
    PREVENTED,
    ("utils.report.completions.dialogue_text", lambda said: said),
    without_it="cannot mix list and non-list",
)
def test_tool_calls_are_kept(stage):
    calls = [
        [CALL_AND_RESULT[0] | {"tool_calls": [{"function": {"name": "f", "arguments": {"a": a}}}]}]
        for a in (5, "5", [5])
    ]
    logs = {"prompt": ["?"] * 3, "completion": calls, "rewards": {"r": [1.0] * 3}, "advantages": [0.0] * 3}
    trainer = SimpleNamespace(_logs=logs, reward_weights=torch.ones(1), num_generations=3)
    state = SimpleNamespace(global_step=1, is_world_process_zero=True, log_history=[{}])
    Completions(trainer).on_log(SimpleNamespace(output_dir=stage.folder), state, None, logs={"reward": 1.0})
    assert (stage.folder / "completions/step-000001.parquet").is_file()


@case(
    "X25",
    "`vllm_mode: server` with no server there, or with something else that listens",
    "waits for an answer without a time limit",
    STOPS,
    "online_rl.vllm_backend.check_server",
    without_it="vLLM is not available",
)
def test_no_server(stage):
    stage.monkeypatch.setattr(backends, "version", lambda name: "0.30.0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stage.monkeypatch.setattr(backends, "PATIENCE", 0.3)
        port = silent.getsockname()[1]
        text = f"use_vllm: true\nvllm_mode: server\nvllm_server_base_url: http://127.0.0.1:{port}\n"
        done = stage.run(text + "vllm_server_timeout: 0.5", method="grpo")
    done.tells(f"vllm_mode: no vLLM server answers at http://127.0.0.1:{port} after 0.5 s", "Start it with: ")
