"""Speed, memory, scaling and accuracy of filter.py, on synthetic rows.

    python benchmarks/filter_speed.py --rows 10000 100000 1000000

Rows of about 150 words from a vocabulary of 20,000 (Zipf's law); a tenth are planted near-copies (4 words of 150
changed: an overlap of 3-grams of 0.8 and more), and a twentieth share a third of their text with another row, which
does not make them copies. filter.py runs as a user runs it; its memory is that of all its processes together. At the
first size datasketch finds the copies too, in one process each.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_prep.filter import FilterConfig
from data_prep.filters import near_duplicates
from data_prep.filters.scan import chunks_of
from data_prep.filters.scanner import Scanner
from data_prep.filters.texts import Words, words_of

WORDS, VOCABULARY, THRESHOLD = 150, 20_000, 0.7
SINGLE = {
    "lengths": {"min_words": 1, "max_words": 8000}, "refusals": {"refusals": True},
    "broken_format": {"broken_format": True}, "repetition": {"repetition": True},
    "personal_data": {"personal_data": True}, "contamination": {"contamination": True},
    "exact_duplicates": {"exact_duplicates": "both"}, "near_duplicates": {"near_duplicates": "both"},
}  # fmt: skip
OTHERS = {  # not in the default
    "truncated_endings": {"truncated_endings": True}, "languages": {"languages": ["en"]},
    "max_tokens": {"tokenizer": str(ROOT / "tiny/base"), "max_tokens": 9000}, "diversity": {"diversity": 1},
}  # fmt: skip


def make_rows(count: int, path: Path) -> dict[int, int]:
    """Write the rows. Returns {planted copy: the row that it copies}, by number."""
    rng = np.random.default_rng(count)
    letters = random.Random(0)
    vocabulary = np.array(["".join(letters.choices("abcdefghijklmnoprstuvw", k=letters.randint(2, 9)))
                           for _ in range(VOCABULARY)])  # fmt: skip
    weights = 1 / np.arange(1, VOCABULARY + 1)
    weights /= weights.sum()
    copies, recent = {}, {}
    with path.open("w") as file:
        for first in range(0, count, 10_000):
            drawn = rng.choice(VOCABULARY, size=(10_000, WORDS), p=weights)
            kinds = rng.random(10_000)
            for i in range(min(10_000, count - first)):
                row, ids = first + i, drawn[i]
                if kinds[i] < 0.15 and recent:
                    source = int(rng.choice(list(recent)))
                    if kinds[i] < 0.10:  # a near-copy
                        ids = recent[source].copy()
                        ids[rng.choice(WORDS, 4, replace=False)] = drawn[i][:4]
                        copies[row] = source
                    else:  # a third of the text is the same
                        ids = np.concatenate([recent[source][: WORDS // 3], ids[WORDS // 3 :]])
                elif len(recent) < 2000:
                    recent[row] = ids
                words = vocabulary[ids].tolist()
                prompt, answer = " ".join(words[:30]) + "?", " ".join(words[30:]) + "."
                turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": turns}) + "\n")
    return copies


def run_filter(rows: Path, output: Path, heldout: Path) -> tuple[float, float]:
    """(seconds, peak memory in GB) of the whole default filter."""
    words = ["--dataset_name", str(rows), "--output_file", str(output), "--contamination", str(heldout)]
    words += ["--dropped_to", str(output.with_suffix(".dropped.jsonl")), "--start_over"]
    config = str(ROOT / "configs/filter_default.yaml")
    began, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, str(ROOT / "data_prep/filter.py"), "--config", config, *words],
                           stdout=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_full_info().pss for member in family))
        except psutil.Error:  # one has just ended
            pass
        time.sleep(max(0.1, (time.perf_counter() - began) / 100))  # measuring gigabytes takes time itself
    if process.returncode:
        sys.exit(f"filter.py ended with {process.returncode}")
    return time.perf_counter() - began, peak / 1e9


def dropped_copies(output: Path) -> set[int]:
    dropped = output.with_suffix(".dropped.jsonl").read_text().splitlines()
    rows = (json.loads(line) for line in dropped)
    return {row["_row"] - 1 for row in rows if row["_rule"] in ("near_duplicates", "exact_duplicates")}


def quality(found: set[int], copies: dict[int, int]) -> tuple[float, float]:
    """(recall, precision): each group of a row and its copies must lose all but one."""
    groups: dict[int, set[int]] = {}
    for copy, source in copies.items():
        groups.setdefault(source, {source}).add(copy)
    right = sum(min(len(group & found), len(group) - 1) for group in groups.values())
    return right / len(copies), right / max(1, len(found))


def rates(rows: Path, heldout: Path) -> dict[str, float]:
    """Rows a second of each rule alone on one core, without reading; of diversity, only the vectors."""
    with rows.open("rb") as file:
        chunks = list(chunks_of(file))
    count = sum(map(len, chunks))

    def seconds(rules: dict) -> float:
        rules = {key: [str(heldout)] if key == "contamination" else value for key, value in rules.items()}
        scanner = Scanner(FilterConfig("", "", **rules))
        began = time.perf_counter()
        signed = [scanner.scan(chunk).signature for chunk in chunks]
        if "near_duplicates" in rules:
            list(near_duplicates.find_copies(np.concatenate(signed), THRESHOLD, 2, np.arange(count)))
        return time.perf_counter() - began

    seconds({})
    plain = min(seconds({}) for _ in range(3))
    alone = {
        name: count / max(1e-9, min(seconds(rules) for _ in range(3)) - plain)
        for name, rules in (SINGLE | OTHERS).items()
    }
    return {"reading": count / plain} | alone


def beside_datasketch(rows: Path, copies: dict[int, int]) -> None:
    from datasketch import MinHash, MinHashLSH

    texts = [words_of(" ".join(m["content"] for m in json.loads(line)["messages"])) for line in rows.open()]
    began = time.perf_counter()
    signed = near_duplicates.signatures(Words(texts), 3, 128)
    found = {row for row, _ in near_duplicates.find_copies(signed, THRESHOLD, 1, np.arange(len(texts)))}
    ours = time.perf_counter() - began
    recall, precision = quality(found, copies)
    print(f"  rensa and bands     1.00   recall {recall:.4f}  precision {precision:.4f}")
    began, index, found = time.perf_counter(), MinHashLSH(threshold=THRESHOLD, num_perm=128), set()
    for number, words in enumerate(texts):
        signature = MinHash(num_perm=128)
        signature.update_batch([" ".join(words[i : i + 3]).encode() for i in range(len(words) - 2)])
        if index.query(signature):
            found.add(number)
        index.insert(number, signature)
    took, (recall, precision) = time.perf_counter() - began, quality(found, copies)
    print(f"  datasketch          {took / ours:.2f}   recall {recall:.4f}  precision {precision:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        heldout = folder / "heldout.jsonl"
        make_rows(1000, heldout)
        first = None
        for count in options.rows:
            rows, output = folder / "rows.jsonl", folder / "clean.jsonl"
            copies = make_rows(count, rows)
            seconds, memory = run_filter(rows, output, heldout)
            recall, precision = quality(dropped_copies(output), copies)
            first = first or seconds / count
            print(
                f"{count:>9,} rows  {count / seconds:>8,.0f} rows/s  seconds a row {seconds / count / first:.2f} of "
                f"the first size's  {memory:.2f} GB  recall {recall:.4f}  precision {precision:.4f}", flush=True
            )  # fmt: skip
            if count == options.rows[0]:
                for name, rate in rates(rows, heldout).items():
                    text = f"{rate:>14,.0f}" if rate < 1e6 else "over 1,000,000"
                    print(f"  {name:<18} {text} rows/s, one core")
                print("  near-duplicates, seconds in units of ours, one core:")
                beside_datasketch(rows, copies)


if __name__ == "__main__":
    main()
