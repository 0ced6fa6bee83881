"""Silent failures: a run from its start to its report: devices, checkpoints, memory, alarms."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import torch
from conftest import digest
from silent_cases import MISTAKES, PREVENTED, STOPS, TRAIN, WARNS, case, config_of, nothing
from transformers import TrainingArguments

from utils.config import read_config
from utils.config.parse import resolve

SAVES = "save_strategy: steps\nsave_steps: 2"


@case(
    "R1",
    "the run is killed while it writes a checkpoint",
    "resumes from that checkpoint, complete or not",
    PREVENTED,
    ("utils.run.run.newest_whole_checkpoint", lambda folder: folder / "checkpoint-4"),
    without_it="Expecting ',' delimiter",
)
def test_torn_checkpoint(stage):
    assert stage.run(SAVES, flags=TRAIN).code == 0
    (stage.folder / "out/metrics.json").unlink()  # as if killed: not finished
    state = stage.folder / "out/checkpoint-4/trainer_state.json"
    state.write_text(state.read_text()[:100])
    done = stage.run(SAVES, flags=TRAIN)
    assert done.code == 0, done.said
    done.tells("checkpoint-4 is incomplete and was skipped", "checkpoint-2")


@case(
    "R2",
    "SIGTERM, as when a job is pre-empted",
    "dies and loses everything since the last checkpoint",
    PREVENTED,
    "utils.run.progress.Preemption.request",
    without_it="assert 0 == 143",
)
def test_preempted(stage):
    text = "save_strategy: steps\nsave_steps: 5\nmax_steps: 60"
    earlier = signal.signal(signal.SIGTERM, nothing)  # so that SIGTERM does not end the tests if the check is off
    threading.Thread(target=terminate_after, args=(stage.folder / "out/checkpoint-5",), daemon=True).start()
    try:
        done = stage.run(text, flags=TRAIN)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert done.code == 143, done.said
    done.tells("SIGTERM: checkpoint-", "run the same command again to continue from it")
    assert stage.run(text, flags=TRAIN).said.count("continuing from") == 1
    alone = stage.run(f"{text}\noutput_dir: {stage.folder / 'alone'}", flags=TRAIN)
    assert alone.code == 0, alone.said
    assert digest(stage.folder / "out/model.safetensors") == digest(stage.folder / "alone/model.safetensors")


@case("R3", "`resume_from_checkpoint: true`", "crashes if there is no checkpoint", STOPS, MISTAKES)
def test_resume_by_key(stage):
    done = stage.run("resume_from_checkpoint: true")
    done.tells("resume_from_checkpoint: is not used here: remove it: the same command goes on")


def restarts_the_count(source, values):
    resolved = resolve(source, values)
    resolved.pop("include_num_input_tokens_seen")
    return resolved


@case(
    "R4",
    "an SFT or DPO run is resumed",
    "`num_tokens` starts at 0 again",
    PREVENTED,
    ("utils.config.parse.resolve", restarts_the_count),
    without_it="assert 0 > 100",  # nothing is counted
)
def test_tokens_are_kept(stage):
    assert stage.run(SAVES, flags=TRAIN).code == 0
    path = stage.folder / "out/metrics.json"
    alone = json.loads(path.read_text())["train"]["tokens"]
    path.unlink()
    shutil.rmtree(stage.folder / "out/checkpoint-4")
    stage.run(SAVES, flags=TRAIN).tells("continuing from")
    assert json.loads(path.read_text())["train"]["tokens"] == alone > 100


@case(
    "R5",
    "the loss becomes NaN or infinite",
    "goes on training",
    "stops before the step that would spread it",
    "utils.run.alarms.AlarmCallback.stop",
)
def test_not_finite(stage):
    text = "dtype: float16\nlearning_rate: 0.1\nmax_grad_norm: 0\nmax_steps: 6\nsave_strategy: steps\nsave_steps: 1"
    done = stage.run(text, flags=TRAIN)
    done.tells("Training stopped: at step", "the gradient is not finite (first in model.", "the step was not taken")
    assert done.code == 2
    done.tells("The newest good checkpoint is checkpoint-", "Lower learning_rate")
    found = json.loads((stage.folder / "out/metrics.json").read_text())
    assert found["alarms"][-1]["name"] == "not_finite"
    assert "after" not in found
    report = (stage.folder / "out/report.html").read_text()
    assert "not_finite" in report
    assert "There are no answers to compare" in report


@case(
    "R6",
    "the longest batch does not fit into memory",
    "fails when it comes, perhaps an hour in",
    STOPS,
    "utils.preflight.steps.check_longest_batch",
)
def test_out_of_memory(stage):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")  # as the device does

    with stage.monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", no_room)
        done = stage.run()
    done.tells("out_of_memory: the batch of the 4 longest rows (", "Write a smaller per_device_train_batch_size")


@case(
    "R7",
    "several visible GPUs, no launcher",
    "refuses, without giving the command",
    STOPS,
    ("utils.config.parse.GPUS_PER_PROCESS", 99),
    without_it="SFTTrainer does not support `nn.DataParallel`",
)
def test_no_launcher(stage):
    with stage.monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
        stage.run().tells(
            "2 GPUs are visible to one process. Write: accelerate launch --config_file", "--num_processes 2"
        )


@case(
    "R8",
    "two threads next to another busy process",
    "runs 10 to 20 times slower",
    WARNS,
    "utils.run.run.warn_of_busy_machine",
)
def test_busy_machine(stage):
    stage.monkeypatch.setattr("psutil.cpu_percent", lambda interval: 95.0)
    stage.monkeypatch.setattr("torch.get_num_threads", lambda: os.cpu_count())
    stage.run().tells("WARNING   busy_machine: other processes keep", "10 to 20 times slower", "set OMP_NUM_THREADS=1")


def plain_defaults(source, values):
    resolved = resolve(source, values)
    return {key: value for key, value in resolved.items() if key in values or key in ("output_dir", "use_cpu", "bf16")}


@case(
    "R9",
    "LoRA with no further settings",
    "trains only q_proj and v_proj; never merges the adapter",
    PREVENTED,
    ("utils.config.parse.resolve", plain_defaults),
    without_it="assert None == 'all-linear'",
)
def test_lora_defaults(stage):
    assert config_of(stage, "use_peft: true").model.lora_target_modules == "all-linear"
    done = stage.run("use_peft: true\nmerge_adapter: true\nmax_steps: 1", flags=TRAIN)
    assert done.code == 0, done.said
    assert (stage.folder / "out/merged/model.safetensors").is_file()


@case(
    "R10",
    "4-bit with no further settings",
    "computes in float32",
    PREVENTED,
    ("utils.config.parse.resolve", plain_defaults),
    without_it="assert 'float32' == 'bfloat16'",
)
def test_four_bit(stage):
    assert config_of(stage, "use_peft: true\nload_in_4bit: true").model.dtype == "bfloat16"  # TRL computes in dtype
    stage.run("load_in_4bit: true").tells("load_in_4bit: quantised weights cannot be trained. Write use_peft: true")


@case(
    "R11",
    "a trainer is created",
    "sends telemetry unless it is switched off",
    PREVENTED,
    ("utils.config.read.QUIET", {}),
    without_it="assert None == '1'",
)
def test_telemetry(stage):
    stage.monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    read_config("", ["--config", str(stage.yaml("sft", ""))])
    assert os.environ.get("HF_HUB_DISABLE_TELEMETRY") == "1"


@case(
    "R12",
    "the run ends",
    'no evaluation, no metrics, no record; "fine-tuned version of [None]"',
    PREVENTED,
    "utils.report.report.write_report",
    without_it="metrics.json",
)
def test_the_end_is_reported(stage):
    done = stage.run("heldout_fraction: 0.3\nmax_steps: 1\neval_prompts: 4", flags=TRAIN)
    assert done.code == 0, done.said
    found = json.loads((stage.folder / "out/metrics.json").read_text())
    assert found["before"]["heldout_loss"]["n"] == found["after"]["heldout_loss"]["n"] == 4
    assert {"command", "git_commit", "data", "versions"} <= set(
        json.loads((stage.folder / "out/run.json").read_text())
    )
    assert "[None]" not in (stage.folder / "out/README.md").read_text()


@case(
    "X1",
    "`accelerate launch --num_processes 2` on a machine without GPUs",
    "starts one process, without a warning",
    WARNS,
    "utils.run.run.warn_of_missing_processes",
)
def test_fewer_processes(stage):
    stage.monkeypatch.setattr("psutil.Process.cmdline", lambda self: ["accelerate", "launch", "--num_processes", "2"])
    stage.run().tells("missing_processes: accelerate started 1 process, not 2. Add --config_file configs/accelerate")


@case(
    "X3",
    "the run is killed after its last step and started again",
    "trains one step beyond `max_steps`",
    PREVENTED,
    ("utils.run.run.Run.restore", lambda *_: False),
    without_it="assert 'step 5/4' not in",
)
def test_not_one_step_more(stage):
    text = f"{SAVES}\nlr_scheduler_type: constant"
    assert stage.run(text, flags=TRAIN).code == 0
    weights = digest(stage.folder / "out/model.safetensors")
    (stage.folder / "out/metrics.json").unlink()
    done = stage.run(text, flags=TRAIN)
    assert done.code == 0, done.said
    assert "step 5/4" not in done.said
    assert digest(stage.folder / "out/model.safetensors") == weights


@case(
    "X4",
    "`dtype: bfloat16` with a small learning rate",
    "most steps are rounded away: the weights never change",
    STOPS,
    "utils.preflight.shared.check_updates",
)
def test_rounded_updates(stage):
    done = stage.run("dtype: bfloat16\nlearning_rate: 1e-6")
    done.tells("lost_updates:", "of the weights are held in bfloat16", "learning_rate = 1e-06", "Write dtype: float32")


@case(
    "X13",
    "DPO at a learning rate that destroys the model",
    "reports a reward accuracy of 1.0, without a warning",
    WARNS,
    ("utils.run.alarms.RULES", ()),
)
def test_dpo_destroys(stage):
    rows = [
        {"prompt": f"{a} + {b} =", "chosen": f" {a + b}.", "rejected": f" {a + b + 1}."}
        for a in range(20, 40)
        for b in range(2, 6)
    ]
    done = stage.run("learning_rate: 1e-3\nmax_steps: 20", rows=rows, method="dpo", flags=TRAIN)
    assert done.code == 0, done.said
    done.tells(
        "ALARM     likelihoods_falling", "Lower learning_rate, raise beta, or, with pairs, add sft to loss_type"
    )
    assert "likelihoods_falling" in (stage.folder / "out/report.html").read_text()


def terminate_after(checkpoint: Path):
    while not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
