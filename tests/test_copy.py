"""What a copier takes: the small core alone trains, and nothing that no config names is imported."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL

CORE = ("files.py", "config", "data", "model.py", "run")
# The lines of train.py that go, and the YAML keys that only they read.
WITHOUT = re.compile(
    r"preflight|evaluate\(|import evaluate|toolbox|metrics|report_if|write_report|recipe\.check|^        return\n"
)
KEYS = re.compile(r"^(?:eval_|heldout_).*\n", re.MULTILINE)


def test_the_core_trains_alone(tmp_path):
    """sft/ and five parts of utils/, the lines for preflight, evaluation and report deleted."""
    (tmp_path / "utils").mkdir()
    for name in CORE:
        copy = shutil.copytree if (ROOT / "utils" / name).is_dir() else shutil.copy
        copy(ROOT / "utils" / name, tmp_path / "utils" / name)
    (tmp_path / "sft").mkdir()
    lines = (ROOT / "sft/train.py").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if not WITHOUT.search(line))
    (tmp_path / "sft/train.py").write_text(kept.replace("    trainer.train", "trainer.train"))
    shutil.copytree(ROOT / "tiny/base", tmp_path / "my_model")
    shutil.copy(ROOT / "tiny/data/sft_messages.jsonl", tmp_path / "rows.jsonl")
    text = KEYS.sub("", (ROOT / "configs/sft_tiny.yaml").read_text())
    text = text.replace("tiny/base", "my_model").replace("tiny/data/sft_messages.jsonl", "rows.jsonl")
    (tmp_path / "mine.yaml").write_text(text)
    command = [sys.executable, "sft/train.py", "--config", "mine.yaml", "--max_steps", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/mine/model.safetensors").is_file()
    run = json.loads((tmp_path / "outputs/mine/run.json").read_text())
    assert run["training_arguments"]["max_steps"] == 5


IMPORTED = """
import sys
sys.argv = ["sft/train.py", "--config", "configs/sft_tiny.yaml", *{flags}]
import runpy
try:
    runpy.run_path("sft/train.py", run_name="__main__")
finally:
    print("IMPORTED", *sorted(name for name in sys.modules if name.startswith("utils.")))
"""


@pytest.mark.parametrize("metric", ["exact_match", "math_accuracy"])
def test_what_no_config_names_is_not_imported(tmp_path, metric):
    flags = [f"--{name}={value}" for name, value in (SMALL | {"max_steps": 1, "output_dir": tmp_path / "out"}).items()]
    flags.append(f"--eval_metrics={metric}")
    command = [sys.executable, "-c", IMPORTED.format(flags=flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stdout[done.stdout.index("IMPORTED") :].split()
    assert "utils.rewards.functions" in imported
    assert "utils.rewards.sandbox" not in imported
    assert ("utils.rewards.mathematics" in imported) == (metric == "math_accuracy")
