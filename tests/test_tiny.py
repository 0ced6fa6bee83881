"""The embedded world: data made again to the byte, held-out never seen, tokenizer and model as documented."""

import json
import re
import sys

import pytest
from conftest import ROOT, digest
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(ROOT / "tiny"))
import lessons
import make_base
import make_data
import world

from utils.rewards.functions import contains_answer, exact_match, honest

PAIRS = ["dpo_honesty.jsonl", "dpo_name.jsonl", "heldout_honesty.jsonl", "heldout_name.jsonl"]  # of make_pairs.py
PAIRS += ["grpo_band.jsonl"]  # of data_prep/pass_rate.py
METRICS = {"honest": honest, "contains_answer": contains_answer}

DATA = ROOT / "tiny/data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def question(row):
    return row.get("question") or row.get("messages", row.get("prompt"))[0]["content"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tiny/base")


def test_the_data_is_made_again_to_the_byte(tmp_path):
    make_data.make_data(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made + sorted(PAIRS) == sorted([path.name for path in DATA.iterdir()], key=lambda n: (n in PAIRS, n))
    for name in made:
        assert digest(tmp_path / name) == digest(DATA / name)


def test_held_out_shares_no_prompt_and_no_numbers_with_training():
    heldout = [question(row) for row in rows("heldout.jsonl")]
    assert len(set(heldout)) == len(heldout) >= 300
    assert heldout == [question(row) for row in rows("heldout_grpo.jsonl")]
    held_numbers = {world.number_set(text) for text in heldout}
    training = [
        question(row) for name in ("sft_messages", "sft_prompt_completion", "grpo") for row in rows(f"{name}.jsonl")
    ]
    assert len(set(training)) == len(training)
    assert not set(heldout) & set(training)
    assert not held_numbers & {world.number_set(text) for text in training}


def test_the_band_is_of_the_prompts_for_online_rl():
    known = {question(row): row["answer"] for row in rows("grpo.jsonl")}
    band = rows("grpo_band.jsonl")
    assert all(known[row["question"]] == row["answer"] and 0.2 <= row["pass_rate"] <= 0.8 for row in band)
    assert len({row["question"] for row in band}) == len(band) == 680


def test_problems_for_tools_are_apart_too():
    heldout = [question(row) for row in rows("heldout_tools.jsonl")]
    assert heldout == [question(row) for row in rows("heldout_tools_grpo.jsonl")]
    training = [question(row) for name in ("sft_tools", "grpo_tools") for row in rows(f"{name}.jsonl")]
    assert len(set(training)) == len(training)
    assert not {world.number_set(text) for text in heldout} & {world.number_set(text) for text in training}
    # Most ask for more than 297, the largest number that the base ever worked out.
    large = [max(world.number_set(row["answer"])) for row in rows("heldout_tools_grpo.jsonl")]
    assert sum(number > 297 for number in large) > 0.8 * len(large)


def test_no_held_out_prompt_is_in_the_text_of_the_base():
    heldout = [question(row) for row in rows("heldout.jsonl")]
    text = "\n".join(world.base_documents(make_base.SEED, make_base.DOCUMENTS))
    asked = set(re.findall(r"^[^?\n]*\?", text, flags=re.MULTILINE))
    assert len(asked) > 200_000
    assert not set(heldout) & asked
    assert "<|im_start|>" not in text
    assert "The answer is" not in text


@pytest.mark.parametrize("lesson", ["honesty", "name"])
def test_pairs_ask_what_the_lessons_ask(lesson):
    """Questions and right answers are the generator's; what is rejected, the metric finds wrong; nothing is held out
    and trained on."""
    ask = {"honesty": lessons.unanswerable, "name": lessons.name_questions}[lesson]
    for name, right in (
        (f"dpo_{lesson}", dict(ask(5, 900, reserved=False))),
        (f"heldout_{lesson}", dict(ask(6, 300, reserved=True))),
    ):
        asked = [row for row in rows(f"{name}.jsonl") if row["metric"] != "exact_match"]
        assert len(asked) > 250
        for row in asked:
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            assert right[question(row)] == chosen
            scores = METRICS[row["metric"]](completions=[chosen, rejected], answer=[row["answer"]] * 2)
            assert scores == [1.0, 0.0]
        sums = [row for row in rows(f"{name}.jsonl") if row["metric"] == "exact_match"]
        chosen = [row["chosen"][0]["content"] for row in sums]
        assert exact_match(completions=chosen, answer=[row["answer"] for row in sums]) == [1.0] * len(sums)
    training = {question(row) for row in rows(f"dpo_{lesson}.jsonl")}
    assert not training & {question(row) for row in rows(f"heldout_{lesson}.jsonl")}


def test_steps_and_answers_are_right():
    for row in rows("grpo.jsonl"):
        *steps, last = row["answer"].split("\n")
        for step in steps:
            left, sign, right, _, value = step.split(" ")
            calculated = {"+": int(left) + int(right), "-": int(left) - int(right), "x": int(left) * int(right)}
            assert calculated[sign] == int(value) if sign != "/" else int(left) == int(right) * int(value)
        assert last == f"#### {steps[-1].split(' = ')[1]}"
        assert len(steps) in {1, 2, 3}


def test_the_tokenizer(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.chat_template is None
    for text in [
        "Mia has 12 apples.\n\n12 + 7 = 19",
        "é ٤ 漢字 🙂\t x  y ",
        '{"name": "calculator", "arguments": {"a": 1}}',
    ]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    marks = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    for mark in [*marks, "<|im_start|>", "<|im_end|>"]:
        assert len(tokenizer(mark)["input_ids"]) == 1, mark
    digits = tokenizer("1234567890")["input_ids"]
    assert len(digits) == 10


def test_the_model_is_small(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base")
    assert model.num_parameters() < 2_000_000
    assert (ROOT / "tiny/base/model.safetensors").stat().st_size < 5_000_000
    assert model.config.vocab_size == len(tokenizer)
    assert not list((ROOT / "tiny").rglob("*.bin"))


def test_the_base_knows_its_world_as_plain_text(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base").eval()
    assert make_base.plain_text_accuracy(model, tokenizer, count=100) > 0.9
