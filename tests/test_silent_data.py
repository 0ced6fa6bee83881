"""Silent failures: rows that should not be trained on, and how rows are split."""

import json
import math
import random

import datasets
from silent_cases import PREVENTED, STOPS, TRAIN, WARNS, case, config_of, nothing
from stage import assistant, pairs, sums, user

from sft.train import FORMATS
from utils.data import load_splits


@case(
    "D1",
    "columns in an unknown format",
    "`KeyError: 'text'`",
    STOPS,
    "utils.data.splits.row_fault",
    without_it="KeyError: 'text'",
)
def test_unknown_columns(stage):
    done = stage.run("assistant_only_loss: false", rows=[{"instruction": "1 + 1?", "output": "2"}] * 3)
    done.tells("3 of 3 rows cannot be trained on", "rows.jsonl, row 1: has the columns instruction, output")
    done.tells("a row needs: messages; prompt and completion; text", "to_training_row")


@case(
    "D2",
    "empty `messages`, null content, an empty file",
    "`IndexError`, a template error, `StopIteration`",
    STOPS,
    "utils.data.splits.row_fault",
)
def test_empty_rows(stage):
    rows = sums(4)
    rows[1]["messages"][1]["content"] = None
    stage.run(rows=rows).tells("rows.jsonl, row 2: messages has an empty assistant message")
    rows[2]["messages"] = []
    stage.run(rows=rows).tells("row 3: messages is empty")
    stage.run(rows="").tells("rows.jsonl: has no rows")


@case(
    "D3",
    "a misspelt role, no assistant turn, empty text",
    "accepts them, and learns nothing or the wrong thing",
    STOPS,
    "utils.data.splits.row_fault",
)
def test_wrong_roles(stage):
    done = stage.run("assistant_only_loss: false", rows=[{"text": " "}])
    done.tells("row 1: text is empty", "Correct or remove them")
    rows = sums(6)
    rows[2]["messages"][1]["role"] = "asistant"
    rows[4]["messages"] = rows[4]["messages"][:1]
    done = stage.run(rows=rows)
    done.tells("row 3: messages has the role 'asistant'; did you mean assistant?", "row 5: messages has no assistant")


@case(
    "D11",
    "DPO: chosen equal to rejected, an empty side, prompts longer than `max_length`",
    "trains without a gradient; accepts it; drops the rows silently",
    STOPS,
    ("utils.data.splits.without_identical_pairs", lambda rows, *_: rows),
    "utils.data.splits.row_fault",
    "utils.preflight.shared.check_lengths",
    "dpo.checks.check_sides",
)
def test_broken_pairs(stage):
    rows = pairs(60)
    rows[6]["rejected"] = rows[6]["chosen"]
    stage.run(rows=rows, method="dpo").tells(
        "WARNING   identical_pairs: 1 of 60 pairs of rows.jsonl", "(rows 7)", "left out"
    )
    rows[8]["chosen"] = [assistant("")]
    stage.run(rows=rows, method="dpo").tells("row 9: chosen has an empty assistant message")
    long = pairs(60)
    for row in long[:40]:
        row["prompt"] = [user("word " * 300)]
    done = stage.run(rows=long, method="dpo")
    done.tells("dropped_rows: the trainer left out 40 of 60 rows: max_length = 256 leaves them nothing to learn")


@case(
    "D12",
    "DPO: a public data set where half of the pairs are identical",
    "trains on pairs without a gradient",
    STOPS,
    ("utils.data.splits.without_identical_pairs", lambda rows, *_: rows),
    "dpo.checks.check_sides",
)
def test_identical_half(stage):
    rows = pairs(24)
    for row in rows[::2]:
        row["rejected"] = row["chosen"]
    done = stage.run(rows=rows, method="dpo")
    done.tells(
        "stopped this run before its first step", "identical_pairs: 12 of 24 pairs of rows.jsonl have chosen equal"
    )
    done.tells("(rows 1, 3, 5, 7, 9, ...)", "accept: [identical_pairs]")
    assert done.code == 2


@case(
    "D13",
    "`test_split_size`",
    "splits without a seed: two processes get different test sets, and a resumed run a third one",
    PREVENTED,
    ("utils.data.splits.is_held_out", lambda key, share: random.random() < share),
    without_it="assert {",
)
def test_split_by_content(stage):
    stage.run("test_split_size: 0.1").tells("write heldout_fraction: 0.1, the split is made by a hash of the prompt")
    held = []
    for rows in (sums(40), sums(40)[::-1]):
        _, heldout = splits_of(stage, "heldout_fraction: 0.3", rows)
        held.append({json.dumps(row["messages"]) for row in heldout})
    assert held[0] == held[1]
    assert 0 < len(held[0]) < 40


@case(
    "D14",
    "`fraction` in a mixture",
    "keeps the first rows instead of a sample",
    PREVENTED,
    ("utils.data.splits.mix", lambda parts, shares, seed: parts[0].select(range(10))),
    without_it="assert 0 == 10",
)
def test_mixture_is_a_sample(stage):
    one, two = stage.write("one.jsonl", sums(40)), stage.write("two.jsonl", sums(10, start=100))
    train, _ = splits_of(stage, f"datasets: [{{path: {one}, fraction: 0.5}}, {{path: {two}, fraction: 0.5}}]", None)
    numbers = [int(row["messages"][0]["content"].split()[2]) for row in train]
    assert len([n for n in numbers if n >= 100]) == 10
    assert max(n for n in numbers if n < 100) > 15


