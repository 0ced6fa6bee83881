"""Rows: loaded, checked by row number, split by a hash of the prompt."""

import json

import pytest
from conftest import recipe
from datasets import Dataset

from sft.train import FORMATS, to_training_row
from utils.config import UserError
from utils.data import fingerprint, is_held_out, prompt_key, split_prompt
from utils.data.rows import row_fault
from utils.data.splits import check_lines, mix

USER, ASSISTANT = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def conversation(n):
    return {
        "messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]
    }


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [USER, ASSISTANT]}, None),
        ({"prompt": [USER], "completion": [ASSISTANT]}, None),
        ({"prompt": "1 + 1?", "completion": "2"}, None),
        ({"text": "1 + 1 = 2"}, None),
        ({"prompt": "1 + 1?"}, "a row needs"),
        ({"inputs": "x"}, "has the columns inputs"),
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is empty"),
        ({"text": " \n"}, "text is empty"),
        ({"prompt": "x", "completion": ""}, "completion is empty"),
        (
            {"messages": [USER, {"role": "asistant", "content": "2"}]},
            "has the role 'asistant'; did you mean assistant?",
        ),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages has an empty assistant message"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"x": 1}]}]}, None),
        ({"messages": [USER]}, "no assistant message"),
        ({"prompt": [USER], "completion": "2"}, "prompt and completion must all be texts, or all be lists"),
        ({"messages": ["hi"]}, "holds 'hi', which is not a message"),
        ({"prompt": "1 + 1 = ", "completion": 2.0}, "completion is 2.0; write a text"),
        ({"prompt": [USER], "completion": [USER]}, "no assistant message"),
    ],
)
def test_faults_of_rows(row, fault):
    found = row_fault(row, FORMATS)
    assert (found is None) if fault is None else fault in found


def test_bad_rows_stop_the_run_and_are_named(tmp_path):
    rows = [conversation(n) for n in range(20)]
    rows[6]["messages"][1]["role"] = "asistant"
    rows[11]["messages"][1]["content"] = ""
    done = recipe(dataset_name=write(tmp_path / "rows.jsonl", rows), output_dir=tmp_path / "out")
    assert done.returncode == 2
    assert "2 of 20 rows cannot be trained on" in done.stderr
    assert "rows.jsonl, row 7: messages has the role 'asistant'; did you mean assistant?" in done.stderr
    assert "rows.jsonl, row 12: messages has an empty assistant message" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"\n\n[1]\n')
    with pytest.raises(UserError) as error:
        check_lines(path)
    assert "rows.jsonl:2: is not JSON" in str(error.value)
    assert "rows.jsonl:4: is not a JSON object" in str(error.value)
    done = recipe(dataset_name=path, output_dir=tmp_path / "out")
    assert done.returncode == 2
    assert "rows.jsonl:2: is not JSON" in done.stderr


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_told(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    done = recipe(dataset_name=tmp_path / "rows.jsonl", output_dir=tmp_path / "out")
    assert done.returncode == 2
    assert "has no rows" in done.stderr


def test_a_missing_file_is_told(tmp_path):
    done = recipe(dataset_name=tmp_path / "nowhere.jsonl", output_dir=tmp_path / "out")
    assert done.returncode == 2
    assert "there is no file" in done.stderr


def test_the_split_does_not_depend_on_order_or_form():
    rows = [conversation(n) for n in range(2000)]
    held = {prompt_key(row) for row in rows if is_held_out(prompt_key(row), 0.1)}
    assert 150 < len(held) < 250
    assert held == {prompt_key(row) for row in reversed(rows) if is_held_out(prompt_key(row), 0.1)}
    row = conversation(5)
    as_pair = {"prompt": row["messages"][:1], "completion": row["messages"][1:]}
    shouted = {"prompt": [{"role": "user", "content": "  WHAT is 5 + 1? "}], "completion": row["messages"][1:]}
    assert prompt_key(row) == prompt_key(as_pair) == prompt_key(shouted)


def test_a_larger_share_keeps_the_smaller_one():
    rows = [conversation(n) for n in range(500)]
    small = [n for n, row in enumerate(rows) if is_held_out(prompt_key(row), 0.05)]
    large = [n for n, row in enumerate(rows) if is_held_out(prompt_key(row), 0.2)]
    assert set(small) < set(large)


def test_prompt_and_reference():
    assert split_prompt({"messages": [USER, ASSISTANT, USER, ASSISTANT]}) == ([USER, ASSISTANT, USER], "2")
    assert split_prompt({"prompt": "a", "completion": "b"}) == ("a", "b")
    assert split_prompt({"text": "a"}) == (None, "a")


def test_mixture_shares_are_a_seeded_sample():
    first = Dataset.from_list([{"text": f"a{n}"} for n in range(100)])
    second = Dataset.from_list([{"text": f"b{n}"} for n in range(1000)])
    mixed = mix([first, second], [0.25, 0.75], seed=1)["text"]
    assert len(mixed) == 400
    assert sum(text.startswith("a") for text in mixed) == 100
    taken = [text for text in mixed if text.startswith("b")]
    assert taken != [f"b{n}" for n in range(300)]  # a sample, not the first rows
    assert list(mixed) == list(mix([first, second], [0.25, 0.75], seed=1)["text"])
    assert list(mixed) != list(mix([first, second], [0.25, 0.75], seed=2)["text"])
    assert len(mix([first, second], [None, None], seed=1)) == 1100


def test_mixture_faults():
    rows = Dataset.from_list([{"text": "a"}])
    with pytest.raises(UserError, match="fraction"):
        mix([rows, rows], [0.5, None], seed=1)
    with pytest.raises(UserError, match="different columns"):
        mix([rows, Dataset.from_list([{"messages": [USER]}])], [None, None], seed=1)


def test_fingerprint_follows_content():
    rows = [conversation(n) for n in range(10)]
    assert fingerprint(Dataset.from_list(rows)) == fingerprint(Dataset.from_list(rows))
    assert fingerprint(Dataset.from_list(rows)) != fingerprint(Dataset.from_list(rows[::-1]))


def test_public_column_sets_become_training_rows():
    """The documented columns of public sets that the README names."""
    gsm8k = {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
    capybara = {"source": "x", "messages": [USER, ASSISTANT], "num_turns": 1}
    assert row_fault(to_training_row(gsm8k), FORMATS) is None
    assert to_training_row(capybara) == {"messages": [USER, ASSISTANT]}
    no_robots = {"prompt": "1 + 1?", "prompt_id": "x", "messages": [USER, ASSISTANT], "category": "y"}
    assert to_training_row(no_robots) == {"messages": [USER, ASSISTANT]}
    assert row_fault(to_training_row({"instruction": "x", "output": "y"}), FORMATS) is not None


@pytest.mark.parametrize("suffix", ["json", "parquet", "csv"])
def test_other_file_formats(tmp_path, suffix):
    rows = Dataset.from_list([{"prompt": f"{n} + 1 =", "completion": f" The answer is {n + 1}."} for n in range(40)])
    path = tmp_path / f"rows.{suffix}"
    getattr(rows, f"to_{suffix}")(str(path))
    done = recipe("--check", dataset_name=path, heldout_fraction=0.2, heldout_name="null", assistant_only_loss="false")
    assert done.returncode == 0, done.stderr
    assert "to train on" in done.stdout
