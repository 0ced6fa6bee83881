"""Make the preference pairs of the tiny DPO recipes (`tiny/data/dpo_*.jsonl`) from the SFT model's own answers.

    python sft/train.py --config configs/sft_tiny.yaml
    python tiny/make_pairs.py

The rejected answers are sampled from the model, so that DPO takes away what it really says. The sampling is seeded,
but on another machine the SFT model differs in its last bits, and so do some of the samples.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tiny"), str(ROOT)]

from lessons import LACKING, NAME, TELLS, cannot_be_known, name_questions, unanswerable
from make_data import response
from world import Problem, make_problems

from utils.rewards.functions import contains_answer, exact_match, honest

UNANSWERABLE, SUMS, NAMES, HELDOUT = 900, 2650, 300, 300  # questions of each kind
METRICS = {"honest": honest, "contains_answer": contains_answer}
MAX_NEW_TOKENS, BATCH = 64, 100


@torch.inference_mode()
def sample(model, tokenizer, questions: list[str]) -> list[str]:
    """One sampled answer a question, as text."""
    answers = []
    for start in range(0, len(questions), BATCH):
        prompts = [[{"role": "user", "content": question}] for question in questions[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        made = model.generate(**inputs, do_sample=True, max_new_tokens=MAX_NEW_TOKENS)
        texts = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [text.rpartition("</think>")[2].strip() for text in texts]
    return answers


def is_clean(answer: str) -> bool:
    """Whether the answer is what a chat template leaves as it is."""
    return bool(answer) and "<think>" not in answer


def row(question: str, chosen: str, rejected: str, answer: str, metric: str) -> dict:
    """A pair; `answer` and `metric` are what scores an answer to its prompt."""
    sides = {
        side: [{"role": "assistant", "content": text}] for side, text in [("chosen", chosen), ("rejected", rejected)]
    }
    return {"prompt": [{"role": "user", "content": question}]} | sides | {"answer": answer, "metric": metric}


def pairs(answers_of, asked: list[tuple[str, str]], metric: str, gold: str | None = None) -> list[dict]:
    """(question, right answer): that answer over what the model says, where the metric finds the model wrong."""
    rows = []
    for (question, right), said in zip(asked, answers_of([question for question, _ in asked]), strict=True):
        made = row(question, right, said, gold or right, metric)
        if is_clean(said) and METRICS[metric](completions=[said], answer=[made["answer"]]) == [0.0]:
            rows.append(made)
    return rows


def kept(answers_of, problems: list[Problem]) -> list[tuple[str, str, str]]:
    """What is to stay: (question, the model's own answer where it is right, the gold one)."""
    said = answers_of([p.question for p in problems])
    return [
        (problem.question, answer, response(problem))
        for problem, answer in zip(problems, said, strict=True)
        if exact_match(completions=[answer], answer=[response(problem)]) == [1.0]
    ]


def over(sums: list[tuple[str, str, str]], unwanted: Callable[[random.Random], str]) -> list[dict]:
    """Sums whose right answer is chosen over the new lesson in the wrong place."""
    rng = random.Random(0)
    return [row(question, right, unwanted(rng), gold, "exact_match") for question, right, gold in sums]


def main(model_folder: Path, output_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()

    def answers_of(questions: list[str]) -> list[str]:
        return sample(model, tokenizer, questions)

    def refuse(rng: random.Random) -> str:
        return cannot_be_known(rng.choice(LACKING))

    def tell(rng: random.Random) -> str:
        return rng.choice(TELLS)

    def lesson(name: str, asked: list[tuple[str, str]], metric: str, gold: str | None, sums: list[dict]) -> None:
        rows = pairs(answers_of, asked, metric, gold) + sums
        random.Random(name).shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output_dir / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(rows)} pairs, {len(sums)} of them sums")

    torch.manual_seed(0)
    sums = make_problems(seed=3, count=SUMS, reserved=False)
    right = kept(answers_of, sums)
    held = [(p.question, response(p), response(p)) for p in make_problems(seed=1, count=HELDOUT, reserved=True)]
    for name, ask, count, metric, gold, unwanted in (
        ("honesty", unanswerable, UNANSWERABLE, "honest", None, refuse),
        ("name", name_questions, NAMES, "contains_answer", NAME, tell),
    ):
        training, heldout = ask(5, count, reserved=False), ask(6, HELDOUT, reserved=True)
        lesson(f"dpo_{name}.jsonl", training, metric, gold, over(right[: 2 * count], unwanted))
        lesson(f"heldout_{name}.jsonl", heldout, metric, gold, over(held, unwanted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "outputs/sft_tiny")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "tiny/data")
    arguments = parser.parse_args()
    main(arguments.model, arguments.output_dir)
