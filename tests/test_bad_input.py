"""Random and old input: a mistake is reported, never a traceback, and every row trained on has supervised tokens."""

import dataclasses
import importlib
import re
import time
from pathlib import Path

import pytest
import trl.trainer.dpo_trainer as dpo
import trl.trainer.grpo_trainer as grpo
from conftest import ROOT
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from stage import FOLDERS, assistant, sums
from trl import DistillationConfig, DPOConfig, GRPOConfig, KTOConfig, ModelConfig, SFTConfig

import sft.checks
from dpo.config import DPORecipe
from kto.config import KTORecipe
from online_rl.config import OnlineRLRecipe
from utils.config import RecipeConfig, UserError, parse_config, read_config
from utils.config.fields import REFUSED
from utils.config.legacy_keys import table, what_to_write

RECIPES = {SFTConfig: RecipeConfig, DPOConfig: DPORecipe, KTOConfig: KTORecipe, GRPOConfig: OnlineRLRecipe}
KEYS = sorted({f.name for cls in (*RECIPES, ModelConfig, OnlineRLRecipe) for f in dataclasses.fields(cls)} - {"check"})
GROUPS = ("renamed", "converted", "mixtures", "removed")
OLD = sorted({key for group in GROUPS for key in table()[group]})
SLOW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
QUICK = settings(SLOW, max_examples=250)

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=12),
    st.sampled_from(["auto", "none", "steps", "no", "1e-5", "{", "[1", "a: b", "sigmoid", "cosine", "true"]),
)  # fmt: skip
VALUES_GIVEN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def parsed(path, cls, *flags):
    """The config, or the message to the user; anything else is our bug."""
    try:
        return parse_config(read_config("", ["--config", str(path), *flags]), cls, RECIPES[cls])
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("cls", RECIPES)
def test_any_value_of_any_key_is_accepted_or_reported(tmp_path, monkeypatch, cls):
    @QUICK
    @given(
        st.dictionaries(st.sampled_from(KEYS) | st.sampled_from(OLD) | st.text(max_size=8), VALUES_GIVEN, max_size=5)
    )
    def check(values):
        base = {"model_name_or_path": "tiny/base", "dataset_name": "tiny/data/sft_messages.jsonl"}
        with (tmp_path / "run.yaml").open("w") as file:
            YAML(typ="safe", pure=True).dump(base | values, file)
        found = parsed(tmp_path / "run.yaml", cls)
        if not isinstance(found, str):
            assert set(values) <= set(KEYS)  # an unknown or older key never passes

    monkeypatch.chdir(tmp_path)
    check()


def test_any_flags_are_accepted_or_reported(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: tiny/base\ndataset_name: tiny/data/sft_messages.jsonl\n")

    @QUICK
    @given(st.lists(st.sampled_from(KEYS).map("--{}".format) | st.text(max_size=8), max_size=4))
    def check(words):
        words = [word for word in words if word not in ("-h", "--help")]
        parsed(path, SFTConfig, *words)

    check()


TEXTS = st.text(max_size=10) | st.sampled_from(["", " ", "<|im_end|>", "<think>", "</think> 4", "4" * 2000])
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "asistant", ""]), "content": TEXTS | st.none()}
)
CHATS = st.lists(MESSAGES, max_size=3) | st.just(sums(1)[0]["messages"])
RIGHT = sums(1)[0]["messages"]
ANSWER = [assistant("It is 3.")]


def form(right, *columns):
    """Rows in one format: most as they should be, some with anything in these columns."""
    spoilt = st.fixed_dictionaries({name: CHATS if isinstance(right[name], list) else TEXTS for name in columns})
    mixed = st.lists(st.just(right) | spoilt.map(lambda row: right | row), min_size=1, max_size=3)
    return st.lists(st.just(right), min_size=1, max_size=3) | mixed


ANY = st.lists(
    st.dictionaries(st.sampled_from(["messages", "text", "prompt", "x"]), SCALARS | CHATS, max_size=3), min_size=1
)
ROWS = {
    "sft": form({"messages": RIGHT}, "messages")
    | form({"prompt": RIGHT[:1], "completion": RIGHT[1:]}, "prompt", "completion")
    | form({"prompt": "1 + 1 =", "completion": " 2."}, "prompt", "completion")
    | form({"text": "1 + 1 = 2."}, "text")
    | ANY,
    "dpo": form({"prompt": RIGHT[:1], "chosen": RIGHT[1:], "rejected": ANSWER}, "chosen", "rejected")
    | form({"chosen": RIGHT, "rejected": RIGHT[:1] + ANSWER}, "chosen")
    | form({"prompt": "1 + 1 =", "chosen": " 2.", "rejected": " 3."}, "prompt", "rejected")
    | ANY,
    "grpo": form({"prompt": RIGHT[:1], "answer": "4"}, "prompt")
    | form({"prompt": "1 + 1 =", "answer": "2"}, "prompt", "answer")
    | ANY,
}


