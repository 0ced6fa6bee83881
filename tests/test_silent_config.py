"""Silent failures: mistakes in the config."""

import os
import subprocess
import sys
import time

import yaml
from conftest import ROOT
from ruamel.yaml import YAML
from silent_cases import MISTAKES, PREVENTED, STOPS, TRAIN, case, config_of, nothing
from trl import SFTConfig

from utils.config import parse_config, read_config


@case("C1", "`learnig_rate: 1e-3` in the YAML", "ignores the key and trains at the default rate", STOPS, MISTAKES)
def test_typo(stage):
    stage.run("learnig_rate: 1e-3").tells("run.yaml:1: learnig_rate: unknown key; did you mean learning_rate?")


@case(
    "C2",
    "keys from older versions (`warmup_ratio`, `max_seq_length`, `torch_dtype`, ...)",
    "ignores them",
    STOPS,
    MISTAKES,
)
def test_moved_keys(stage):
    text = "warmup_ratio: 0.1\nmax_seq_length: 512\nmax_prompt_length: 9\nevaluation_strategy: 'no'\n"
    text += "torch_dtype: bfloat16\noverwrite_output_dir: true\nreference_free: true\nno_cuda: true\ntokenizer: x"
    done = stage.run(text)
    done.tells("run.yaml:1: warmup_ratio: is not used here: write warmup_steps: 0.1", "write max_length: 512")
    done.tells("max_prompt_length: is not used here: remove it: filter long prompts", "write eval_strategy: no")
    done.tells("write dtype: bfloat16", "run.yaml:6: overwrite_output_dir", "gone from TRL", "write use_cpu: true")
    done.tells("9 mistakes in the config", "run.yaml:9: tokenizer: is not used here: remove it")


@case(
    "C3",
    "values of the wrong type or out of range (`learning_rate: [1]`, `packing: 3`, `max_length: -5`)",
    "accepts most of them",
    STOPS,
    ("utils.config.parse.check_value", lambda key, value, *_: value),
)
def test_bad_values(stage):
    stage.run("packing: 3").tells("run.yaml:1: packing: 3 is not true or false")
    text = "learning_rate: [1]\nper_device_train_batch_size: 2.5\npacking: 3\n"
    text += "gradient_accumulation_steps: 0\nmax_length: -5"
    done = stage.run(text)
    done.tells("run.yaml:1: learning_rate: [1] is not a number", "2.5 is not a whole number", "3 is not true or false")
    done.tells("0 is out of range. Write at least 1", "run.yaml:5: max_length: -5 is out of range")


@case(
    "C4",
    "an invalid choice (`loss_type: sigmiod`, `vllm_mode: x`, `scale_rewards: y`, `packing_strategy: foo`)",
    "accepts it; DPO fails at its first step",
    STOPS,
    ("utils.config.parse.check_value", lambda key, value, *_: value),
)
def test_bad_choice(stage):
    stage.run("packing_strategy: foo").tells("run.yaml:1: packing_strategy: 'foo' is not a choice; write one of bfd")
    stage.run("loss_type: sigmiod", method="dpo").tells("'sigmiod' is not a choice; did you mean sigmoid?")
    stage.run("vllm_mode: x\nscale_rewards: y", method="grpo").tells(
        "write one of colocate, server", "write one of group"
    )


@case("C5", "the same key twice", "uses the last one", STOPS, ("utils.config.read.key_mistakes", lambda places: []))
def test_key_twice(stage):
    done = stage.run("learning_rate: 1e-3\nlearning_rate: 1e-4")
    done.tells("run.yaml:2: learning_rate: stands twice (first at", "Remove one")


class OlderYAML(YAML):
    def load(self, text):
        return yaml.safe_load(text)  # YAML 1.1, as TRL reads it


@case(
    "C6",
    "a number like `1e-6` without a decimal point, which YAML 1.1 reads as a string",
    "keeps the string inside `lr_scheduler_kwargs` and the like",
    PREVENTED,
    ("utils.config.read.YAML", OlderYAML),
    without_it="assert {'min_lr': '1e-6'} == {'min_lr': 1e-06}",
)
def test_number_without_a_point(stage):
    training = config_of(stage, "lr_scheduler_kwargs: {min_lr: 1e-6}").training
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert config_of(stage, "learning_rate: 2e-5").training.learning_rate == 2e-5
    stage.run('learning_rate: "2e-5"').tells("'2e-5' is not a number. Write a number, without quotes")


@case(
    "C7",
    "`--config=file.yaml`, `--max-steps 3`, a dashed key in the YAML",
    "does not understand them",
    PREVENTED,
    ("utils.config.read.key_mistakes", lambda places: []),
)
def test_dashes(stage):
    source = read_config("", [f"--config={stage.yaml('sft', '')}", "--max-steps", "3"])
    assert parse_config(source, SFTConfig).training.max_steps == 3
    stage.run("learning-rate: 1e-3").tells("run.yaml:1: learning-rate: keys have no dashes. Write learning_rate")


