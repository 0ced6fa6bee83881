"""A stage for tests that run a recipe: a folder with a run.yaml and a rows.jsonl, as a user would write them.

The recipe runs in this process, which takes a tenth of the time of a new one and lets a test replace parts of it.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass

from conftest import ROOT

from utils.config import run_main

FOLDERS = {"sft": "sft", "dpo": "dpo", "kto": "kto", "grpo": "online_rl"}
BASE = {
    "model_name_or_path": "tiny/base", "chat_template": "qwen3", "max_steps": 4, "per_device_train_batch_size": 4,
    "logging_steps": 1, "save_strategy": "'no'", "gradient_checkpointing": "false", "eval_max_new_tokens": 8,
}  # fmt: skip
OWN = {
    "sft": {"assistant_only_loss": "true", "max_length": 256},
    "dpo": {"max_length": 256, "precompute_ref_log_probs": "false"},
    "kto": {"max_length": 256, "precompute_ref_log_probs": "false"},
    "grpo": {"reward_funcs": "[exact_match]", "num_generations": 4, "max_completion_length": 8},
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def sums(count, start=0):
    """Conversations without a fault."""
    return [
        {"messages": [user(f"Ann has {n} nuts and finds 3. How many?"), assistant(f"The answer is {n + 3}.")]}
        for n in range(start, start + count)
    ]


def pairs(count):
    """Preference pairs without a fault."""
    return [
        {"prompt": row["messages"][:1], "chosen": row["messages"][1:], "rejected": [assistant(f"It is {n} or more.")]}
        for n, row in enumerate(sums(count))
    ]


def labelled(count):
    """Answers labelled good and bad by turns, all right."""
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if n % 2 else "chosen"], "label": n % 2 == 0}
        for n, row in enumerate(pairs(count))
    ]


def tasks(count):
    """Prompts with a gold answer."""
    return [{"prompt": row["messages"][:1], "answer": row["messages"][1]["content"]} for row in sums(count)]


ROWS = {"sft": sums(24), "dpo": pairs(24), "kto": labelled(24), "grpo": tasks(24)}


@dataclass
class Done:
    """How a run ended: its exit code, and all that it printed, stdout before stderr."""

    code: int
    said: str

    def tells(self, *texts):
        """Assert that it printed each text, and no traceback."""
        for text in texts:
            assert text in self.said, f"exit code {self.code}, but it did not print {text!r}:\n{self.said}"
        assert "Traceback" not in self.said


class Stage:
    """What a test writes its files with and runs a recipe on; conftest.py makes one for each test."""

    def __init__(self, folder, monkeypatch, capfd):
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd

    def write(self, name, rows):
        path = self.folder / name
        path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        return path

    def module(self, name, text):
        """A Python module of the user's own."""
        self.write(f"{name}.py", text)
        self.monkeypatch.syspath_prepend(self.folder)
        sys.modules.pop(name, None)

    def yaml(self, method, text, drop=()):
        """Write run.yaml: the lines of `text`, then what else a run needs, except for the keys in `drop`."""
        keys = {line.split(":")[0] for line in text.splitlines()} | set(drop)
        keys |= {"dataset_name"} if "datasets" in keys else set()
        defaults = BASE | OWN[method] | {"output_dir": self.folder / "out", "dataset_name": self.folder / "rows.jsonl"}
        lines = [f"{key}: {value}" for key, value in defaults.items() if key not in keys]
        return self.write("run.yaml", "\n".join([text, *lines]) + "\n")

    def run(self, text="", rows=None, method="sft", flags=("--check",), drop=()):
        """Run the recipe as its command line would, on a YAML whose first lines are `text` and on rows.jsonl."""
        if rows is not None or not (self.folder / "rows.jsonl").exists():
            self.write("rows.jsonl", ROWS[method] if rows is None else rows)
        path = self.yaml(method, text, drop)
        spec = importlib.util.spec_from_file_location(f"{method}_train", ROOT / FOLDERS[method] / "train.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.monkeypatch.setattr(sys, "argv", [f"{FOLDERS[method]}/train.py", "--config", str(path), *map(str, flags)])
        self.capfd.readouterr()
        code = 0
        try:
            run_main(module.main)
        except SystemExit as end:
            code = end.code or 0
        seen = self.capfd.readouterr()
        return Done(code, seen.out + seen.err)
