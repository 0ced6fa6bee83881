"""Time of the whole process of our SFT recipe against `trl sft`: the same rows, model, steps and learning rate.

    python benchmarks/sft_vs_trl.py --repeat 2

Three commands are timed, alternating: `trl sft` with its own defaults; our recipe without held-out rows, so without
any evaluation; and our recipe as shipped, with the evaluations before and after and the report. Start it on an idle
machine: two jobs on one processor slow each other down many times over.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trl

ROOT = Path(__file__).resolve().parents[1]
STEPS, BATCH = 100, 32


def commands(folder: Path) -> dict[str, list[str]]:
    same = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 3e-3, "max_length": 256}
    shared = [word for name, value in same.items() for word in (f"--{name}", str(value))]
    python = sys.executable
    # trl sft needs a tokenizer with a template; the assistant's tokens alone are learnt, as in our recipe.
    model = folder / "base"
    shutil.copytree(ROOT / "tiny/base", model, dirs_exist_ok=True)
    shutil.copy(Path(trl.__file__).parent / "chat_templates/qwen3.jinja", model / "chat_template.jinja")
    rows = folder / "rows"
    rows.mkdir(exist_ok=True)
    shutil.copy(ROOT / "tiny/data/sft_messages.jsonl", rows / "train.jsonl")
    theirs = [python, "-m", "trl.scripts.sft", "--model_name_or_path", str(model), "--dataset_name", str(rows)]
    theirs += ["--assistant_only_loss", "true", "--use_cpu", "true", *shared]
    ours = [python, str(ROOT / "sft/train.py"), "--config", str(ROOT / "configs/sft_tiny.yaml"), *shared]
    return {
        "trl sft": theirs,
        "ours, training alone": [*ours, "--heldout_name", "null"],
        "ours, as shipped": ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = Path(name), {}
        for turn in range(repeat + 1):  # the first turn fills the caches of data sets and bytecode, and is not counted
            for label, command in commands(folder).items():
                output = folder / f"{label.replace(' ', '_')}_{turn}"
                started = time.perf_counter()
                done = subprocess.run([*command, "--output_dir", str(output)], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{label} failed:\n{done.stderr[-2000:]}")
                if turn:
                    seconds.setdefault(label, []).append(time.perf_counter() - started)
    reference = statistics.median(seconds["trl sft"])
    print(f"{STEPS} steps of {BATCH} rows, whole process, median of {repeat}, in turn; `trl sft` = 1")
    for label, times in seconds.items():
        spread = f"{min(times) / reference:.2f} to {max(times) / reference:.2f}"
        print(f"{label:<22} {statistics.median(times) / reference:.2f}   ({spread})")


if __name__ == "__main__":
    main()
