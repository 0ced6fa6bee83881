"""Runs by their real command line: folder, finished, changed, killed, started over, two processes, LoRA."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SMALL, recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from utils.files import SECRET
from utils.run.run import newest_whole_checkpoint


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_folder_holds_what_is_promised(finished_run):
    folder, _ = finished_run
    names = {path.name for path in folder.iterdir()}
    assert {
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "config.yaml",
    } <= names
    assert {"run.json", "metrics.json", "curves.png", "report.html", "README.md", "checkpoint-6"} <= names
    assert not list(folder.rglob("*.bin")) or [p.name for p in folder.rglob("*.bin")] == ["training_args.bin"] * 4
    found = metrics(folder)
    for when in ("before", "after"):
        for name in ("heldout_loss", "exact_match"):
            assert set(found[when][name]) == {"value", "low", "high", "n"}
            assert found[when][name]["n"] == 12
    assert found["after"]["heldout_loss"]["value"] < found["before"]["heldout_loss"]["value"]
    assert found["train"]["steps"] == 6
    assert found["train"]["tokens"] > 6 * 4 * 30
    facts = json.loads((folder / "run.json").read_text())
    assert {"command", "versions", "git_commit", "data", "seed", "hardware", "started"} <= set(facts)
    assert "fine-tuned version of [None]" not in (folder / "README.md").read_text()


def test_the_model_loads_and_knows_where_to_stop(finished_run):
    folder, _ = finished_run
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id[0] == tokenizer.eos_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1?"}], tokenize=False).startswith(
        "<|im_start|>"
    )
    assert next(model.parameters()).dtype == torch.float32


def test_the_terminal_is_quiet(finished_run):
    _, printed = finished_run
    assert "preflight" in printed
    assert "⟦<think>" in printed
    assert "⟧" in printed
    for noise in ("Warning", "{'loss'", "it/s]", "Traceback", "Loading weights"):
        assert noise not in printed
    assert len(printed.splitlines()) < 60


def test_a_finished_run_says_so_and_changes_nothing(finished_run):
    folder, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = recipe(output_dir=folder)
    assert done.returncode == 0
    assert "finished" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_resolved_config_repeats_the_run(finished_run, tmp_path):
    folder, _ = finished_run
    command = [
        sys.executable,
        ROOT / "sft/train.py",
        "--config",
        folder / "config.yaml",
        "--output_dir",
        tmp_path / "again",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same_weights(folder, tmp_path / "again")


def same_weights(one, other):
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_changed_config_is_refused_with_the_difference(finished_run):
    folder, _ = finished_run
    done = recipe(output_dir=folder, learning_rate=5e-4)
    assert done.returncode == 2
    assert "learning_rate: 0.003 -> 0.0005" in done.stderr
    assert "--start_over" in done.stderr


def test_starting_over_moves_the_earlier_run_aside(finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    done = recipe("--start_over", output_dir=tmp_path / "run", learning_rate=5e-4)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.old1/metrics.json").is_file()
    assert "learning_rate: 0.0005" in (tmp_path / "run/config.yaml").read_text()


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for words in ([], ["--start_over"]):
        done = recipe(*words, output_dir=tmp_path)
        assert done.returncode == 2
        assert "not a run of this repository's" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_check_writes_nothing(tmp_path):
    done = recipe("--check", output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 x 4 x 1 = 4 rows" in done.stdout
    assert not (tmp_path / "out").exists()


def kill_after(step, folder, **flags):
    """Start a run and kill it with SIGKILL once checkpoint-`step` is complete."""
    command = [sys.executable, str(ROOT / "sft/train.py"), "--config", str(ROOT / "configs/sft_tiny.yaml")]
    for name, value in (SMALL | flags | {"output_dir": folder}).items():
        command += [f"--{name}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / f"checkpoint-{step}" / "trainer_state.json").is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").is_file()


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    flags = {"max_steps": 16}
    alone = recipe(output_dir=tmp_path / "alone", **flags)
    assert alone.returncode == 0, alone.stderr
    kill_after(8, tmp_path / "killed", **flags)
    torn = tmp_path / "killed" / "checkpoint-9998"  # a checkpoint whose writing was interrupted
    shutil.copytree(tmp_path / "killed/checkpoint-8", torn)
    (torn / "trainer_state.json").write_text('{"global_step": 99')
    again = recipe(output_dir=tmp_path / "killed", **flags)
    assert again.returncode == 0, again.stderr
    assert "checkpoint-9998 is incomplete and was skipped" in again.stdout
    assert "continuing from" in again.stdout
    assert same_weights(tmp_path / "alone", tmp_path / "killed")
    one, other = metrics(tmp_path / "alone"), metrics(tmp_path / "killed")
    for part in ("before", "after", "change"):
        assert one[part] == other[part]
    for name in ("steps", "tokens", "first_loss", "last_loss"):
        assert one["train"][name] == other["train"][name]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_run_killed_after_its_last_step_trains_no_further(finished_run, tmp_path, schedule):
    if schedule == "linear":
        shutil.copytree(finished_run[0], tmp_path / "run")
    else:
        assert recipe(output_dir=tmp_path / "run", lr_scheduler_type=schedule).returncode == 0
    done, weights = metrics(tmp_path / "run"), load_file(tmp_path / "run/model.safetensors")
    for name in ("metrics.json", "model.safetensors", "report.html"):
        (tmp_path / "run" / name).unlink()
    again = recipe(output_dir=tmp_path / "run", **({} if schedule == "linear" else {"lr_scheduler_type": schedule}))
    assert again.returncode == 0, again.stderr
    found = load_file(tmp_path / "run/model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    again = metrics(tmp_path / "run")
    assert [again["train"][name] for name in ("steps", "tokens")] == [
        done["train"][name] for name in ("steps", "tokens")
    ]
    assert again["after"] == done["after"]
    assert not (tmp_path / "run/checkpoint-7").exists()


def test_held_out_rows_that_change_before_the_first_checkpoint_are_measured_again(tmp_path):
    rows = tmp_path / "heldout.jsonl"
    lines = (ROOT / "tiny/data/heldout.jsonl").read_text().splitlines()
    rows.write_text("\n".join(lines[:12]) + "\n")
    assert recipe(output_dir=tmp_path / "run", heldout_name=rows, save_strategy="no").returncode == 0
    (tmp_path / "run/metrics.json").unlink()
    rows.write_text("\n".join(lines[20:30]) + "\n")
    done = recipe(output_dir=tmp_path / "run", heldout_name=rows, save_strategy="no")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")["before"]["exact_match"]["n"] == 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"eval_metrics": "exact_mach"},
            "exact_mach is not a reward of utils/rewards/functions.py. There are: code_passes_tests, contains_answer",
        ),
        ({"eval_metrics": "final_number"}, "final_number is not a reward"),
        ({"chat_template": "null"}, "chat_template: the rows are messages, and the tokenizer has no chat template"),
        ({"dataset_name": "TEXT", "heldout_name": "null"}, "assistant_only_loss: the rows are plain texts"),
        ({"packing": "true", "max_length": "none"}, "SFTTrainer refuses this config or these rows"),
    ],
)
def test_what_cannot_be_trained_is_one_message(tmp_path, flags, message):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} + 1 = {n + 1}"}) + "\n" for n in range(40)))
    flags = {name: tmp_path / "text.jsonl" if value == "TEXT" else value for name, value in flags.items()}
    done = recipe("--check", output_dir=tmp_path / "out", **flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_resume_on_other_rows_is_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = (ROOT / "tiny/data/sft_messages.jsonl").read_text().splitlines()[:400]
    rows.write_text("\n".join(lines) + "\n")
    kill_after(2, tmp_path / "run", max_steps=16, dataset_name=rows)
    rows.write_text("\n".join(lines[:-1]) + "\n")
    done = recipe(output_dir=tmp_path / "run", max_steps=16, dataset_name=rows)
    assert done.returncode == 2
    assert "the rows have changed since this run was started" in done.stderr


def test_a_resume_on_another_number_of_processes_is_refused(finished_run, tmp_path):
    folder = shutil.copytree(finished_run[0], tmp_path / "run")
    (folder / "metrics.json").unlink()
    facts = json.loads((folder / "run.json").read_text())
    facts["hardware"]["processes"] = 2
    (folder / "run.json").write_text(json.dumps(facts))
    done = recipe(output_dir=folder)
    assert done.returncode == 2
    assert "started on 2 processes and cannot continue with the same batches on 1" in done.stderr


def test_newest_whole_checkpoint_skips_incomplete_ones(tmp_path):
    assert newest_whole_checkpoint(tmp_path) is None
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({"global_step": step}))
        (tmp_path / f"checkpoint-{step}/model.safetensors").write_bytes(b"")
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10/trainer_state.json").unlink()
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-2"


def test_two_processes_hold_out_the_same_rows_and_agree(tmp_path):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2")
    launcher += ("--config_file", str(ROOT / "configs/accelerate/ddp.yaml"))
    flags = {"per_device_train_batch_size": 2, "heldout_name": "null", "heldout_fraction": 0.1}
    double = recipe(launcher=launcher, output_dir=tmp_path / "two", **flags)
    assert double.returncode == 0, double.stderr
    single = recipe(output_dir=tmp_path / "one", **(flags | {"per_device_train_batch_size": 4}))
    assert single.returncode == 0, single.stderr
    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert facts[0]["data"] == facts[1]["data"]
    assert [fact["hardware"]["processes"] for fact in facts] == [1, 2]
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one["before"]["exact_match"] == two["before"]["exact_match"]
    assert one["before"]["heldout_loss"]["value"] == pytest.approx(two["before"]["heldout_loss"]["value"], rel=1e-5)
    assert one["train"]["tokens"] == pytest.approx(two["train"]["tokens"], rel=0.1)
    assert double.stdout.count("preflight") == 1


def test_a_launcher_that_starts_too_few_processes_is_reported(tmp_path):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    done = recipe("--check", launcher=launcher, output_dir=tmp_path / "out")
    assert "accelerate started 1 process, not 2" in done.stdout


def test_lora_is_saved_and_merged(tmp_path):
    done = recipe("--use_peft", "--merge_adapter", output_dir=tmp_path / "lora", learning_rate=1e-2)
    assert done.returncode == 0, done.stderr
    adapter = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} == set(
        adapter["target_modules"]
    )
    ids = torch.arange(40, 60)[None]
    attached = AutoModelForCausalLM.from_pretrained(tmp_path / "lora")(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "lora/merged")
    base = AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base")(ids).logits
    assert torch.allclose(attached, merged(ids).logits, atol=1e-4)
    assert not torch.allclose(attached, base, atol=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "lora/merged")
    assert merged.generation_config.eos_token_id[0] == tokenizer.eos_token_id
    assert GenerationConfig.from_pretrained(tmp_path / "lora").eos_token_id[0] == tokenizer.eos_token_id
    change = metrics(tmp_path / "lora")["change"]["heldout_loss"]["value"]
    assert change < -0.5


def test_packing_trains_and_measures_rows_one_by_one(tmp_path):
    done = recipe("--packing", output_dir=tmp_path / "packed", per_device_train_batch_size=1)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "packed")["before"]["heldout_loss"]["n"] == 12


def test_a_template_that_the_model_cannot_end_is_refused(tmp_path):
    done = recipe(output_dir=tmp_path / "out", chat_template="llama3")
    assert done.returncode == 2
    assert "train the end of an answer (<|im_end|>)" in done.stderr
    done = recipe(output_dir=tmp_path / "out", chat_template="lama3")
    assert done.returncode == 2
    assert "neither a file nor one of TRL's" in done.stderr


def test_answers_past_max_length_are_refused(tmp_path):
    done = recipe(output_dir=tmp_path / "out", max_length=20)
    assert done.returncode == 2
    assert "rows: max_length = 20 leaves them nothing to learn. Raise it" in done.stderr


def test_nothing_held_out_is_reported_and_trains(tmp_path):
    done = recipe(output_dir=tmp_path / "out", heldout_name="null")
    assert done.returncode == 0, done.stderr
    assert "no rows are held out, so nothing is measured" in done.stdout
    assert metrics(tmp_path / "out")["after"] == {}
    assert "finished" in recipe(output_dir=tmp_path / "out", heldout_name="null").stdout


def test_keys_never_reach_run_json():
    assert SECRET.sub(r"\1***", "--x=hf_" + "a" * 30) == "--x=hf_***"


@pytest.mark.parametrize("cwd", ["/", "tmp"])
def test_runs_from_any_folder(tmp_path, cwd):
    done = recipe("--check", cwd=tmp_path if cwd == "tmp" else cwd)
    assert done.returncode == 0, done.stderr
