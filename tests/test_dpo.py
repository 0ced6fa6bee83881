"""DPO: the three ways to have a reference agree; what is measured of pairs; the real configs on rows of their form."""

import json
import shutil

import pytest
from conftest import ROOT
from stage import assistant, pairs, user
from trl import DPOConfig

from dpo.config import DPORecipe
from utils.config import parse_config, read_config
from utils.evaluation import kl

TRAIN = ()
QUICK = "loss_type: [sigmoid, sft]\nloss_weights: [1.0, 0.5]\nlearning_rate: 1e-3"


def metrics(stage):
    return json.loads((stage.folder / "out/metrics.json").read_text())


def evaluation(stage, when):
    return json.loads((stage.folder / f"out/evaluation/{when}.json").read_text())


def losses(stage, text):
    """The loss of each of four steps."""
    done = stage.run(f"{QUICK}\nsave_strategy: steps\nsave_steps: 4\n{text}", method="dpo", flags=TRAIN)
    assert done.code == 0, done.said
    state = json.loads((stage.folder / "out/checkpoint-4/trainer_state.json").read_text())
    shutil.rmtree(stage.folder / "out")
    return [log["loss"] for log in state["log_history"] if "loss" in log]


def test_lora_precomputed_and_live_reference_agree(stage):
    live = losses(stage, "precompute_ref_log_probs: false")
    precomputed = losses(stage, "precompute_ref_log_probs: true")
    lora = losses(stage, "precompute_ref_log_probs: false\nuse_peft: true")
    assert precomputed == pytest.approx(live, abs=1e-4)
    assert lora[0] == pytest.approx(live[0], abs=1e-4)
    assert live[0] != pytest.approx(live[-1], abs=1e-2)  # there was something to agree on


@pytest.mark.parametrize(
    ("text", "precomputed"),
    [
        ("", True),
        ("use_peft: true", False),
        ("sync_ref_model: true", False),
        ("precompute_ref_log_probs: false", False),
    ],
)
def test_no_second_model_unless_it_is_needed(stage, text, precomputed):
    keys = ["precompute_ref_log_probs"] if "precompute" not in text else []
    source = read_config("", ["--config", str(stage.yaml("dpo", text, keys))])
    assert parse_config(source, DPOConfig, DPORecipe).training.precompute_ref_log_probs is precomputed


HELD = [
    row | {"prompt": [user(f"And {n} nuts?")], "answer": "The answer is 5.", "metric": name}
    for n, (row, name) in enumerate(zip(pairs(8), ["exact_match", "honest"] * 4, strict=True))
]


def test_a_held_out_row_names_its_metric(stage):
    held = stage.write("held.jsonl", HELD)
    text = f"{QUICK}\nheldout_name: {held}\neval_metrics: [exact_match, honest]\neval_guards: {{honest: 0.5}}"
    assert stage.run(text, method="dpo", flags=TRAIN).code == 0
    found = metrics(stage)["after"]
    assert found["exact_match"]["n"] == found["honest"]["n"] == 4
    assert found["answer_tokens"]["n"] == found["kl"]["n"] == found["reward_margin"]["n"] == 8
    page = (stage.folder / "out/report.html").read_text()
    assert "honest (guard 0.5)" in page
    assert "KL(trained model || original model)" in page
    shutil.rmtree(stage.folder / "out")
    stage.run(f"heldout_name: {held}\neval_metrics: [exact_match]", method="dpo").tells(
        "eval_metrics: held-out row 2 is to be scored by 'honest' (its column `metric`)", "Add it"
    )
    stage.run(f"heldout_name: {held}\neval_guards: {{honst: 0.1}}", method="dpo").tells(
        "eval_guards: 'honst' is not measured. Write one of heldout_loss, kl"
    )


def test_what_is_measured_of_pairs(stage):
    """Before training margins and KL are 0; after it they are those of the log-probabilities."""
    held = stage.write("held.jsonl", HELD)
    text = f"{QUICK}\nheldout_name: {held}\nbeta: 0.2\nper_device_eval_batch_size: 3"
    assert stage.run(text, method="dpo", flags=TRAIN).code == 0
    before, after = evaluation(stage, "before"), evaluation(stage, "after")
    assert all(pair["reward_margin"] == 0.0 for pair in before["pairs"])
    assert metrics(stage)["before"]["reward_margin"]["high"] == 0.0
    assert all(row["kl"] == 0.0 for row in before["rows"])
    for first, last in zip(before["pairs"], after["pairs"], strict=True):
        gained = [last[side] - first[side] for side in ("logp_chosen", "logp_rejected")]
        assert last["reward_margin"] == pytest.approx(0.2 * (gained[0] - gained[1]))
        assert last["reward_accuracy"] == float(gained[0] > gained[1])
    assert all(row["kl"] > 0.0 for row in after["rows"])
    shutil.rmtree(stage.folder / "out")
    # The same figures one row at a time, with the reference that the trainer holds or that is precomputed.
    stage.monkeypatch.setattr(kl, "MAX_LOGITS", 1)
    text = text.replace("batch_size: 3", "batch_size: 1") + "\nprecompute_ref_log_probs: true"
    assert stage.run(text, method="dpo", flags=TRAIN).code == 0
    for when, there in (("before", before), ("after", after)):
        here = evaluation(stage, when)
        for name in ("logp_chosen", "logp_rejected", "reward_margin"):
            assert [p[name] for p in here["pairs"]] == pytest.approx([p[name] for p in there["pairs"]], abs=2e-3)
        assert [row["kl"] for row in here["rows"]] == pytest.approx([row["kl"] for row in there["rows"]], abs=2e-3)


