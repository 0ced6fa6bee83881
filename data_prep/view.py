"""A page that shows a data set: lengths, openings, copies, what rules dropped, and a random sample of rows.

    python data_prep/view.py outputs/tiny_clean.jsonl                # writes outputs/tiny_clean.html

Any JSONL file of training rows, or of generate.py. One pass; memory does not grow with long rows.
"""

import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

import jinja2
import numpy as np
from tokenizers import Tokenizer

from data_prep.files import digest_of, read_manifest, read_rows
from data_prep.filters import MOST_SCORED, load_tokenizer, words_of
from data_prep.sampling import split_thinking
from utils.config import ROOT, UserError, run_main
from utils.data import BadRow, RowParts, labelled_turns
from utils.files import say, show, write_atomically

MOST_OPENINGS = 200_000  # that are counted at a time; rarer ones are then forgotten
SHOWN = 12  # openings
STYLE = ROOT / "utils/report/page.css"  # that of the recipes' reports
PROVENANCE = ("made_by", "settings", "versions")  # of a manifest
LONGEST = 4000  # characters of a turn on the page


class Statistics:
    """The counts of one pass over the rows, and a random sample of them."""

    def __init__(self, rows: int, seed: int, tokenizer: Tokenizer | None):
        self.kept, self.rng, self.tokenizer = rows, random.Random(seed), tokenizer
        self.count = 0
        self.sample: list[tuple[int, dict]] = []  # (row number, row)
        self.columns: Counter[str] = Counter()
        self.lengths: dict[str, list[float]] = {"prompt": [], "response": []}
        self.numbers: dict[str, list[float]] = {"score": [], "pass_rate": []}
        self.openings: dict[str, Counter[str]] = {"prompts": Counter(), "responses": Counter()}
        self.shares: Counter[str] = Counter()
        self.seen: set[int] = set()  # hashes of prompts and of whole rows

    def add(self, row: dict) -> None:
        self.count += 1
        self.columns.update(list(row))
        if len(self.sample) < self.kept:
            self.sample.append((self.count, row))
        elif (place := self.rng.randrange(self.count)) < self.kept:  # a reservoir: each row is equally likely
            self.sample[place] = (self.count, row)
        try:
            turns, _ = labelled_turns(row)
            prompt, responses = prompt_and_responses(row, turns)
        except BadRow:
            self.shares["are not training rows"] += 1
            return
        for text in [prompt] if prompt else []:
            self.add_text(text, "prompts", "prompt")
        for text in responses:
            self.add_text(text.rpartition("</think>")[2], "responses", "response")
        self.add_shares(row, [label for label, _ in turns], prompt, responses)

    def add_text(self, text: str, kind: str, length: str) -> None:
        words = words_of(text)
        size = len(self.tokenizer.encode(text.encode(errors="replace").decode()).ids) if self.tokenizer else len(words)
        self.lengths[length].append(size)
        opening = " ".join(re.sub(r"[0-9]+", "0", word) for word in words[:4])
        self.openings[kind][opening] += 1
        if len(self.openings[kind]) > MOST_OPENINGS:
            self.openings[kind] = Counter(dict(self.openings[kind].most_common(MOST_OPENINGS // 2)))

    def add_shares(self, row: dict, roles: list[str], prompt: str, responses: list[str]) -> None:
        prompt_hash = hash(tuple(words_of(prompt)))
        row_hash = hash((prompt_hash, *(tuple(words_of(text)) for text in responses)))
        shares = {
            "have the prompt of another": bool(prompt) and prompt_hash in self.seen,
            "are copies except for case and punctuation": row_hash in self.seen,
            "have several turns of the assistant": roles.count("assistant") > 1,
            "have a system prompt": "system" in roles or "developer" in roles,
            "have tools": bool(row.get("tools")),
            "reason in <think>": any("</think>" in text for text in responses),
            "have an empty response": not all(text.strip() for text in responses),
        }
        self.shares.update(shares)
        self.seen |= {prompt_hash, row_hash}
        for name, values in self.numbers.items():
            if isinstance(row.get(name), (int, float)) and abs(row[name]) < MOST_SCORED:  # NaN is not
                values.append(float(row[name]))


def prompt_and_responses(row: dict, turns: list[tuple[str, str]]) -> tuple[str, list[str]]:
    """The texts that are measured: of a row of generate.py, all its responses."""
    if isinstance(row.get("responses"), list):
        prompt = RowParts.of({"prompt": row.get("prompt")}).prompt
        return prompt, [text for label, text in turns if label.startswith("response ")]
    parts = RowParts.of(row)
    return parts.prompt, [parts.response] if parts.answers else []


def shown(row: dict) -> tuple[list[dict], str]:
    """(turns for the page, the other columns); a row in an unknown format is shown as it is."""
    try:
        turns, rest = labelled_turns(row)
    except BadRow:
        turns, rest = [], row
    page_turns = []
    for label, text in turns:
        reasoning, answer = split_thinking(text)
        if answer is None:  # never closed
            reasoning, answer = "", text
        page_turns.append({"role": cut(label), "thinking": cut(reasoning), "text": cut(answer.strip())})
    return page_turns, cut(json.dumps(rest, ensure_ascii=False, indent=1)) if rest else ""


def cut(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # half a surrogate cannot be written
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def quantiles(values: list[float]) -> list[str]:
    return [f"{value:,.10g}" for value in np.quantile(values, [0, 0.1, 0.5, 0.9, 0.99, 1], axis=0, method="nearest")]


def histogram(values: list[float]) -> list[dict]:
    """20 bars; values over the 99th percentile are in the last."""
    top = max(float(np.quantile(values, 0.99)), min(values) + 1e-9)
    counts, edges = np.histogram(np.minimum(values, top), bins=20)
    height, width = 105 / max(1, counts.max()), 400 / 20
    return [
        {
            "x": round(i * width + 1, 1), "width": width - 2, "y": round(108 - n * height, 1),
            "height": round(n * height, 1), "count": f"{n:,}", "label": f"{edge:,.4g}",
        }
        for i, (n, edge) in enumerate(zip(counts.tolist(), edges.tolist(), strict=False))
    ]  # fmt: skip


def page(path: Path, data: Statistics, unit: str, seed: int) -> str:
    manifest = read_manifest(path) or {}
    charts = {f"{name}s, in {unit}": values for name, values in data.lengths.items() if values}
    charts |= {name: values for name, values in data.numbers.items() if values}
    openings = []
    for kind, counts in data.openings.items():
        total = sum(counts.values())
        lines = [(text or "(no words)", f"{n:,}", f"{n / total:.1%}") for text, n in counts.most_common(SHOWN)]
        openings.append((f"{kind.capitalize()}: {len(counts):,} openings", lines))
    values = {
        "style": STYLE.read_text(encoding="utf-8"), "name": cut(path.name), "rows": data.count, "unit": unit,
        "size": path.stat().st_size, "digest": digest_of(path),
        "columns": cut(", ".join(f"{n} ({c:,})" if c < data.count else n for n, c in data.columns.items())),
        "lengths": [(f"{name}s", *quantiles(values)) for name, values in data.lengths.items() if values],
        "histograms": [(name, histogram(values)) for name, values in charts.items()],
        "shares": [(name, f"{n:,}", f"{n / data.count:.1%}") for name, n in data.shares.items()],
        "openings": openings, "seed": seed,
        "dropped": [(name, f"{n:,}" if isinstance(n, int) else n) for name, n in manifest.get("counts", {}).items()],
        "examples": list(manifest.get("examples", {}).items()),
        "sample": [(number, *shown(row)) for number, row in sorted(data.sample, key=lambda item: item[0])],
        "made": json.dumps({key: manifest.get(key) for key in PROVENANCE}, indent=1) if manifest else "",
    }  # fmt: skip
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=folder, autoescape=True).get_template("view.html").render(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_name", type=Path, help="a JSONL file")
    parser.add_argument("--output_file", type=Path, help="the page; by default beside the file")
    parser.add_argument("--tokenizer", help="a model's folder: lengths are then in tokens, not words")
    parser.add_argument("--rows", type=int, default=20, help="how many rows to show")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    output = options.output_file or options.dataset_name.with_suffix(".html")
    if output.suffix != ".html":
        raise UserError(f"--output_file: {output} must end with .html")
    data = Statistics(options.rows, options.seed, load_tokenizer(options.tokenizer) if options.tokenizer else None)
    for row in read_rows(options.dataset_name):
        data.add(row)
    if not any(data.lengths.values()):
        raise UserError(f"{options.dataset_name}: has no training rows to show")
    unit = "tokens" if options.tokenizer else "words"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page(options.dataset_name, data, unit, options.seed))
    say("view", f"{data.count:,} rows")
    for name, values in data.lengths.items():
        if values:
            low, _, median, ninety, _, high = quantiles(values)
            say("", f"{name}s: {low} to {high} {unit}, median {median}, 90% at most {ninety}")
    for name, count in data.shares.items():
        if count:
            say("", f"{count:,} {name}")
    say("done", f"open {show(Path(os.path.abspath(output)))}")


if __name__ == "__main__":
    run_main(main)