def teaches(row):
    """Whether one of the trainer's own rows has anything to learn."""
    if "labels" in row:
        return any(label != -100 for label in row["labels"])
    return "chosen_ids" not in row or (
        row["chosen_ids"] != row["rejected_ids"] and row["chosen_ids"] and row["rejected_ids"]
    )


@pytest.mark.parametrize("method", ROWS)
def test_any_rows_are_trained_on_or_reported(stage, monkeypatch, method):
    """From the JSONL to the trainer's own tensors: every row that is kept has something to learn."""
    seen, checks = [], importlib.import_module(f"{FOLDERS[method]}.checks")
    original = checks.preflight
    accepted = []
    text = "accept: [equal_rewards, clipped_completions]\nnum_generations: 2" if method == "grpo" else ""

    def spied(trainer, *rest):
        seen.append(trainer)
        return original(trainer, *rest)

    monkeypatch.setattr(checks, "preflight", spied)

    @SLOW
    @given(ROWS[method], st.sampled_from(["true", "false"]))
    def check(rows, assistant_only):
        seen.clear()
        done = stage.run(
            text or f"assistant_only_loss: {assistant_only}" * (method == "sft"), rows=rows, method=method
        )
        assert done.code in (0, 2), done.said
        accepted.append(done.code == 0)
        assert done.code or all(map(teaches, seen[0].train_dataset))

    check()
    assert 5 < sum(accepted) < len(accepted)  # both outcomes occur


@pytest.mark.parametrize("line", ["", "null", "[]", "3", '{"messages": 3}', '{"messages": [[]]}', '{"text": {"a": 1}}',
                                  '{"messages": [{"role": "user"}]}', "{", '{"text": "a"} {"text": "b"}'])  # fmt: skip
def test_odd_lines_are_reported(stage, line):
    assert stage.run(rows=f'{{"text": "Ann has 3 nuts."}}\n{line}\n' if line else "").code == 2


OLD_SAID = {
    ("trl_sft_2024", SFTConfig): [
        "16: max_seq_length: is not used here: write max_length: 2048",
        "write dtype: float32, which null meant",
        "'adamw_hf' is not a choice; write adamw_torch",
    ],
    ("alignment_handbook_dpo_2024", DPOConfig): [
        "{path: HuggingFaceH4/ultrafeedback_binarized, split: 'train[:50%]'}, {path: argilla/dpo-mix-7k}]",
        "write loss_type: [sigmoid, sft] and loss_weights: [1.0, 1.0]",
        "write eval_strategy: steps",
    ],
    ("open_r1_grpo_2025", GRPOConfig): [
        "write vllm_max_model_length: 4608",
        "35: scale_rewards: False is not a choice; write none",
        "write warmup_steps: 0.1, a value under 1 is a share",
    ],
}


@pytest.mark.parametrize(("name", "cls"), OLD_SAID)
def test_old_configs_are_translated_whole(name, cls):
    """Every older key in another repository's YAML is reported at once, with what to write today."""
    path = ROOT / f"tests/fixtures/{name}.yaml"
    text = parsed(path, cls)
    for part in OLD_SAID[name, cls]:
        assert part in text
    keys = YAML(typ="safe", pure=True).load(path.read_text())
    own = {f.name for f in dataclasses.fields(RECIPES[cls])}  # online RL has keys that the others lost
    old = [key for key, value in keys.items() if key not in own and what_to_write(key, value)]
    assert len(old) > 30
    assert all(f": {key}: is not used here" in text for key in old)
    known = {f.name for c in (cls, ModelConfig, RECIPES[cls]) for f in dataclasses.fields(c)} | {"env"}
    assert set(keys) <= known | set(old)  # none of their keys is merely unknown


