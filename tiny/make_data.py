"""Make the tiny world's data (`tiny/data/*.jsonl`): the same bytes every time, on every machine.

    python tiny/make_data.py

Held-out and training files never share a prompt, nor a prompt's set of numbers (see world.py).
"""

import argparse
import json
import sys
from itertools import starmap
from pathlib import Path

from transformers.utils import get_json_schema

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from world import Problem, make_problems

from utils.generation.tools import calculator

HELDOUT, SFT, PROMPT_COMPLETION, GRPO = 400, 6000, 1000, 4000
LARGE, SFT_TOOLS, GRPO_TOOLS = 999, 2000, 1500  # numbers that the model cannot reckon with, but can hand to a tool
TOOLS = json.dumps([get_json_schema(calculator)])


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


def large_problems(seed: int, count: int, *, reserved: bool) -> list[Problem]:
    """Problems of one or two steps with large numbers."""
    problems = make_problems(seed, 2 * count, reserved=reserved, scale=LARGE)
    return [problem for problem in problems if len(problem.steps) <= 2][:count]


def mixed_row(number: int, problem: Problem) -> dict:
    """As people's dialogues are: two of five reckon in their heads, though there is a tool."""
    return tools_row(problem) if number % 5 < 3 else messages_row(problem) | {"tools": TOOLS}


def tools_row(problem: Problem) -> dict:
    """Each step is a call of the calculator."""
    turns = []
    for step in problem.steps:
        expression, result = step.split(" = ")
        function = {"name": "calculator", "arguments": {"expression": expression}}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "name": "calculator", "content": result},
        ]
    answer = {"role": "assistant", "content": f"The answer is {problem.answer}."}
    return {"messages": [*prompt(problem), *turns, answer], "tools": TOOLS}


def prompt(problem: Problem) -> list[dict]:
    return [{"role": "user", "content": problem.question}]


def make_data(folder: Path) -> None:
    heldout = make_problems(seed=1, count=HELDOUT, reserved=True)
    training = make_problems(seed=2, count=SFT + PROMPT_COMPLETION + GRPO, reserved=False)
    heldout_large = large_problems(seed=3, count=HELDOUT, reserved=True)
    large = large_problems(seed=4, count=SFT_TOOLS + GRPO_TOOLS, reserved=False)
    files = {
        "heldout.jsonl": map(messages_row, heldout),
        "heldout_grpo.jsonl": map(gsm8k_row, heldout),
        "sft_messages.jsonl": map(messages_row, training[:SFT]),
        "sft_prompt_completion.jsonl": map(prompt_completion_row, training[SFT : SFT + PROMPT_COMPLETION]),
        "grpo.jsonl": map(gsm8k_row, training[SFT + PROMPT_COMPLETION :]),
        "heldout_tools.jsonl": map(tools_row, heldout_large),
        "heldout_tools_grpo.jsonl": map(gsm8k_row, heldout_large),
        "sft_tools.jsonl": starmap(mixed_row, enumerate(large[:SFT_TOOLS])),
        "grpo_tools.jsonl": map(gsm8k_row, large[SFT_TOOLS:]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent / "data")
    make_data(parser.parse_args().output_dir)
