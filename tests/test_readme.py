"""The README is run: its first command as printed, in a copy of the checkout; and copying a method is tried."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL
from test_copy import CORE

PREPARATION = (
    "python data_prep/generate.py --config configs/generate_tiny.yaml",
    "python data_prep/best_of_k.py --config configs/best_of_k_tiny.yaml",
    "python data_prep/filter.py --config configs/filter_tiny.yaml",
    "python sft/train.py --config configs/sft_tiny.yaml --dataset_name outputs/tiny_clean.jsonl"
    " --output_dir outputs/sft_distilled",
)
SHORT = "--max_steps 6 --eval_prompts 12 --eval_max_new_tokens 12 --start_over"
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "AGENTS.md", "CONTRIBUTING.md", "sft/README.md", "dpo/README.md", "online_rl/README.md")


def commands():
    """Every line of the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def environment():
    """The README's `python` is this test's."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a fresh clone holds: the files that git tracks or would add."""
    folder = tmp_path_factory.mktemp("clone")
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_first_command_ends_well(clone):
    command = next(line for line in commands() if "sft/train.py" in line)
    command = command[command.index("python sft/train.py") :]
    assert command == "python sft/train.py --config configs/sft_tiny.yaml"
    done = subprocess.run(command, shell=True, cwd=clone, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((clone / "outputs/sft_tiny/metrics.json").read_text())
    assert metrics["before"]["exact_match"]["value"] <= 0.05
    assert 0.70 <= metrics["after"]["exact_match"]["value"] <= 0.85
    assert metrics["after"]["exact_match"]["n"] >= 300
    assert metrics["change"]["exact_match"]["p_value"] < 0.001


def test_the_second_command_ends_well(clone):
    """DPO goes on from what the first command made."""
    command = next(line for line in commands() if "dpo/train.py" in line)
    assert command == "python dpo/train.py --config configs/dpo_tiny.yaml"
    done = subprocess.run(command, shell=True, cwd=clone, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((clone / "outputs/dpo_tiny/metrics.json").read_text())
    assert metrics["before"]["honest"]["value"] < 0.10
    assert metrics["after"]["honest"]["value"] > 0.90
    assert abs(metrics["change"]["exact_match"]["value"]) <= 0.05  # another machine's last bits; the guard is 0.03
    assert min(metrics["after"][name]["n"] for name in ("honest", "exact_match")) >= 200
    assert metrics["change"]["honest"]["p_value"] < 0.001


@pytest.mark.slow
def test_the_third_command_ends_well(clone):
    """GRPO starts from a checkpoint of the first command's run."""
    if not (clone / "outputs/sft_tiny").exists():
        test_the_first_command_ends_well(clone)
    command = next(line for line in commands() if "online_rl/train.py" in line)
    assert command == "python online_rl/train.py --config configs/grpo_tiny.yaml"
    done = subprocess.run(command, shell=True, cwd=clone, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((clone / "outputs/grpo_tiny/metrics.json").read_text())
    assert metrics["change"]["exact_match"]["value"] >= 0.05  # 0.1 is measured; another machine's last bits
    assert metrics["change"]["exact_match"]["p_value"] < 0.01
    assert metrics["after"]["ends_with_answer"]["value"] >= 0.99
    assert (clone / "outputs/grpo_tiny/completions").is_dir()


def prepare_and_train(clone, *more):
    """The four commands of data preparation, in the clone; `more` flags for the first and the last."""
    if not (clone / "outputs/sft_tiny").exists():
        test_the_first_command_ends_well(clone)
    for number, command in enumerate(PREPARATION):
        assert command in commands()
        command += f" {more[number]}" if more else ""
        done = subprocess.run(command, shell=True, cwd=clone, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    clean = [json.loads(line) for line in (clone / "outputs/tiny_clean.jsonl").read_text().splitlines()]
    manifest = json.loads((clone / "outputs/tiny_clean.manifest.json").read_text())
    assert manifest["counts"]["out"] == len(clean)
    return clean, json.loads((clone / "outputs/sft_distilled/metrics.json").read_text())


def test_data_preparation_ends_well(clone):
    clean, metrics = prepare_and_train(clone, "--prompts 80 --start_over", "--start_over", "--start_over", SHORT)
    assert 30 <= len(clean) <= 80
    assert metrics["train"]["steps"] == 6


@pytest.mark.slow
def test_data_preparation_as_printed_ends_well(clone):
    clean, metrics = prepare_and_train(clone, "--start_over", "--start_over", "--start_over", "--start_over")
    assert len(clean) > 1000
    assert metrics["after"]["exact_match"]["value"] >= 0.70
    assert metrics["change"]["exact_match"]["p_value"] < 0.001


def test_the_other_commands_are_those_that_are_tested_elsewhere():
    """A command that no test runs must not stand in the README unseen."""
    known = (
        "python3 -m venv", ". .venv/bin/activate",
        "python sft/train.py --config configs/sft_tiny.yaml", "python dpo/train.py --config configs/dpo_tiny.yaml",
        "python kto/train.py --config configs/kto_tiny.yaml",
        "python online_rl/train.py --config configs/grpo_tiny.yaml", *PREPARATION,
        "pip install -r", "python -m pytest",
        "accelerate launch --config_file configs/accelerate/ddp.yaml", "python benchmarks/sft_vs_trl.py",
        "python tiny/make_data.py", "python tiny/make_base.py", "ruff ",
    )  # fmt: skip
    for line in commands():
        for part in line.split("&&"):
            assert part.strip().startswith(known), part


@pytest.mark.parametrize("name", PAGES)
def test_paths_exist(name):
    made = (
        "outputs/",
        "evaluation/",
        "completions/",
        "owner/",
        "transformers/",
        "trl/",
        "configs/METHOD_NAME.yaml",
    )  # by a run, or by you
    text = (ROOT / name).read_text()
    for path in re.findall(r"`([a-z_]+/[A-Za-z0-9_./-]*)`", text):
        assert path.startswith(made) or (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / name).parent / path).exists(), path


def test_measured_figures_are_those_of_the_linked_page():
    """The README's table repeats figures; the page that each row links to has them with their command."""
    table = README[README.index("## Measured") : README.index("## Copy a recipe")]
    rows = [line for line in table.splitlines() if re.search(r"\| \d", line)]
    assert len(rows) >= 8
    for row in rows:
        (page,) = re.findall(r"\]\((.+?)\)", row)
        text = (ROOT / page).read_text()
        for figure in re.findall(r"\b\d\.\d+", row):
            assert figure in text, row


def test_a_method_can_be_copied(tmp_path):
    """One method's folder, utils/ and one YAML in an empty folder train there."""
    for name in ("sft", "utils"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tiny/base", tmp_path / "my_model")
    shutil.copy(ROOT / "tiny/data/sft_prompt_completion.jsonl", tmp_path / "rows.jsonl")
    text = (ROOT / "configs/sft_tiny.yaml").read_text().replace("tiny/base", "my_model")
    text = text.replace("tiny/data/sft_messages.jsonl", "rows.jsonl")
    text = text.replace("heldout_name: tiny/data/heldout.jsonl", "heldout_fraction: 0.1")
    (tmp_path / "mine.yaml").write_text(text)
    command = [sys.executable, "sft/train.py", "--config", "mine.yaml"]
    for name, value in SMALL.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/mine/metrics.json").is_file()


def test_the_core_is_the_one_that_is_tried():
    """tests/test_copy.py trains with what the README names, and nothing else of utils/."""
    section = README[README.index("The small core is") : README.index("| to keep |")]
    assert set(re.findall(r"`utils/([a-z_.]+?)/?`", section)) == set(CORE)
