"""Make the tiny world's data (`tiny/data/*.jsonl`): the same bytes every time, on every machine.

    python tiny/make_data.py

Held-out and training never share a prompt, nor the numbers of one (see world.py).
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from world import Problem, make_problems

HELDOUT, SFT, PROMPT_COMPLETION, GRPO = 400, 6000, 1000, 4000


def response(problem: Problem) -> str:
    """How the post-trained model should answer: a step a line, then the answer."""
    return "\n".join([*problem.steps, f"The answer is {problem.answer}."])


def messages_row(problem: Problem) -> dict:
    return {"messages": [*prompt(problem), {"role": "assistant", "content": response(problem)}]}


def prompt_completion_row(problem: Problem) -> dict:
    return {"prompt": prompt(problem), "completion": [{"role": "assistant", "content": response(problem)}]}


def gsm8k_row(problem: Problem) -> dict:
    """The columns and the `####` of openai/gsm8k."""
    return {"question": problem.question, "answer": "\n".join([*problem.steps, f"#### {problem.answer}"])}


def prompt(problem: Problem) -> list[dict]:
    return [{"role": "user", "content": problem.question}]


def make_data(folder: Path) -> None:
    heldout = make_problems(seed=1, count=HELDOUT, reserved=True)
    training = make_problems(seed=2, count=SFT + PROMPT_COMPLETION + GRPO, reserved=False)
    files = {
        "heldout.jsonl": map(messages_row, heldout),
        "heldout_grpo.jsonl": map(gsm8k_row, heldout),
        "sft_messages.jsonl": map(messages_row, training[:SFT]),
        "sft_prompt_completion.jsonl": map(prompt_completion_row, training[SFT : SFT + PROMPT_COMPLETION]),
        "grpo.jsonl": map(gsm8k_row, training[SFT + PROMPT_COMPLETION :]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent / "data")
    make_data(parser.parse_args().output_dir)
