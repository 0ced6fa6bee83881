"""The effect of data preparation on the tiny world: the same base model, steps and batch size, on different rows.

    python benchmarks/data_quality.py

Prints the two tables of data_prep/README.md and draws its `quality_vs_quantity.png`: single unfiltered answers
against the best of K, filtered; and N clean rows against 10 N of which half are wrong, copied or off-format. 30 runs
of SFT, two at a time on 2 cores; a finished run is not repeated. Steps have 32 rows, not the recipe's 16: with 16,
the same rows in another order ended at 0.8 or at 0.5.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scipy.stats import norm, sem, ttest_rel

SEEDS = (42, 7, 1)
CLEAN = (100, 300, 600)  # N; each against 10 N
REFUSALS = ["I am a small model and I cannot help with that.", "As an AI language model, I cannot do sums."]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(prompt: list[dict], text: str) -> dict:
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}


def spoil(text: str, kind: str, rng: random.Random) -> str:
    """An answer made wrong, cut off, or off-format."""
    *steps, last = text.splitlines()
    number = int(last.removeprefix("The answer is ").removesuffix("."))
    if kind == "wrong":  # the last sum, by as much as models are wrong
        missed = max(0, number + rng.choice([-20, -10, -2, -1, 1, 2, 10, 20]))
        missed = missed if missed != number else number + 1
        return "\n".join([*steps[:-1], steps[-1].rpartition("=")[0] + f"= {missed}", f"The answer is {missed}."])
    if kind == "cut":
        return text[: len(text) // 2]
    if kind == "bare":
        return f"It is {number}, I think."
    if kind == "unclosed":
        return f"<think>\n{text}"
    return rng.choice(REFUSALS)


def noisy_rows(rows: list[dict], count: int) -> list[dict]:
    """`count` rows: half right, a sixth each wrong, off-format, or copies of a few."""
    rng, sixth = random.Random(count), count // 6
    pairs = [(r["messages"][:-1], r["messages"][-1]["content"]) for r in rows[:count]]
    made = [row(prompt, text) for prompt, text in pairs[: count - 3 * sixth]]
    copied = rng.sample(made, max(1, sixth // 20))
    made += [rng.choice(copied) for _ in range(sixth)]
    made += [row(prompt, spoil(text, "wrong", rng)) for prompt, text in pairs[count - 2 * sixth : count - sixth]]
    kinds = ("cut", "bare", "unclosed", "refusal")
    made += [row(prompt, spoil(text, rng.choice(kinds), rng)) for prompt, text in pairs[count - sixth :]]
    rng.shuffle(made)
    return made


def run(*words: str | Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


def prepare(folder: Path) -> dict[str, Path]:
    """The files of rows to train on, by arm."""
    run("sft/train.py", "--config", "configs/sft_tiny.yaml")  # the teacher
    run("data_prep/generate.py", "--config", "configs/generate_tiny.yaml")
    run("data_prep/best_of_k.py", "--config", "configs/best_of_k_tiny.yaml")
    run("data_prep/filter.py", "--config", "configs/filter_tiny.yaml")
    best, single = read(ROOT / "outputs/tiny_clean.jsonl"), read(ROOT / "outputs/tiny_generated.jsonl")
    arms = {"best of 4, filtered": write(folder / "best.jsonl", best)}
    singles = [{"prompt": r["prompt"]} | {"completion": r["responses"][0]["completion"]} for r in single]
    singles = [r for r in singles if r["completion"][-1]["content"]][: len(best)]  # nothing trains on an empty answer
    arms["single, unfiltered"] = write(folder / "single.jsonl", singles)
    rows = read(ROOT / "tiny/data/sft_messages.jsonl")
    for count in CLEAN:
        arms[f"{count:,} clean"] = write(folder / f"clean_{count}.jsonl", rows[:count])
        arms[f"{10 * count:,} half noise"] = write(folder / f"noisy_{10 * count}.jsonl", noisy_rows(rows, 10 * count))
    arms["3,000 clean"] = write(folder / "clean_3000.jsonl", rows[:3000])
    gold = {json.dumps(r["messages"][:-1]): r["messages"][-1]["content"] for r in rows}
    pool = [
        {
            "prompt": r["prompt"],
            "answer": gold[json.dumps(r["prompt"])],
            "responses": [{"completion": r["completion"]}],
        }
        for r in noisy_rows(rows, 6000)
    ]
    pool = write(folder / "pool.jsonl", pool)
    chosen, clean = folder / "pool_best.jsonl", folder / "pool_clean.jsonl"
    words = ["--dataset_name", pool, "--best_to", chosen, "--pairs_to", "null", "--prompts_to", "null", "--start_over"]
    run("data_prep/best_of_k.py", "--config", "configs/best_of_k_tiny.yaml", *words)
    words = ["--dataset_name", chosen, "--output_file", clean, "--start_over"]
    run("data_prep/filter.py", "--config", "configs/filter_tiny.yaml", *words)
    return arms | {"6,000 half noise, best_of_k.py and filter.py": clean}


def train(folder: Path, rows: Path, seed: int) -> None:
    words = ["--dataset_name", rows, "--seed", str(seed), "--output_dir", folder / f"{rows.stem}_{seed}"]
    words += ["--per_device_train_batch_size", "32"]
    run("sft/train.py", "--config", "configs/sft_tiny.yaml", *words)


def scores(folder: Path, rows: Path, seeds: list[int]) -> list[list[float]]:
    """For each seed, the score of each held-out prompt."""
    files = [folder / f"{rows.stem}_{seed}" / "evaluation" / "after.json" for seed in seeds]
    return [[r["scores"]["exact_match"] for r in json.loads(path.read_text())["rows"]] for path in files]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(found: dict[str, list[list[float]]], files: dict[str, Path], against: dict[str, str]) -> None:
    """A line for each arm, with the change from the arm that it is compared with, over prompts and over seeds."""
    print("\n| rows | in the file | exact match by seed | mean | against | change | p, prompts | p, seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, by_seed in found.items():
        own = [mean(values) for values in by_seed]
        change_columns = "| | | |"
        if name in against:
            base = found[against[name]]
            pairs = zip(zip(*by_seed, strict=True), zip(*base, strict=True), strict=True)
            change = [mean(list(a)) - mean(list(b)) for a, b in pairs]
            over_prompts = 2 * norm.sf(abs(mean(change)) / sem(change))  # 400 of them: the normal test is as good as t
            over_seeds = ttest_rel(own, [mean(values) for values in base]).pvalue
            change_columns = f"{against[name]} | {mean(change):+.3f} | {over_prompts:.1g} | {over_seeds:.1g} |"
        seeds = " / ".join(f"{value:.3f}" for value in own)
        print(f"| {name} | {len(read(files[name])):,} | {seeds} | {mean(own):.3f} | {change_columns}")


def draw(found: dict[str, list[list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2))
    for kind, factor, colour in (("clean", 1, "#1a7f5a"), ("half noise", 10, "#b3541e")):
        sizes = [factor * count for count in CLEAN] + ([3000] if factor == 1 else [])
        points = [(size, mean(by_seed)) for size in sizes for by_seed in found[f"{size:,} {kind}"]]
        axis.plot(sizes, [mean([y for x, y in points if x == size]) for size in sizes], color=colour, label=kind)
        axis.plot(*zip(*points, strict=True), "o", color=colour, alpha=0.5)
    size, name = 3000, "6,000 half noise, best_of_k.py and filter.py"
    axis.plot([size] * len(found[name]), [mean(v) for v in found[name]], "D", color="#2a5db0", label="6,000, prepared")
    axis.set(xscale="log", xlabel="rows in the file", ylabel="exact match, 400 held-out prompts", ylim=(0, 1))
    axis.set_xticks([100, 300, 600, 1000, 3000, 6000], ["100", "300", "600", "1,000", "3,000", "6,000"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(title="140 steps of 32 rows")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs/data_quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--at_once", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    folder = options.output_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    files = prepare(folder)
    jobs = [(folder, rows, seed) for seed in options.seeds for rows in files.values()]
    with ThreadPoolExecutor(options.at_once) as threads:
        for number, _ in enumerate(threads.map(lambda job: train(*job), jobs), 1):
            print(f"{number} of {len(jobs)} runs", flush=True)
    found = {name: scores(folder, rows, options.seeds) for name, rows in files.items()}
    first = ("single, unfiltered", "best of 4, filtered")
    table({name: found[name] for name in first}, files, {first[1]: first[0]})
    noisy, prepared = "6,000 half noise", "6,000 half noise, best_of_k.py and filter.py"
    against = {f"{count:,} clean": f"{10 * count:,} half noise" for count in CLEAN} | {"3,000 clean": noisy}
    order = [name for count in CLEAN for name in (f"{10 * count:,} half noise", f"{count:,} clean")]
    order += ["3,000 clean", prepared]
    table({name: found[name] for name in order}, files, against | {prepared: noisy})
    draw(found, folder / "quality_vs_quantity.png")


if __name__ == "__main__":
    main()