@case(
    "D15",
    "a held-out prompt in the training file, exact or nearly so",
    "reports scores that mean nothing",
    WARNS,
    ("utils.config.findings.Findings.add", nothing),
    "utils.preflight.shared.check_near_copies",
)
def test_leaks(stage):
    long = "Ann has {} nuts in a basket and gives three of them to each of her friends at the old school. How many?"
    rows = [{"messages": [user(long.format(n) + " Think."), assistant(str(n))]} for n in (7, 8)] + sums(22)
    heldout = [*sums(2), {"messages": [user(long.format(9)), assistant("9")]}]
    done = stage.run(f"heldout_name: {stage.write('held.jsonl', heldout)}", rows=rows)
    done.tells(
        "heldout_in_training: 2 of 24 training rows have a prompt of held.jsonl", "'Ann has 0 nuts", "are left out"
    )
    done.tells(
        "near_copies: 2 of 22 sampled rows (first 1, 2: 'Ann has 7 nuts",
        "nearly repeat a held-out prompt",
        "22 to train on",
    )
    assert done.code == 0


@case(
    "X8", "the same row several times in the file", "gives it more weight", WARNS, "utils.data.splits.find_duplicates"
)
def test_duplicates(stage):
    done = stage.run(rows=sums(20) + sums(1) * 4)
    done.tells(
        "WARNING   duplicate_rows: 4 of 24 training rows are copies of others (5 times: 'Ann has 0 nuts", "Remove"
    )


@case("X9", "DPO: chosen and rejected swapped", "learns the worse answers", STOPS, "dpo.checks.check_swapped")
def test_swapped(stage):
    rows = [row | {"score_chosen": 2.0, "score_rejected": 8.0} for row in pairs(24)]
    done = stage.run(rows=rows, method="dpo")
    done.tells("swapped_sides: chosen is worse than rejected in 24 of 24 pairs by score_chosen", "Swap the columns")
    rows = [row | {"chosen": row["rejected"], "rejected": row["chosen"], "answer": row["chosen"][0]["content"]}
            for row in pairs(24)]  # fmt: skip
    heldout = stage.write("held.jsonl", [row | {"prompt": [user(f"And {n}?")]} for n, row in enumerate(rows[:4])])
    done = stage.run(f"eval_metrics: [exact_match]\nheldout_name: {heldout}", rows=rows, method="dpo")
    done.tells("swapped_sides: chosen is worse than rejected in 24 of 24 pairs by exact_match")


@case(
    "X10", "DPO: chosen is nearly always the longer side", "learns the length", WARNS, "dpo.checks.check_length_bias"
)
def test_length_bias(stage):
    sides = {"chosen": [assistant("The answer, if one counts all, is three.")], "rejected": [assistant("3")]}
    rows = [row | sides for row in pairs(24)]
    stage.run(rows=rows, method="dpo").tells("WARNING   length_bias: chosen is the longer side in 100% of the pairs")


@case(
    "X19",
    "`train[:25%]` of a local file",
    "unknown split",
    PREVENTED,
    (
        "utils.data.splits.load_rows",
        lambda name, *_: datasets.load_dataset("json", data_files=str(name), split="train"),
    ),
    without_it="assert 40 == 10",
)
def test_slice_of_a_file(stage):
    train, _ = splits_of(stage, "dataset_train_split: train[:25%]", sums(40))
    assert len(train) == 10


@case(
    "X20",
    "DPO: chosen and rejected with different prompts, or without a prompt",
    "`IndexError`",
    STOPS,
    "utils.data.splits.row_fault",
    without_it=("IndexError: list index out of range", "Cannot apply chat template to an empty conversation"),
)
def test_sides_without_a_common_prompt(stage):
    rows = [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in pairs(8)]
    stage.run(rows=rows, method="dpo").tells(
        "row 1: chosen and rejected begin with no common prompt; write it at the head"
    )


@case(
    "X21",
    "DPO: a changed `max_length` with `truncation_mode: keep_end` and precomputed reference log-probabilities",
    "takes from its cache the log-probabilities of the answers as they were cut before",
    PREVENTED,
    ("utils.data.splits.cut_settings", lambda config: ""),
    without_it="< 0.0001",
)
def test_stale_reference(stage):
    text = "truncation_mode: keep_end\nprecompute_ref_log_probs: true\nmax_steps: 1\naccept: [truncated_rows]\n"
    assert stage.run(f"{text}max_length: 256", method="dpo").code == 0
    done = stage.run(f"{text}max_length: 24", method="dpo", flags=TRAIN)  # the same file: another would have no cache
    assert done.code == 0, done.said
    # At the first step the model is its own reference.
    first = json.loads((stage.folder / "out/metrics.json").read_text())["train"]["first_loss"]
    assert abs(first - math.log(2)) < 1e-4


def splits_of(stage, text, rows):
    drop = ["dataset_name"] if rows is None else []
    if rows is not None:
        stage.write("rows.jsonl", rows)
    return load_splits(config_of(stage, text, drop=drop), lambda row: row, FORMATS, has_template=True)
