"""KTO: its rows, what its preflight finds, what is measured; a killed run goes on to the same weights."""

import json
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from stage import labelled, pairs, user
from trl import KTOConfig

from kto.config import KTORecipe
from kto.train import to_training_row
from utils.config import parse_config, read_config

TRAIN = ()
QUICK = "learning_rate: 1e-3\ndesirable_weight: 1.2"


def metrics(stage):
    return json.loads((stage.folder / "out/metrics.json").read_text())


def good(count):
    return [row | {"label": True} for row in labelled(2 * count)[::2]]


def bad(count):
    return [row | {"label": False} for row in labelled(2 * count)[1::2]]


def held(count):
    return [
        row | {"prompt": [user(f"And {n} nuts?")], "answer": "The answer is 5."}
        for n, row in enumerate(labelled(count))
    ]


def test_rows_in_every_format(stage):
    """Messages, text, tools, and preference pairs, with the prompt in a column or at the head of both sides."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    formats = [
        labelled(24),
        [{"prompt": f"{n} + 1 =", "completion": f" {n + 1 + n % 2}", "label": not n % 2} for n in range(24)],
        [row | {"tools": json.dumps([tool])} for row in labelled(24)],
        pairs(40),
        [{"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in pairs(40)],
    ]
    for rows in formats:
        done = stage.run("max_length: 512", rows=rows, method="kto")
        assert done.code == 0, done.said
        done.tells("good (weight 1), ", "[label: ")


def test_of_a_pair_one_side_is_taken():
    """The same side wherever the prompt stands, and about as many good as bad."""
    made = [to_training_row(row) for row in pairs(400)]
    assert all(
        row["completion"] == pair["chosen" if row["label"] else "rejected"]
        for row, pair in zip(made, pairs(400), strict=True)
    )
    assert 160 < sum(row["label"] for row in made) < 240
    heads = [
        {"prompt": "as text", "chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
        for row in pairs(400)
    ]
    assert [to_training_row(row) for row in heads] == made


def test_a_bad_row_is_named(stage):
    for label in (-1, 1, "yes"):
        done = stage.run(rows=[row | {"label": label} for row in labelled(8)], method="kto")
        assert done.code == 2
        done.tells(f"rows.jsonl, row 1: has the label {label!r}; write true or false")
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in labelled(8)]
    stage.run(rows=rows, method="kto").tells("a row needs: prompt and completion and label")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per_device_train_batch_size: 1", "the KL term is estimated from the other rows of a batch"),
        ("train_sampling_strategy: random", "the KL term is prepared for batches in the rows' order"),
        ("desirable_weight: 0", "desirable_weight: 0 leaves one label without a loss"),
        ("loss_type: sigmoid", "'sigmoid' is not a choice"),
        ("accept: [one_lable]", "there is no finding 'one_lable'; did you mean one_label?"),
    ],
)
def test_a_config_that_cannot_work_is_refused(stage, text, message):
    done = stage.run(text, method="kto")
    assert done.code == 2
    done.tells(message)


def test_the_loss_without_a_kl_term_takes_rows_singly(stage):
    text = "loss_type: apo_zero_unpaired\nper_device_train_batch_size: 1\ntrain_sampling_strategy: random"
    done = stage.run(text, method="kto")
    assert done.code == 0, done.said


def test_weights_are_a_key_of_this_trainer_alone(stage):
    stage.run("desirable_weight: 1.3", method="dpo").tells("desirable_weight: is a key of KTOConfig alone")


@pytest.mark.parametrize(
    ("text", "precomputed"), [("", True), ("use_peft: true", False), ("sync_ref_model: true", False)]
)
def test_no_second_model_unless_it_is_needed(stage, text, precomputed):
    source = read_config("", ["--config", str(stage.yaml("kto", text, ["precompute_ref_log_probs"]))])
    assert parse_config(source, KTOConfig, KTORecipe).training.precompute_ref_log_probs is precomputed


ANSWERED = [row | {"answer": "The answer is 3."} for row in labelled(24)]
BOTH = [row | {"label": label} for row in labelled(12) for label in (True, False)]


@pytest.mark.parametrize(
    ("rows", "text", "name", "message", "stops"),
    [
        (good(24), "", "one_label", "all 24 rows have label: true", True),
        (bad(24), "", "one_label", "all 24 rows have label: false", True),
        (good(24) + bad(4), "", "unbalanced_labels", "Write undesirable_weight: 4.5", False),
        (good(4) + bad(24), "", "unbalanced_labels", "Write desirable_weight: 6", False),
        (BOTH, "", "contradictory_labels", "12 of 24 rows repeat another one with the opposite label", True),
        (
            [row | {"answer": row["completion"][0]["content"], "label": not row["label"]} for row in good(24)]
            + [row | {"answer": "The answer is 1.", "label": True} for row in bad(24)],
            "eval_metrics: [exact_match]",
            "flipped_labels",
            "48 of 48 labels are the opposite of what eval_metrics finds",
            True,
        ),
    ],
)  # fmt: skip
def test_what_the_preflight_finds(stage, rows, text, name, message, stops):
    done = stage.run(text, rows=rows, method="kto")
    assert done.code == (2 if stops else 0), done.said
    done.tells(f"{name}: ", message)
    if stops:
        assert stage.run(f"{text}\naccept: [{name}]", rows=rows, method="kto").code == 0


def test_labels_that_are_right_are_passed(stage):
    scored = [row | {"answer": row["completion"][0]["content"]} for row in good(16)]
    scored += [row | {"answer": "The answer is 1."} for row in bad(16)]
    weighed = good(6) + bad(24)
    for rows, text in ((scored, "eval_metrics: [exact_match]"), (weighed, "desirable_weight: 4.5")):
        done = stage.run(text, rows=rows, method="kto")
        assert done.code == 0, done.said
        assert "WARNING" not in done.said


def test_a_bad_answer_is_no_gold_answer(stage):
    path = stage.write("held.jsonl", [{k: v for k, v in row.items() if k != "answer"} for row in held(8)])
    done = stage.run(f"heldout_name: {path}\neval_metrics: [honest]", method="kto")
    assert done.code == 2
    done.tells("bad_references: 4 of 8 held-out rows have label: false and no `answer`")
    stage.write("held.jsonl", held(8))
    assert stage.run(f"heldout_name: {path}\neval_metrics: [honest]", method="kto").code == 0


@pytest.mark.parametrize(
    "text", ["precompute_ref_log_probs: true", "precompute_ref_log_probs: false", "use_peft: true"]
)
def test_a_run_from_start_to_end(stage, text):
    path = stage.write("held.jsonl", held(8))
    text = f"{QUICK}\n{text}\nheldout_name: {path}\neval_metrics: [exact_match]\neval_guards: {{exact_match: 0.5}}"
    done = stage.run(text, method="kto", flags=TRAIN)
    assert done.code == 0, done.said
    found = metrics(stage)
    assert found["after"]["exact_match"]["n"] == 8
    assert found["before"]["kl"]["value"] == 0.0 < found["after"]["kl"]["value"]
    assert found["train"]["steps"] == 4
    assert "KL(trained model || original model)" in (stage.folder / "out/report.html").read_text()


def test_a_stopped_run_goes_on_to_the_same_weights(stage):
    """Another seed reads the rows in another order; a run without its last checkpoint takes the same two steps."""
    text = f"{QUICK}\nsave_strategy: steps\nsave_steps: 2"
    weights = {}
    for name, flags in (("alone", ()), ("seed", ("--seed", 7))):
        assert stage.run(text, method="kto", flags=(*flags, "--output_dir", stage.folder / name)).code == 0
        weights[name] = load_file(stage.folder / name / "model.safetensors")
    stopped = stage.folder / "alone"
    for path in ("checkpoint-4", "evaluation"):
        shutil.rmtree(stopped / path, ignore_errors=True)
    for path in ("metrics.json", "model.safetensors"):
        (stopped / path).unlink()
    done = stage.run(text, method="kto", flags=("--output_dir", stopped))
    assert done.code == 0, done.said
    done.tells("continuing from")
    again = load_file(stopped / "model.safetensors")
    assert all(torch.equal(again[name], weights["alone"][name]) for name in again)
    assert not all(torch.equal(again[name], weights["seed"][name]) for name in again)


def test_the_shipped_config_passes_its_preflight(stage):
    lines = (ROOT / "configs/kto_tiny.yaml").read_text().splitlines()
    own = ("model_name_or_path", "max_steps", "eval_prompts")
    done = stage.run("\n".join(line for line in lines if not line.startswith(own)), method="kto")
    assert done.code == 0, done.said
    assert "WARNING" not in done.said