def test_kl_with_an_adapter(stage):
    """The adapter switched off is the reference; a run that learns moves away from it, and is left switched on."""
    held = stage.write("held.jsonl", HELD)
    text = f"{QUICK}\nheldout_name: {held}\nuse_peft: true\nlearning_rate: 1e-2".replace("learning_rate: 1e-3\n", "")
    assert stage.run(text, method="dpo", flags=TRAIN).code == 0
    assert metrics(stage)["after"]["kl"]["low"] > 0.0


def test_a_broken_guard_is_an_alarm(stage):
    held = stage.write("held.jsonl", [row | {"metric": None} for row in HELD])
    text = f"{QUICK}\nheldout_name: {held}\neval_guards: {{kl: 0.0}}"
    done = stage.run(text, method="dpo", flags=TRAIN)
    assert done.code == 0, done.said
    done.tells("ALARM     guard_broken: kl got worse by")
    assert "guard_broken" in {alarm["name"] for alarm in metrics(stage)["alarms"]}


@pytest.mark.parametrize("name", ["dpo_qwen", "dpo_qwen8b_lora"])
def test_the_real_configs_take_rows_of_their_data_set(stage, name):
    """The columns of HuggingFaceH4/ultrafeedback_binarized, on the tiny base."""
    text = (ROOT / f"configs/{name}.yaml").read_text()
    own = {"model_name_or_path", "dataset_name", "load_in_4bit", "dataset_num_proc", "heldout_fraction", "max_length"}
    own |= {"dataset_train_split", "use_bnb_nested_quant", "gradient_accumulation_steps", "num_train_epochs"}
    lines = [line for line in text.splitlines() if line.split(":")[0] not in own]
    lines += ["heldout_fraction: 0.3", "max_steps: 2", "max_length: 256", "gradient_accumulation_steps: 2"]
    lines = [line.replace("eval_max_new_tokens: 512", "eval_max_new_tokens: 8") for line in lines]
    drop = ["precompute_ref_log_probs", "save_strategy", *(line.split(":")[0] for line in lines)]
    rows = (ROOT / "tests/fixtures/ultrafeedback_binarized.jsonl").read_text()
    done = stage.run("\n".join(lines), rows=rows, method="dpo", flags=TRAIN, drop=drop)
    assert done.code == 0, done.said
    assert metrics(stage)["after"]["logp_chosen"]["n"] >= 1


def test_pairs_in_every_form(stage):
    """Text, messages, implicit prompts, tools: TRL's own formats."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    messages = pairs(12)
    forms = [
        [{"prompt": f"{n} + 1 =", "chosen": f" {n + 1}", "rejected": f" {n + 2}"} for n in range(12)],
        [{"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in messages],
        [row | {"tools": json.dumps([tool])} for row in messages],
        [
            {"prompt": [user(f"{n}?")], "chosen": [assistant(f"{n}!")], "rejected": [assistant("no")]}
            for n in range(12)
        ],
    ]
    for rows in forms:
        done = stage.run("accept: [length_bias]\nmax_length: 512", rows=rows, method="dpo")
        assert done.code == 0, done.said


def test_half_of_the_pairs_identical_is_refused(stage):
    rows = [row | ({"rejected": row["chosen"]} if n % 2 else {}) for n, row in enumerate(pairs(24))]
    done = stage.run(rows=rows, method="dpo")
    assert done.code == 2
    done.tells(
        "identical_pairs: 12 of 24 pairs of rows.jsonl have chosen equal to rejected (rows 2, 4, 6, 8, 10, ...)"
    )
    assert not list((stage.folder / "out").glob("*"))  # the empty folder goes with the process


def test_a_missing_start_names_the_command(stage):
    stage.run("model_name_or_path: outputs/nowhere/sft_tiny", method="dpo").tells(
        "run.yaml:1: model_name_or_path: there is no", "python sft/train.py --config configs/sft_tiny.yaml"
    )


def test_an_sft_row_names_its_metric_too(stage):
    rows = [
        {"prompt": row["prompt"], "completion": [assistant(row["answer"])], "metric": row["metric"]} for row in HELD
    ]
    held = stage.write("held.jsonl", rows)
    done = stage.run(f"heldout_name: {held}\neval_metrics: [exact_match, honest]", flags=TRAIN)
    assert done.code == 0, done.said
    assert metrics(stage)["after"]["exact_match"]["n"] == metrics(stage)["after"]["honest"]["n"] == 4
    assert "kl" not in metrics(stage)["after"]