@case(
    "C8",
    "`env:` with `HF_HOME`, or with any other variable",
    "sets it after the library has read it; lets any variable be set",
    PREVENTED,
    "utils.config.read.set_environment",
    without_it="assert 'elsewhere' == '/there'",
)
def test_env_block(stage):
    stage.monkeypatch.setenv("HF_HOME", "elsewhere")
    read_config("", ["--config", str(stage.yaml("sft", "env: {HF_HOME: /there}"))])
    assert os.environ["HF_HOME"] == "/there"
    script = "import sys, utils.config; print(sorted({'huggingface_hub', 'datasets', 'trl'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"  # so env: is set before they read it
    stage.run("env: {PATH: /there}").tells("run.yaml:1: env: PATH may not be set here. Set it in the shell")


@case(
    "C9",
    "no setting for the device, or `bf16: true`, on a machine without an accelerator",
    '"Your setup doesn\'t support bf16/gpu"',
    PREVENTED,
    ("utils.config.parse.resolve", lambda source, values: dict(values)),
    without_it="Your setup doesn't support bf16/gpu",
)
def test_no_accelerator(stage):
    done = stage.run("bf16: true")
    assert done.code == 0, done.said
    done.tells("no accelerator: training in float32 on the CPU")


@case(
    "C10",
    "`eval_strategy` without any rows to evaluate on",
    "`KeyError: 'test'`",
    STOPS,
    MISTAKES,
    without_it="didn't pass an `eval_dataset`",
)
def test_nothing_to_evaluate(stage):
    done = stage.run("eval_strategy: steps")
    done.tells("run.yaml:1: eval_strategy: there are no rows to evaluate on. Write heldout_fraction")


@case(
    "C11",
    "no `model_name_or_path`",
    "`'NoneType' object has no attribute 'config'`",
    STOPS,
    "utils.config.parse.check_together",
    without_it="no tokenizer can be loaded from None",
)
def test_no_model(stage):
    stage.monkeypatch.setattr(time, "sleep", nothing)  # between retries, which come where the check does not stop it
    stage.run("", drop=["model_name_or_path"]).tells("model_name_or_path: is missing. Write the model to start from")


@case(
    "C12",
    "a model from the hub, without a network",
    "minutes of retries, then a traceback",
    STOPS,
    "utils.config.hub.require_hub",
    without_it="no tokenizer can be loaded from Qwen/Qwen3-0.6B",
)
def test_no_network(stage):
    stage.monkeypatch.setattr(time, "sleep", nothing)
    done = stage.run("model_name_or_path: Qwen/Qwen3-0.6B")
    done.tells("run.yaml:1: model_name_or_path: the model Qwen/Qwen3-0.6B is not on this machine", "cannot be reached")
    done.tells("Without a network, this runs as it is", "_tiny.yaml")


@case(
    "C13",
    "`output_dir` of another run",
    "overwrites it, or resumes from it",
    STOPS,
    ("utils.run.run.folder_state", lambda *_: "new"),
)
def test_anothers_folder(stage):
    assert stage.run("max_steps: 1", flags=TRAIN).code == 0
    done = stage.run("max_steps: 2", flags=TRAIN)
    done.tells("holds a run with another config", "max_steps: 1 -> 2", "Write another output_dir")


@case("X5", "DPO: `label_smoothing` with `loss_type: sigmoid`", "it has had no effect since TRL 0.29", STOPS, MISTAKES)
def test_smoothing_without_effect(stage):
    done = stage.run("label_smoothing: 0.1", method="dpo")
    done.tells("run.yaml:1: label_smoothing: has no effect with sigmoid. Write loss_type: robust")


@case(
    "X6",
    "DPO: more or fewer `loss_weights` than losses",
    "fails at its first step",
    STOPS,
    MISTAKES,
    without_it="must have the same length as `loss_type`",
)
def test_weights_of_losses(stage):
    done = stage.run("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", method="dpo")
    done.tells("run.yaml:2: loss_weights: has 1 numbers for 2 losses. Write one for each")


@case(
    "X14",
    "`model_init_kwargs: {dtype: ...}`",
    "`TypeError`, or no effect",
    STOPS,
    MISTAKES,
    without_it="got multiple values for keyword argument 'dtype'",
)
def test_kwargs_of_the_model(stage):
    stage.run("model_init_kwargs: {dtype: bfloat16}").tells(
        "model_init_kwargs: dtype is a key of its own. Write dtype:"
    )


@case("X15", "a name in `accept:` that is not a finding", "(has no `accept`)", STOPS, MISTAKES)
def test_accepted_names(stage):
    stage.run("accept: [truncated_row]").tells(
        "run.yaml:1: accept: there is no finding 'truncated_row'; did you mean truncated_rows?"
    )
