"""Recipes are tested by their real command line, on the tiny model and data, with tiny numbers and one thread."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"
# Tests download nothing: with this endpoint every machine is one without a network.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"

# `pytest -m quick`: every part of utils/, without long runs.
QUICK = {
    "test_alarms.py", "test_config.py", "test_hygiene.py", "test_rewards.py", "test_silent_config.py",
    "test_silent_data.py", "test_silent_failures.py", "test_silent_online_rl.py", "test_silent_rewards.py",
    "test_silent_run.py", "test_silent_tokens.py", "test_tools.py",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in QUICK:
            item.add_marker(pytest.mark.quick)


def digest(path):
    """To compare files with: pytest would take hours to show where two files of weights differ."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


SMALL = {
    "max_steps": 6, "per_device_train_batch_size": 4, "save_steps": 2, "logging_steps": 1, "eval_prompts": 12,
    "eval_max_new_tokens": 12,
}  # fmt: skip


def recipe(
    *words, cwd=ROOT, script="sft/train.py", launcher=(sys.executable,), config="configs/sft_tiny.yaml", **flags
):
    """Run a recipe as a user does, with flags as keywords. Returns the finished process, its output as text."""
    command = [*launcher, str(ROOT / script), "--config", str(ROOT / config), *map(str, words)]
    for name, value in (SMALL | flags).items():
        command += [f"--{name}", str(value)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """One small run that succeeded: its folder and its stdout."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    done = recipe(output_dir=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def stage(tmp_path, monkeypatch, capfd):
    """What runs a recipe in this process (stage.py). The environment is restored after the test."""
    from stage import Stage

    environment = dict(os.environ)
    yield Stage(tmp_path, monkeypatch, capfd)
    for name in [name for name in os.environ if name not in environment]:
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if not name.startswith("PYTEST")})
