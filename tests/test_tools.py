"""Tools: what a model may call, what comes of bad calls, and that our turns are TRL's, token for token."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from stage import tasks, user
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer

from utils.config import UserError
from utils.generation import Toolbox, call_tools
from utils.generation import dialogues as generation
from utils.generation.tools import calculator
from utils.model import read_template, read_tool_calls

TRAIN = ()
STANDS = "accept: [equal_rewards, clipped_completions, gold_not_best, template_mismatch]"


@pytest.mark.parametrize(
    ("expression", "result"),
    [("12 + 7", "19"), ("3124 x 2", "6248"), ("7950 / 5", "1590"), ("1 / 3", "0.3333333333"), ("(2 + 3) * -4", "-20"),
     ("0.1 + 0.2", "0.3"), ("9999 × 9999", "99980001"), ("10 ÷ 4", "2.5"), (" 5 ", "5")],
)  # fmt: skip
def test_calculator(expression, result):
    assert calculator(expression) == result


@pytest.mark.parametrize(
    "expression",
    ["", "12 +", "2 ** 9999999", "9" * 300, "__import__('os').system('true')", "1 / 0", "a + 1", "True + 1", "f(2)",
     "[1] * 9", "1 if 1 else 2", "(" * 190, "1e400 + 1", "'a'", "1j", "٢ + ٣ +", "\0"],
)  # fmt: skip
def test_calculator_refuses(expression):
    with pytest.raises(ValueError):
        calculator(expression)


def call(name="calculator", **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_errors_go_to_the_model():
    def broken(text: str) -> str:
        raise KeyError(text)

    async def later(text: str) -> str:
        return text.upper()

    calls = [call(expression="1 / 0"), call("no_such_tool"), call(wrong="name"), call("broken", text="x"),
             call("later", text="done")]  # fmt: skip
    said = [message["content"] for message in call_tools({"tool_calls": calls}, [calculator, broken, later])]
    assert said[0] == "{'error': 'division by 0'}"
    assert said[1] == "{'error': 'Tool no_such_tool not found.'}"
    assert "unexpected keyword" in said[2]
    assert said[3] == "{'error': \"'x'\"}"
    assert said[4] == "DONE"


class Counting:
    """An environment: counts to a number of its own, and knows when it is right."""

    def reset(self, start: int = 0, **row) -> str:
        self.total = start
        return f" Start at {start}."

    def add(self, number: int) -> str:
        """Add a number.

        Args:
            number: The number
        """
        self.total += number
        return str(self.total)

    def get_reward(self) -> float:
        return float(self.total == 9)

    def _hidden(self):
        raise AssertionError


def test_an_environment_is_begun_for_each_row():
    box = Toolbox([calculator], Counting)
    (first, tools, one), (_, _, other) = (box.open({"start": n}, [user("Count.")]) for n in (4, 5))
    assert first == [user("Count. Start at 4.")]
    assert [tool.__name__ for tool in tools] == ["calculator", "add"]
    call_tools({"tool_calls": [call("add", number=5)]}, tools)
    assert (one.total, other.total) == (9, 5)
    assert one.get_reward() == 1.0
    several = Toolbox([], {"count": Counting})
    assert several.open({"environment": "count", "start": 2}, [user("Count.")])[2].total == 2


@pytest.fixture(scope="module")
def tokenizer():
    found = AutoTokenizer.from_pretrained(ROOT / "tiny/base")
    found.chat_template = read_template("qwen3_training")
    read_tool_calls(found)
    return found


def turn(tokenizer, text):
    return tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]


ONE = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "EXPRESSION"}}\n</tool_call>'
SCRIPTS = {  # what a model says, turn by turn
    "one call": [ONE.replace("EXPRESSION", "12 + 7"), "The answer is 19."],
    "an error, and again": [
        ONE.replace("EXPRESSION", "12 +"),
        ONE.replace("EXPRESSION", "12 + 7"),
        "The answer is 19.",
    ],
    "two calls at once": [ONE.replace("EXPRESSION", "1 + 1") + "\n" + ONE.replace("EXPRESSION", "2 + 2"), "Done."],
    "no call": ["The answer is 19."],
    "broken JSON": ['<tool_call>\n{"name": "calculator", "arg\n</tool_call>'],
    "no such tool": [ONE.replace("calculator", "abacus"), "The answer is 1."],
    "thinks first": ["<think>\nHm.\n</think>\n\n" + ONE.replace("EXPRESSION", "5 x 5"), "The answer is 25."],
    "calls for ever": [ONE.replace("EXPRESSION", "1 + 1")] * 9,
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(("limit", "turns"), [(220, None), (70, None), (220, 1)])
def test_turns_are_those_of_trl(tokenizer, monkeypatch, tmp_path, name, limit, turns):
    """The same words of the model give the same tokens, the same mask and the same messages as in GRPOTrainer."""
    said = [turn(tokenizer, text) for text in SCRIPTS[name]]
    prompt = [user("What is 12 + 7?")]

    def script():
        words = iter(said)
        return lambda prompts: [next(words)[:limit] for _ in prompts]

    model = AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base")
    args = GRPOConfig(
        str(tmp_path), max_completion_length=limit, max_tool_calling_iterations=turns, num_generations=2,
        per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to="none",
    )  # fmt: skip
    from datasets import Dataset

    trainer = GRPOTrainer(
        model, lambda completions, **_: [0.0] * len(completions), args,
        Dataset.from_list([{"prompt": prompt}] * 2), processing_class=tokenizer, tools=[calculator],
    )  # fmt: skip
    theirs = script()
    trainer._sync_tool_dicts, trainer._async_tool_dicts = [{"calculator": calculator}], [{}]
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda ids, *a, **k: (theirs(ids), None))
    prompt_ids, completion_ids, mask, completions, *_ = trainer._generate([prompt])

    ours = script()
    monkeypatch.setattr(generation, "generate", lambda model, tokenizer, prompts, *a: ours(prompts))
    config = SimpleNamespace(
        method="grpo", training=args, recipe=SimpleNamespace(eval_max_new_tokens=limit), findings=None
    )
    (dialogue,) = generation.answer_prompts(
        model, tokenizer, config, [(0, {"prompt": prompt, "answer": "19"})], Toolbox([calculator])
    )
    assert dialogue.prompt_ids == prompt_ids[0]
    assert dialogue.ids == completion_ids[0]
    assert dialogue.own == [bool(kept) for kept in mask[0]]
    assert dialogue.messages == completions[0]


def test_templates_that_hold_no_tools_are_refused(stage):
    for template, said in (
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "the chat template shows no tool calls"),
        (read_template("qwen3") + "{# mine #}", "TRL cannot read tool calls"),
    ):
        path = stage.write("mine.jinja", template)
        stage.run(f"{STANDS}\nchat_template: {path}\ntools: [calculator]", method="grpo").tells(f"tools: {said}")
    stage.run(f"{STANDS}\ntools: [abacus]", method="grpo").tells(
        "tools: abacus is not a tool of utils/generation/tools.py"
    )
    with pytest.raises(UserError):
        read_template("no_such_template")


def test_online_rl_with_tools_and_an_environment(stage):
    """A whole run: the columns of the rows reach reset, the environment's own reward is a column, tools are kept."""
    stage.module("my_game", (ROOT / "tests/test_tools.py").read_text().split("class Counting:")[0].split('"""')[0]
                 + "class Counting:" + (ROOT / "tests/test_tools.py").read_text().split("class Counting:")[1]
                 .split("def test_an_environment")[0])  # fmt: skip
    rows = [row | {"start": n} for n, row in enumerate(tasks(24))]
    text = f"{STANDS}\nenvironment_factory: my_game.Counting\ntools: [calculator]\nreward_funcs: [exact_match]\n"
    text += "heldout_fraction: 0.4\neval_metrics: [exact_match]\nmax_completion_length: 24\nmax_steps: 2"
    done = stage.run(text, rows=rows, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    found = json.loads((stage.folder / "out/metrics.json").read_text())["after"]
    assert 0 <= found["Counting"]["value"] <= 1
    import pandas

    table = pandas.read_parquet(stage.folder / "out/completions/step-000002.parquet")
    assert {"exact_match", "Counting"} <= set(table.columns)
    assert table["prompt"].str.contains(r"Start at \d+\.").all()
    right = table["prompt"].str.contains(r"Start at 9\.")  # the base calls nothing, so nothing is added
    assert (table["Counting"] == right.astype(float)).all()
    stage.run(f"{STANDS}\nenvironment_factory: my_game.Nothing", method="grpo").tells(
        "environment_factory: my_game.Nothing cannot be imported"
    )


def test_tools_and_environments_that_cannot_be_used_are_told(stage):
    stage.module("my_tools", "class Mute:\n    def act(self) -> str:\n        'Act.'\n\n\n"
                 "class Needs(Mute):\n    def __init__(self, key): ...\n\n\n"
                 "class Room:\n    def reset(self, **row): ...\n    def act(self, where): ...\n\n\n"
                 "def bare(text): ...\n")  # fmt: skip
    for text, said in (
        ("tools: [my_tools.bare]", "tools: bare cannot be shown to the model"),
        ("environment_factory: my_tools.Mute", "my_tools.Mute has no method reset(**row)"),
        ("environment_factory: my_tools.Needs", "my_tools.Needs cannot be built without arguments"),
        ("environment_factory: my_tools.Room", "tools: act cannot be shown to the model"),
    ):
        done = stage.run(f"{STANDS}\n{text}", method="grpo")
        assert done.code == 2
        done.tells(said)
    stage.module("my_env", "class Quiet:\n    def reset(self, **row): ...\n")
    done = stage.run(f"{STANDS}\nenvironment_factory: {{a: my_env.Quiet}}", method="grpo")
    done.tells("a row's column `environment` is None, and there are: a")
    texts = [{"prompt": "1 + 1 =", "answer": "2"}] * 8
    stage.run(f"{STANDS}\ntools: [calculator]", rows=texts, method="grpo").tells("tools: the rows are plain texts")


def test_the_schema_of_the_tool_rows_is_the_tools_own():
    rows = [json.loads(line) for line in (ROOT / "tiny/data/sft_tools.jsonl").read_text().splitlines()]
    assert {row["tools"] for row in rows} == {json.dumps([get_json_schema(calculator)])}
    for row in rows[:50]:
        for message, answered in zip(row["messages"], row["messages"][1:], strict=False):
            if message.get("tool_calls"):
                assert calculator(**message["tool_calls"][0]["function"]["arguments"]) == answered["content"]


def test_generation_keeps_the_order_of_the_prompts(tokenizer):
    """Batches are made of prompts of like length; answers come back in the order asked, as each alone would."""
    model = AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base").eval()
    prompts = [tokenizer(text)["input_ids"] for text in ("12 + 7 =", "Mia has 3 apples. She buys 4", "5 x 5 =")]
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=[tokenizer.eos_token_id],
                                pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    together = generation.generate(model, tokenizer, prompts, settings, size=2)
    alone = [generation.generate(model, tokenizer, [ids], settings, size=1)[0] for ids in prompts]
    assert together == alone
    assert len({tuple(ids) for ids in together}) == 3
    assert torch.is_grad_enabled()