def test_the_table_of_older_keys_is_current():
    fields = {f.name for c in (*RECIPES, KTOConfig, DistillationConfig, ModelConfig) for f in dataclasses.fields(c)}
    assert set(OLD) & fields == set(REFUSED)
    fields |= {f.name for f in dataclasses.fields(OnlineRLRecipe)}
    assert set(table()["renamed"].values()) <= fields
    assert set(table()["values"]) <= fields
    assert len(OLD) == sum(len(table()[group]) for group in GROUPS)  # each key in one group


@pytest.mark.parametrize(
    ("text", "cls", "said"),
    [
        ("desirable_weight: 2.0", SFTConfig, "desirable_weight: is a key of KTOConfig alone. Remove it"),
        ("teacher_model_name_or_path: x", DPOConfig, "is a key of DistillationConfig alone. Remove it"),
        ("lmbda: 0.5", SFTConfig, "is not used here: remove it: it is a key of GKD, which has no recipe here"),
        ("code_provider: e2b", GRPOConfig, "code_passes_tests runs code in a local sandbox"),
        ("system_prompt: Think.", DPOConfig, "is not used here: remove it: add a system message in to_training_row"),
    ],
)
def test_a_key_of_another_method_is_reported(tmp_path, text, cls, said):
    (tmp_path / "run.yaml").write_text(f"model_name_or_path: tiny/base\n{text}\n")
    assert f"run.yaml:2: {text.split(':')[0]}: " in (message := parsed(tmp_path / "run.yaml", cls))
    assert said in message


def test_a_field_of_the_trainer_wins_over_an_older_meaning(tmp_path):
    """A recipe for KTO reads desirable_weight, and online RL system_prompt, whatever they were called elsewhere."""
    lines = "model_name_or_path: tiny/base\ndataset_name: tiny/data/sft_messages.jsonl\n"
    (tmp_path / "run.yaml").write_text(f"{lines}desirable_weight: 2.0\nundesirable_weight: -1\n")
    source = read_config("", ["--config", str(tmp_path / "run.yaml")])
    assert parse_config(source, KTOConfig).training.desirable_weight == 2.0
    (tmp_path / "run.yaml").write_text(f"{lines}system_prompt: Think.\nmax_prompt_length: 9\n")
    assert parsed(tmp_path / "run.yaml", GRPOConfig).recipe.system_prompt == "Think."


def test_the_table_is_read_only_for_keys_that_no_field_has(tmp_path):
    table.cache_clear()
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: tiny/base\ndataset_name: tiny/data/sft_messages.jsonl\n")
    assert not isinstance(parsed(path, SFTConfig, "--packing"), str)
    assert table.cache_info().misses == 0
    assert "max_length" in parsed(path, SFTConfig, "--max_seq_length", "9")
    assert table.cache_info().misses == 1


def test_the_choices_are_those_of_trl():
    """TRL keeps no list of its own for these; its code is the list."""

    def compared(module, name):
        text = Path(module.__file__).read_text()
        one = re.findall(rf'{name} == "(\w+)"', text)
        several = re.findall(rf"{name} in \[([^\]]*)\]", text)
        return set(one) | {word for part in several for word in re.findall(r'"(\w+)"', part)}

    assert compared(dpo, "loss_type") == set(DPORecipe.CHOICES["loss_type"])
    assert compared(dpo, "f_divergence_type") == set(DPORecipe.CHOICES["f_divergence_type"])
    assert compared(grpo, "self.loss_type") == set(OnlineRLRecipe.CHOICES["loss_type"])


@pytest.mark.slow
def test_the_preflight_does_not_grow_with_the_rows(stage, monkeypatch):
    """A million rows are checked in a few seconds: what is costly is done on a sample."""
    seconds, original = {}, sft.checks.preflight

    def timed(trainer, config, train, *rest):
        for count in (1_000, 1_000_000):
            many = Dataset.from_dict({"messages": [train[0]["messages"]]}).select([0] * count).flatten_indices()
            ids = trainer.train_dataset[0]["input_ids"]
            trainer.train_dataset = Dataset.from_dict({"input_ids": [ids] * count, "labels": [ids] * count})
            begun = time.perf_counter()
            checked = original(trainer, config, many, *rest)
            seconds[count] = time.perf_counter() - begun
        return checked

    monkeypatch.setattr(sft.checks, "preflight", timed)
    done = stage.run()
    assert done.code == 0, done.said
    print(seconds)
    assert seconds[1_000_000] < seconds[1_000] + 5
