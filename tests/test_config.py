"""The strict config: every mistake at once, each with its place and the fix."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, recipe
from ruamel.yaml import YAML
from trl import SFTConfig

from data_prep.best_of_k import BestOfKConfig
from data_prep.filter import FilterConfig
from data_prep.generate import GenerateConfig
from utils.config import UserError, parse_config, parse_fields, read_config
from utils.config import read as read_module

BASE = "model_name_or_path: tiny/base\ndataset_name: tiny/data/sft_messages.jsonl\n"


def parse(tmp_path, text, *flags):
    path = tmp_path / "run.yaml"
    path.write_text(BASE + text)
    return parse_config(read_config("", ["--config", str(path), *flags]), SFTConfig)


def message(tmp_path, text, *flags):
    with pytest.raises(UserError) as error:
        parse(tmp_path, text, *flags)
    return str(error.value)


MISTAKES = [  # line 3 of the YAML, and what the message must say
    ("learnig_rate: 1e-3", "unknown key; did you mean learning_rate?"),
    ("zzzzqqq: 1", "unknown key; see --help"),
    ("warmup_ratio: 0.1", "write warmup_steps: 0.1, a value under 1 is a share"),
    ("max_seq_length: 512", "write max_length: 512"),
    ("max_prompt_length: 512", "filter long prompts"),
    ("evaluation_strategy: 'no'", "write eval_strategy: no"),
    ("torch_dtype: bfloat16", "write dtype: bfloat16"),
    ("overwrite_output_dir: true", "--start_over"),
    ("reference_free: true", "gone from TRL"),
    ("no_cuda: true", "write use_cpu"),
    ("tokenizer: x", "the tokenizer is the model's"),
    ("resume_from_checkpoint: true", "goes on from the newest complete checkpoint by itself"),
    ("hub_token: hf_abc", "a token does not belong in a config"),
    ("learning_rate: [1]", "[1] is not a number. Write a number"),
    ("per_device_train_batch_size: 2.5", "2.5 is not a whole number"),
    ("packing: 3", "3 is not true or false"),
    ("packing: yes", "'yes' is not true or false. Write true or false, without quotes"),
    ("max_length: true", "True is not a whole number"),
    ("gradient_accumulation_steps: 0", "0 is out of range. Write at least 1"),
    ("max_length: -5", "-5 is out of range. Write at least 1"),
    ("max_steps: 0", "at least 1, or -1 to count in epochs"),
    ("num_train_epochs: 0", "0 is out of range. Write more than 0"),
    ("learning_rate: .nan", "nan is out of range"),
    ("learning_rate: 3", "at least 0 and at most 1"),
    ('learning_rate: "2e-5"', "'2e-5' is not a number. Write a number, without quotes"),
    ("learning_rate:", "has no value. Write a number"),
    ("loss_type: sigmiod", "write one of nll, dft"),
    ("packing_strategy: foo", "write one of bfd, bfd_split, wrapped"),
    ("lr_scheduler_type: cosin", "did you mean cosine?"),
    ("eval_metrics: 3", "3 is not a list"),
    ("learning-rate: 1e-3", "keys have no dashes. Write learning_rate"),
    ("dataset_name: a.jsonl", "stands twice (first at"),
    ("env: {FOO: 1}", "FOO may not be set here"),
    ("env: {HF_TOKEN: hf_abc}", "HF_TOKEN may not be set here"),
    ("env: 3", "must be a mapping"),
    ("eval_strategy: steps", "there are no rows to evaluate on. Write heldout_fraction"),
    ("trust_remote_code: true", "Pin model_revision to a full commit hash"),
    ("datasets: [{path: a.jsonl, weight: 1}]", "may have name, split, data_files, columns, fraction"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES)
def test_a_mistake_is_reported_with_line_and_fix(tmp_path, line, said):
    text = message(tmp_path, line + "\n")
    assert f"run.yaml:3: {line.split(':')[0]}: " in text
    assert said in text


def test_all_mistakes_are_reported_at_once(tmp_path):
    text = message(tmp_path, "learnig_rate: 1\npacking: 3\nseed: -1\n", "stray", "--max_stepz", "4")
    assert "5 mistakes in the config" in text
    for place in ("run.yaml:3", "run.yaml:4", "run.yaml:5", "command line: max_stepz", "command line: 'stray'"):
        assert place in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", r"bad.yaml:2: not valid YAML"),
        ("- a\n", "bad.yaml:1: the config must be a mapping"),
        ("", "mapping"),
    ],
)
def test_a_broken_file_is_reported(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_config("", ["--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "nowhere.yaml"]])
def test_a_missing_config_names_a_shipped_one(arguments):
    with pytest.raises(UserError, match=r"configs/sft_tiny\.yaml"):
        read_config("", arguments)


def test_missing_model_and_data(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError) as error:
        parse_config(read_config("", ["--config", str(tmp_path / "run.yaml")]), SFTConfig)
    assert "model_name_or_path: is missing" in str(error.value)
    assert "give either dataset_name or datasets" in str(error.value)


def test_flags_override_and_take_the_type_of_their_field(tmp_path):
    flags = [
        "--learning_rate=3e-4",
        "--packing",
        "--no_logging_first_step",
        "--lora_target_modules",
        "q_proj",
        "v_proj",
    ]
    flags += [
        "--max-length",
        "none",
        "--eval_metrics",
        "exact_match",
        "--model_init_kwargs",
        "{a: 1}",
        "--optim_args",
        "1",
    ]
    config = parse(tmp_path, "learning_rate: 1e-5\nlogging_first_step: true\n", *flags)
    assert config.training.learning_rate == 3e-4
    assert config.training.packing is True
    assert config.training.logging_first_step is False
    assert config.training.max_length is None
    assert config.model.lora_target_modules == ["q_proj", "v_proj"]
    assert config.recipe.eval_metrics == ["exact_match"]
    assert config.training.model_init_kwargs == {"a": 1}
    assert config.training.optim_args == "1"


def test_numbers_are_read_as_people_write_them(tmp_path):
    config = parse(tmp_path, "learning_rate: 2e-5\nweight_decay: 1\nsave_strategy: no\n")
    assert config.training.learning_rate == 2e-5
    assert config.training.save_strategy == "no"


def test_env_reaches_the_libraries(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    parse(tmp_path, "env: {WANDB_MODE: offline}\n")
    assert read_module.os.environ["WANDB_MODE"] == "offline"


def test_paths_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(tmp_path, "")
    assert config.model.model_name_or_path == str(ROOT / "tiny/base")
    assert config.training.output_dir == str(ROOT / "outputs/run")
    (tmp_path / "rows.jsonl").write_text("{}")
    config = parse(tmp_path, "", "--dataset_name", "rows.jsonl", "--output_dir", "here")
    assert config.recipe.dataset_name == str(tmp_path / "rows.jsonl")
    assert config.training.output_dir == str(tmp_path / "here")


def test_our_own_fields_know_paths_ranges_and_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")

    def filled(text, *flags):
        (tmp_path / "clean.yaml").write_text(text)
        return parse_fields(read_config("", ["--config", "clean.yaml", *flags], FilterConfig), FilterConfig)

    settings = filled(
        "output_file: outputs/clean.jsonl\n", "--dataset_name", "rows.jsonl", "--contamination", "rows.jsonl"
    )
    assert settings.dataset_name == str(tmp_path / "rows.jsonl")
    assert settings.contamination == [settings.dataset_name]
    assert settings.output_file == str(ROOT / "outputs/clean.jsonl")
    with pytest.raises(UserError) as error:
        filled("dataset_name: no.jsonl\ncontamination: [a.jsonl, b.jsonl]\nnear_duplicates: al\nnear_threshold: 0.1\n")
    text = str(error.value)
    assert "5 mistakes in the config" in text
    assert f"clean.yaml:1: dataset_name: there is no file {ROOT / 'no.jsonl'}" in text
    assert f"there is no file {ROOT / 'a.jsonl'}; there is no file {ROOT / 'b.jsonl'}" in text
    assert "clean.yaml:3: near_duplicates: 'al' is not a choice; write one of prompt, response, both" in text
    assert "clean.yaml:4: near_threshold: 0.1 is out of range. Write at least 0.3 and at most 1" in text
    assert "clean.yaml: output_file: is missing. The JSONL file to write." in text


def test_a_missing_start_names_the_command_that_makes_it(tmp_path):
    text = message(tmp_path, "", "--model_name_or_path", str(ROOT / "outputs/nowhere/sft_tiny"))
    assert "python sft/train.py --config configs/sft_tiny.yaml" in text


def test_lora_takes_all_linear_layers(tmp_path):
    assert parse(tmp_path, "use_peft: true\n").model.lora_target_modules == "all-linear"
    assert parse(tmp_path, "use_peft: true\nlora_target_modules: [q_proj]\n").model.lora_target_modules == "q_proj"


def test_without_an_accelerator_the_run_is_float32_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    config = parse(tmp_path, "bf16: true\n")
    assert config.training.use_cpu
    assert not config.training.bf16


@functools.cache
def schemas():
    """docs/schema/make.py, which finds every method's classes."""
    spec = importlib.util.spec_from_file_location("make_schemas", ROOT / "docs/schema/make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    return make


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path, monkeypatch):
    monkeypatch.setattr(read_module, "require_hub", lambda source: None)
    method = path.stem.split("_")[0]
    header = path.read_text().split("\n\n")[0]
    schema = {"best": "best_of_k"}.get(method, method)
    assert header.startswith(f"# yaml-language-server: $schema=../docs/schema/{schema}.json\n# ")
    known = json.loads((ROOT / f"docs/schema/{schema}.json").read_text())["properties"]
    assert set(YAML(typ="safe", pure=True).load(path.read_text())) <= set(known)
    if prepares := {"generate": GenerateConfig, "best": BestOfKConfig, "filter": FilterConfig}.get(method):
        script = {"best": "best_of_k"}.get(method, method)
        assert f"python data_prep/{script}.py --config configs/{path.name}" in header
        monkeypatch.setattr(Path, "is_file", lambda path: True)  # another script's output may not be there yet
        parse_fields(read_config("", ["--config", str(path)], prepares), prepares)
        return
    folder, *classes = schemas().RECIPES[method]
    # Another run's output may not be there yet.
    start = (
        ["--model_name_or_path", str(ROOT / "tiny/base")] if "model_name_or_path: outputs/" in path.read_text() else []
    )
    parse_config(read_config("", ["--config", str(path), *start]), *classes)
    assert f"python {folder}/train.py --config configs/{path.name}" in path.read_text()


