"""A user's own code: its errors keep their place, its rows are never stale, its environments are few."""

import importlib
import sys

import pytest
from stage import pairs, sums, tasks
from trl import DPOConfig, SFTConfig

from dpo.config import DPORecipe
from dpo.train import to_training_row as dpo_row
from utils.config import UserError, as_user_error, parse_config, read_config
from utils.data import load_splits

FORMATS = [("messages",)]
STANDS = "accept: [equal_rewards, clipped_completions, constant_reward, gold_not_best]"


def splits(stage, to_training_row):
    source = read_config("", ["--config", str(stage.yaml("sft", ""))])
    return load_splits(parse_config(source, SFTConfig), to_training_row, FORMATS, has_template=True)


def test_the_place_of_an_error_in_to_training_row(stage):
    stage.write("rows.jsonl", sums(3))
    stage.module("my_rows", "def to_row(row):\n    question = row['nowhere']\n    return {'prompt': question}\n")
    with pytest.raises(UserError, match=r"rows.jsonl, row 1: .*KeyError: 'nowhere' at my_rows.py:2, in to_row$"):
        splits(stage, importlib.import_module("my_rows").to_row)


def test_rows_are_not_stale_when_another_file_changes(stage):
    """The function itself stays the same; what it calls is changed."""
    stage.write("rows.jsonl", sums(8))
    code = "import my_helper\ndef to_row(row):\n    return my_helper.change(row)\n"
    seen = []
    for answer in ("one", "two"):
        messages = f"[row['messages'][0], {{'role': 'assistant', 'content': '{answer}'}}]"
        stage.module("my_helper", f"def change(row):\n    return {{'messages': {messages}}}\n")
        stage.module("my_rows", code)
        train, _ = splits(stage, importlib.import_module("my_rows").to_row)
        assert {row["messages"][1]["content"] for row in train} == {answer}
        seen.append(train._fingerprint)
    assert seen[0] != seen[1]  # or what TRL makes of the rows would be stale


def test_the_place_of_an_error_in_a_reward(stage):
    """One that fails in the preflight, and one that fails only while training."""
    stage.module("my_rewards", "def score(completions, **kwargs):\n    return [c[7] for c in completions]\n")
    done = stage.run(f"reward_funcs: [my_rewards.score]\n{STANDS}", method="grpo")
    done.tells("bad_reward: score fails on an empty answer", "IndexError: list index out of range at my_rewards.py:2")
    text = "import random\ndef score(completions, trainer_state=None, **kwargs):\n"
    text += "    if trainer_state is not None and trainer_state.global_step == 2:\n        raise OSError('gone')\n"
    text += "    return [random.random() for c in completions]\n"
    stage.module("my_rewards", text)
    rows = f"reward_funcs: [my_rewards.score]\n{STANDS}\nsave_strategy: steps\nsave_steps: 1"
    done = stage.run(rows, rows=tasks(24), method="grpo", flags=())
    assert done.code == 2
    done.tells("reward_funcs: my_rewards.score failed while training", "OSError: gone at my_rewards.py:4, in score")
    assert (stage.folder / "out/checkpoint-2/trainer_state.json").is_file()


def test_all_of_a_traceback_is_printed_on_demand(stage):
    stage.module("my_rewards", "def score(completions, **kwargs):\n    return 1 / 0\n")
    held = stage.write("held.jsonl", sums(2, start=90))
    text = f"eval_metrics: [my_rewards.score]\nheldout_name: {held}"
    stage.run(text).tells("ZeroDivisionError: division by zero at my_rewards.py:2, in score")
    done = stage.run(text, flags=("--check", "--traceback"))
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.said
    assert "    return 1 / 0" in done.said


def test_a_tool_that_raises_is_reported_once(stage):
    from utils.generation import call_tools

    stage.module("my_tools", "def search(query):\n    return undefined + query\n")
    call = {"tool_calls": [{"function": {"name": "search", "arguments": {"query": "x"}}}] * 3}
    answers = call_tools(call, [importlib.import_module("my_tools").search])
    assert len(answers) == 3
    output = stage.capfd.readouterr().out
    assert output.count("NameError: name 'undefined' is not defined at my_tools.py:2, in search") == 1


def test_a_bug_within_a_library_is_not_called_the_users():
    with (
        pytest.raises(UserError, match="SFTTrainer refuses this config or these rows: no"),
        as_user_error("SFTTrainer"),
    ):
        raise ValueError("no")
    with pytest.raises(TypeError), as_user_error("SFTTrainer"):
        len(5)


def test_few_environments_are_built(stage):
    """One to look at, one that TRL looks at, and one for each rollout that is tried, on however many prompts."""
    stage.module(
        "my_env",
        "class Room:\n    built = 0\n    def __init__(self):\n        Room.built += 1\n"
        "    def reset(self, **row):\n        return ' Go.'\n"
        '    def act(self, word: str) -> str:\n        """Act.\n\n        Args:\n            word: What.\n\n'
        '        Returns:\n            What came.\n        """\n        return word\n',
    )
    text = f"{STANDS}\nchat_template: qwen3_training\nenvironment_factory: my_env.Room\nnum_generations: 4"
    done = stage.run(text, rows=tasks(300), method="grpo")
    assert done.code == 0, done.said
    tried, probed = 8 * 4, 8
    assert sys.modules["my_env"].Room.built <= 2 + tried + probed


@pytest.mark.parametrize("order", [1, -1])
def test_rows_may_lack_optional_columns(stage, order):
    """Whichever row comes first: what only some rows have is kept, and is null in the others."""
    rows = [pairs(8)[i] | ({"score_chosen": 2.0, "score_rejected": 1.0} if i % 2 else {}) for i in range(8)][::order]
    stage.write("rows.jsonl", rows)
    source = read_config("", ["--config", str(stage.yaml("dpo", ""))])
    config = parse_config(source, DPOConfig, DPORecipe)
    train, _ = load_splits(config, dpo_row, [("chosen", "rejected")], has_template=True)
    assert sorted(train["score_chosen"], key=str) == [2.0] * 4 + [None] * 4
    assert "answer" not in train.column_names


@pytest.mark.parametrize("order", [1, -1])
def test_a_bad_row_is_named_wherever_it_stands(stage, order):
    stage.write("rows.jsonl", [{"id": n, **row} for n, row in enumerate(sums(3))][::order])
    stage.module(
        "my_rows",
        "from utils.data import BadRow\ndef to_row(row):\n    if row['id'] == 0:\n"
        "        raise BadRow('has no question')\n    return {'messages': row['messages'], 'more': 1}\n",
    )
    with pytest.raises(UserError, match=f"row {1 if order == 1 else 3}: has no question"):
        splits(stage, importlib.import_module("my_rows").to_row)


def test_rows_in_different_formats_are_refused(stage):
    stage.write("rows.jsonl", [*sums(2), {"prompt": "1 + 1 =", "completion": " 2"}])
    source = read_config("", ["--config", str(stage.yaml("sft", ""))])
    with pytest.raises(UserError, match="they are in different formats"):
        load_splits(
            parse_config(source, SFTConfig),
            lambda row: {name: value for name, value in row.items() if value is not None},
            [("messages",), ("prompt", "completion")],
            has_template=True,
        )


def test_a_null_key_is_no_key(stage):
    from utils.config import earlier_state

    same = {"refusal": "No", "fix": "Undo it", "finished": True}
    assert earlier_state({"chat_template": None}, {}, **same) == "finished"
    with pytest.raises(UserError, match=r"seed: 1 -> \(not set\)"):
        earlier_state({"seed": 1}, {}, **same)
