"""A page that shows what a data set is: lengths, openings, copies, what rules dropped, and rows drawn at random.

    python data_prep/view.py outputs/tiny_clean.jsonl                # writes outputs/tiny_clean.html

Any JSONL file of training rows, or of what generate.py wrote. One pass; memory does not grow with long rows.
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

from data_prep.files.jsonl import digest_of, read_manifest, read_rows
from data_prep.filters.scan import MOST_SCORED, load_tokenizer
from data_prep.filters.texts import parts_of, text_of, words_of
from data_prep.sampling.replies import split_thinking
from utils.config import ROOT, UserError, run_main
from utils.files import say, show, write_atomically

MOST_OPENINGS = 200_000  # that are counted at a time; rarer ones are then forgotten
SHOWN = 12  # openings
STYLE = ROOT / "utils/report/page.css"  # that of the recipes' reports
MADE = ("made_by", "asked", "versions")  # of a manifest, beside what was dropped
TURNS = ("messages", "prompt", "question", "completion", "answer", "text", "chosen", "rejected", "responses")
LONGEST = 4000  # characters of a turn on the page


class Seen:
    """What one pass over the rows finds."""

    def __init__(self, rows: int, seed: int, tokenizer):
        self.kept, self.draw, self.tokenizer = rows, random.Random(seed), tokenizer
        self.count, self.sample, self.columns = 0, [], Counter()
        self.lengths: dict[str, list[float]] = {"prompt": [], "response": []}
        self.numbers: dict[str, list[float]] = {"score": [], "pass_rate": []}
        self.openings = {"prompts": Counter(), "responses": Counter()}
        self.shares = Counter()
        self.prompts: set[int] = set()
        self.whole: set[int] = set()

    def add(self, row: dict) -> None:
        self.count += 1
        self.columns.update(list(row))
        if len(self.sample) < self.kept:
            self.sample.append((self.count, row))
        elif (place := self.draw.randrange(self.count)) < self.kept:  # a reservoir: each row is as likely
            self.sample[place] = (self.count, row)
        try:
            prompt, responses = texts_of(row)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            self.shares["are no training rows"] += 1
            return
        for text in [prompt] if prompt else []:
            self.note(text, "prompts", "prompt")
        for text in responses:
            self.note(text.rpartition("</think>")[2], "responses", "response")
        self.look(row, prompt, responses)

    def note(self, text: str, kind: str, length: str) -> None:
        words = words_of(text)
        size = len(self.tokenizer.encode(text.encode(errors="replace").decode()).ids) if self.tokenizer else len(words)
        self.lengths[length].append(size)
        opening = " ".join(re.sub(r"[0-9]+", "0", word) for word in words[:4])
        self.openings[kind][opening] += 1
        if len(self.openings[kind]) > MOST_OPENINGS:
            self.openings[kind] = Counter(dict(self.openings[kind].most_common(MOST_OPENINGS // 2)))

    def look(self, row: dict, prompt: str, responses: list[str]) -> None:
        asked = hash(tuple(words_of(prompt)))
        whole = hash((asked, *(tuple(words_of(text)) for text in responses)))
        self.shares["ask what another asked"] += bool(prompt) and asked in self.prompts
        self.shares["are copies, case and punctuation aside"] += whole in self.whole
        self.prompts.add(asked)
        self.whole.add(whole)
        turns = turns_of(row)
        self.shares["have several turns of the assistant"] += sum(t["role"] == "assistant" for t in turns) > 1
        self.shares["have a system prompt"] += any(t["role"] in ("system", "developer") for t in turns)
        self.shares["have tools"] += bool(row.get("tools"))
        self.shares["reason in <think>"] += any("</think>" in text for text in responses)
        self.shares["have an empty response"] += not all(text.strip() for text in responses)
        for name, found in self.numbers.items():
            if isinstance(row.get(name), (int, float)) and abs(row[name]) < MOST_SCORED:  # neither is NaN
                found.append(float(row[name]))


def texts_of(row: dict) -> tuple[str, list[str]]:
    """(prompt, responses): of what generate.py wrote, all of them."""
    if isinstance(row.get("responses"), list):
        return text_of(row["prompt"]), [text_of(response["completion"]) for response in row["responses"]]
    part = parts_of(row)
    return part.prompt, [part.response] if part.answers else []


def turns_of(row: dict) -> list[dict]:
    """Messages, whatever the form; what stands in a column of its own is named by it."""
    turns = []
    for name in TURNS[:-1]:
        part = row.get(name)
        if isinstance(part, str):
            turns.append({"role": name, "content": part})
        for message in part if isinstance(part, list) else []:
            if isinstance(message, dict):
                role = f"{name}: {message.get('role')}" if name in ("chosen", "rejected") else str(message.get("role"))
                turns.append({"role": role, "content": text_of([message])})
    responses = row.get("responses")
    for number, response in enumerate(responses if isinstance(responses, list) else [], 1):
        turns.append({"role": f"response {number}", "content": text_of(response["completion"])})
    return turns


def shown(row: dict) -> tuple[list[dict], str]:
    """(turns for the page, the other columns); what is in no known form is shown as it is."""
    try:
        found, told = turns_of(row), TURNS
    except (KeyError, TypeError, ValueError, AttributeError):
        found, told = [], ()
    turns = []
    for turn in found:
        reasoning, answer = split_thinking(turn["content"])
        reasoning = reasoning if answer is not None else ""
        text = answer.strip() if answer is not None else turn["content"]
        turns.append({"role": cut(turn["role"]), "thinking": cut(reasoning), "text": cut(text)})
    rest = {key: value for key, value in row.items() if key not in told}
    return turns, cut(json.dumps(rest, ensure_ascii=False, indent=1)) if rest else ""


def cut(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # half a surrogate cannot be written
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def quantiles(values: list[float]) -> list[str]:
    found = np.quantile(values, [0, 0.1, 0.5, 0.9, 0.99, 1], method="nearest")
    return [f"{value:,.10g}" for value in found]


def histogram(values: list[float]) -> list[dict]:
    """20 bars; what lies over the 99th percentile is in the last."""
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


def page(path: Path, seen: Seen, unit: str, seed: int) -> str:
    manifest = read_manifest(path) or {}
    drawn = {f"{name}s, in {unit}": values for name, values in seen.lengths.items() if values}
    drawn |= {name: values for name, values in seen.numbers.items() if values}
    openings = []
    for kind, counts in seen.openings.items():
        total = sum(counts.values())
        lines = [(text or "(no words)", f"{n:,}", f"{n / total:.1%}") for text, n in counts.most_common(SHOWN)]
        openings.append((f"{kind.capitalize()}: {len(counts):,} openings", lines))
    fill = {
        "style": STYLE.read_text(encoding="utf-8"), "name": cut(path.name), "rows": seen.count, "unit": unit,
        "size": path.stat().st_size, "digest": digest_of(path),
        "columns": cut(", ".join(f"{n} ({c:,})" if c < seen.count else n for n, c in seen.columns.items())),
        "lengths": [(f"{name}s", *quantiles(values)) for name, values in seen.lengths.items() if values],
        "histograms": [(name, histogram(values)) for name, values in drawn.items()],
        "shares": [(name, f"{n:,}", f"{n / seen.count:.1%}") for name, n in seen.shares.items()],
        "openings": openings, "seed": seed,
        "dropped": [(name, f"{n:,}" if isinstance(n, int) else n) for name, n in manifest.get("counts", {}).items()],
        "examples": list(manifest.get("examples", {}).items()),
        "sample": [(number, *shown(row)) for number, row in sorted(seen.sample, key=lambda item: item[0])],
        "made": json.dumps({key: manifest.get(key) for key in MADE}, indent=1) if manifest else "",
    }  # fmt: skip
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=folder, autoescape=True).get_template("view.html").render(fill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_name", type=Path, help="a JSONL file")
    parser.add_argument("--output_file", type=Path, help="the page; by default beside the file")
    parser.add_argument("--tokenizer", help="a model's folder: lengths are then in tokens, not words")
    parser.add_argument("--rows", type=int, default=20, help="how many rows are shown")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    output = options.output_file or options.dataset_name.with_suffix(".html")
    if output.suffix != ".html":
        raise UserError(f"--output_file: {output} must end with .html")
    seen = Seen(options.rows, options.seed, load_tokenizer(options.tokenizer) if options.tokenizer else None)
    for row in read_rows(options.dataset_name):
        seen.add(row)
    if not any(seen.lengths.values()):
        raise UserError(f"{options.dataset_name}: has no training rows to show")
    unit = "tokens" if options.tokenizer else "words"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page(options.dataset_name, seen, unit, options.seed))
    say("view", f"{seen.count:,} rows")
    for name, values in seen.lengths.items():
        if values:
            low, _, median, ninety, _, high = quantiles(values)
            say("", f"{name}s: {low} to {high} {unit}, median {median}, 90% at most {ninety}")
    for name, count in seen.shares.items():
        if count:
            say("", f"{count:,} {name}")
    say("done", f"open {show(Path(os.path.abspath(output)))}")


if __name__ == "__main__":
    run_main(main)