def test_the_schemas_are_current():
    """By them editors complete the YAMLs. After a change of fields: python docs/schema/make.py"""
    make = schemas()
    assert {path.stem for path in (ROOT / "docs/schema").glob("*.json")} == set(make.CONFIGS)
    for name in make.CONFIGS:
        assert (ROOT / f"docs/schema/{name}.json").read_text() == make.schema_text(name), name


def test_a_schema_holds_what_the_config_accepts():
    sft, dpo, filters = (
        json.loads((ROOT / f"docs/schema/{name}.json").read_text())["properties"] for name in ("sft", "dpo", "filter")
    )
    assert sft["heldout_fraction"]["maximum"] == 0.5
    assert sft["learning_rate"] == sft["learning_rate"] | {"type": "number", "minimum": 0, "maximum": 1}
    assert sft["packing_strategy"]["enum"] == ["bfd", "bfd_split", "wrapped"]
    assert {"type": "string"} in sft["eval_metrics"]["anyOf"]  # a list of one may be written as the one
    assert "robust" in dpo["loss_type"]["anyOf"][0]["items"]["enum"]
    assert "HF_HOME" in sft["env"]["properties"]
    assert "hub_token" not in sft
    assert filters["dataset_name"]["type"] == "string"


def test_a_typo_on_the_command_line_ends_with_code_2():
    done = recipe(learnig_rate="1e-3")
    assert done.returncode == 2
    assert "command line: learnig_rate: unknown key; did you mean learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_typo_in_a_yaml_ends_with_code_2(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text((ROOT / "configs/sft_tiny.yaml").read_text().replace("learning_rate:", "learnig_rate:"))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("learnig_rate"))
    done = recipe(config=path)
    assert done.returncode == 2
    assert re.search(rf"typo\.yaml:{line}: learnig_rate: unknown key; did you mean learning_rate\?", done.stderr)
    assert "Traceback" not in done.stderr + done.stdout


def test_help_is_for_people():
    done = recipe("--help")
    assert done.returncode == 0
    assert "--heldout_name" in done.stdout
    assert "huggingface.co/docs/trl" in done.stdout
    assert len(done.stdout.splitlines()) < 60


def test_a_missing_model_is_reported_beside_keys_of_another_method(tmp_path):
    """system_prompt is an older key of SFT and a field of online RL: in both the missing model is reported."""
    text = message(tmp_path, "system_prompt: Think.\n", "--model_name_or_path", "owner/nowhere")
    assert "system_prompt: is not used here" in text
    assert "command line: model_name_or_path: the model owner/nowhere is not on this machine" in text


def test_no_network_is_one_message_within_seconds():
    import time

    started = time.perf_counter()
    done = recipe(config="configs/sft_qwen.yaml")
    assert time.perf_counter() - started < 15
    assert done.returncode == 2
    assert "Qwen/Qwen3-0.6B-Base is not on this machine" in done.stderr
    assert "--config configs/sft_tiny.yaml" in done.stderr
    assert "Traceback" not in done.stderr
