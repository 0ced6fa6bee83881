"""The contract of utils/trl_internals.py: what its callers rely on, one test for each function, named after it.

A new version of TRL, transformers or datasets that changes something underneath fails here, by name.
"""

import ast
import inspect
import re
from collections import deque

import pytest
import torch
import trl
from conftest import ROOT
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, get_peft_model
from stage import assistant, labelled, pairs, sums, tasks, user
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
    import_utils,
)

from online_rl.rollouts import total_rewards
from online_rl.vllm_backend import SUPPORTED
from utils import trl_internals
from utils.generation import encode_prompt
from utils.preflight.preflight import without_limits

LIMIT = 48  # max_length: cuts a row of LONG
LONG = {"messages": [user("Ann has 5 nuts."), assistant("one two three four five six seven eight nine ten " * 5)]}
COMMON = {
    "use_cpu": True, "bf16": False, "report_to": "none", "per_device_train_batch_size": 4, "logging_steps": 1,
    "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True, "learning_rate": 1e-3,
}  # fmt: skip


SIDES = {"chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}


def template(name):
    return (trl_internals.SHIPPED_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def load_tokenizer(name="qwen3"):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/base")
    tokenizer.chat_template = template(name)
    return tokenizer


def load_model():
    return AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base")


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def sft_trainer(folder, name="qwen3", adapter=None, **settings):
    settings = COMMON | {"max_length": LIMIT, "assistant_only_loss": True, "shuffle_dataset": True} | settings
    return SFTTrainer(
        model=load_model(), args=SFTConfig(output_dir=str(folder), **settings), processing_class=load_tokenizer(name),
        train_dataset=Dataset.from_list([LONG, *sums(11)]), peft_config=adapter,
    )  # fmt: skip


def dpo_trainer(folder, model=None, adapter=None):
    return DPOTrainer(
        model=model or load_model(), args=DPOConfig(output_dir=str(folder), max_length=LIMIT, **COMMON),
        processing_class=load_tokenizer(), train_dataset=Dataset.from_list(pairs(8)), peft_config=adapter,
    )  # fmt: skip


def length(completions, **_):
    """A reward that differs from one completion to the next."""
    return [float(len(completion[0]["content"])) for completion in completions]


def grpo_trainer(folder, **tools):
    tokenizer = load_tokenizer()
    tokenizer.eos_token = "."  # the base ends its sentences, not yet its turns: completions differ in length
    settings = {"num_generations": 4, "max_completion_length": 24, "generation_batch_size": 8}
    return GRPOTrainer(
        model=load_model(), args=GRPOConfig(output_dir=str(folder), **COMMON, **settings), reward_funcs=[length],
        processing_class=tokenizer, train_dataset=Dataset.from_list(tasks(8)), **tools,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trainers")


@pytest.fixture(scope="module")
def sft(folder):
    return sft_trainer(folder)


@pytest.fixture(scope="module")
def dpo(folder):
    return dpo_trainer(folder)


@pytest.fixture(scope="module")
def kto(folder):
    return KTOTrainer(
        model=load_model(), args=KTOConfig(output_dir=str(folder), max_length=LIMIT, **COMMON),
        processing_class=load_tokenizer(), train_dataset=Dataset.from_list(labelled(8)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def grpo(folder):
    return grpo_trainer(folder)


@pytest.fixture(scope="module")
def adapted(folder):
    """With a LoRA adapter that is not the identity, as a new one is."""
    trainer = dpo_trainer(folder, adapter=lora())
    stir(trainer.model)
    return trainer


def stir(model):
    """Stand in for the training of an adapter, whose B matrices are zeros at first."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 10


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


# --- chat templates ---


def test_shipped_templates():
    """Templates that configs name, and each training template beside the one that it replaces."""
    named = {"qwen3", "qwen3_training"}
    for path in (ROOT / "configs").glob("*.yaml"):
        named |= set(re.findall(r"^chat_template: (\w+)\s", path.read_text(), re.MULTILINE))
    names = {path.stem for path in trl_internals.SHIPPED_TEMPLATES.glob("*.jinja")}
    assert named <= names
    assert {name.removesuffix("_training") for name in names} <= names


def test_can_call_tools():
    tokenizer = load_tokenizer()
    assert trl_internals.can_call_tools(tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert not trl_internals.can_call_tools(tokenizer)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training"])
def test_add_response_template(name):
    tokenizer = load_tokenizer(name)
    assert tokenizer.response_template is None
    trl_internals.add_response_template(tokenizer)
    assert tokenizer.response_template
    assert tokenizer.chat_template == template(name)


def test_add_response_template_to_what_it_does_not_know():
    tokenizer = load_tokenizer()
    tokenizer.chat_template = unknown = "{{ messages }}"
    with pytest.raises(ValueError):
        trl_internals.add_response_template(tokenizer)
    assert tokenizer.chat_template == unknown
    tokenizer.response_template = own = {"fields": {}}  # the user's own is kept
    trl_internals.add_response_template(tokenizer)
    assert tokenizer.response_template == own


def test_parse_response():
    def calculator(expression: str) -> str:
        """Work out a sum.

        Args:
            expression: The sum.
        """
        return expression

    tokenizer = load_tokenizer("qwen3_training")
    trl_internals.add_response_template(tokenizer)
    prefix = encode_prompt(tokenizer, [user("What is 2 + 3?")], {}, [calculator])

    def parse(text):
        ids = tokenizer(text)["input_ids"]
        return trl_internals.parse_response(tokenizer, ids, prefix, [calculator])

    said = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2 + 3"}}\n</tool_call><|im_end|>'
    message = parse(said)
    call = {"name": "calculator", "arguments": {"expression": "2 + 3"}}
    assert message["role"] == "assistant"
    assert [one["function"] for one in message["tool_calls"]] == [call]
    assert "tool_call>" not in (message.get("content") or "")
    assert parse("The answer is 5.<|im_end|>") == {"role": "assistant", "content": "The answer is 5."}
    assert not parse('<tool_call>\n{"name": "calc</tool_call><|im_end|>').get("tool_calls")  # broken: as plain text


def test_template_for_more_turns():
    """Qwen3's own template renders a call otherwise once its result follows; TRL's variant of it does not."""
    call = {"type": "function", "function": {"name": "calculator", "arguments": {}}}
    asked = [user("2 + 3?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    tokenizer = load_tokenizer()
    better = trl_internals.template_for_more_turns(tokenizer)

    def goes_on(text):
        head, whole = (
            tokenizer.apply_chat_template(turns, chat_template=text, tokenize=False)
            for turns in (asked, [*asked, {"role": "tool", "name": "calculator", "content": "5"}])
        )
        return whole.startswith(head)

    assert not goes_on(tokenizer.chat_template)
    assert goes_on(better)
    assert trl_internals.template_for_more_turns(load_tokenizer("qwen3_training")) is None


def test_training_template(sft, dpo, folder):
    assert trl_internals.training_template(sft) == template("qwen3_training")
    assert trl_internals.training_template(sft_trainer(folder, "qwen3_training")) is None
    assert trl_internals.training_template(dpo) is None


# --- rows as a trainer prepares them ---


def test_prepare_sft_rows(sft):
    """Rows in their order, whole where the view lifts the limit, and the answers and their ends alone trained."""
    rows = Dataset.from_list([LONG, *sums(3)])
    prepared = trl_internals.prepare_sft_rows(without_limits(sft), rows)
    assert prepared.column_names == ["input_ids", "labels"]
    assert len(prepared) == len(rows)
    assert len(prepared[0]["input_ids"]) > LIMIT >= max(len(ids) for ids in sft.train_dataset["input_ids"])
    tokenizer = sft.processing_class
    for row, given in zip(prepared, rows, strict=True):
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
        trained = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert trained.removesuffix("\n").endswith(given["messages"][1]["content"] + tokenizer.eos_token)
        assert given["messages"][0]["content"] not in trained


def test_prepare_answers(dpo):
    """Prompt and side together are the rendered dialogue, with no row dropped for a prompt beyond the limit."""
    rows = Dataset.from_list([*pairs(3), {"prompt": [user("nuts " * LIMIT)], **SIDES}])
    prepared = trl_internals.prepare_answers(without_limits(dpo), rows, ["prompt_ids", "chosen_ids", "rejected_ids"])
    assert prepared.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert len(prepared) == len(rows)
    tokenizer = dpo.processing_class
    for row, given in zip(prepared, rows, strict=True):
        for side in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(given["prompt"] + given[side], return_dict=True)["input_ids"]
            assert row["prompt_ids"] + row[f"{side}_ids"] == ids
            assert tokenizer.eos_token_id in row[f"{side}_ids"]


def test_prepare_answers_of_kto(kto):
    """Prompt and completion together are the rendered dialogue, the label beside them."""
    rows = Dataset.from_list(labelled(4))
    prepared = trl_internals.prepare_answers(without_limits(kto), rows, ["prompt_ids", "completion_ids", "label"])
    assert prepared.column_names == ["prompt_ids", "completion_ids", "label"]
    assert prepared["label"][:] == rows["label"][:]
    tokenizer = kto.processing_class
    for row, given in zip(prepared, rows, strict=True):
        ids = tokenizer.apply_chat_template(given["prompt"] + given["completion"], return_dict=True)["input_ids"]
        assert row["prompt_ids"] + row["completion_ids"] == ids
        assert tokenizer.eos_token_id in row["completion_ids"]


class Shop:
    """An environment."""

    def reset(self, **_):
        return ""

    def buy(self, item: str) -> str:
        """Buy one thing.

        Args:
            item: What to buy.
        """
        return item


class Garden:
    """Another environment."""

    def reset(self, **_):
        return ""

    def plant(self, seed: str) -> str:
        """Plant one seed.

        Args:
            seed: What to plant.
        """
        return seed


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")
def test_prepare_prompts(grpo, folder):
    """As the evaluation renders them, with the tools of the row's own environment."""
    rows = Dataset.from_list(tasks(3))

    def rendered(trainer, tools):
        tokenizer = trainer.processing_class
        settings = {"chat_template": trl_internals.training_template(trainer) or tokenizer.chat_template}
        return [
            encode_prompt(tokenizer, row["prompt"], {}, shown, settings)
            for row, shown in zip(rows, tools, strict=True)
        ]

    assert trl_internals.prepare_prompts(grpo, rows) == rendered(grpo, [None] * 3)
    one = grpo_trainer(folder, environment_factory=Shop)
    assert trl_internals.prepare_prompts(one, rows) == rendered(one, [[Shop().buy]] * 3)
    several = grpo_trainer(folder, environment_factory={"shop": Shop, "garden": Garden})
    mixed = rows.add_column("environment", ["shop", "garden", "shop"])
    tools = [[Shop().buy], [Garden().plant], [Shop().buy]]
    assert trl_internals.prepare_prompts(several, mixed) == rendered(several, tools)


def test_token_counts():
    rows = Dataset.from_dict({"input_ids": [[1] * count for count in (3, 1, 4, 1, 5)]})
    many = concatenate_datasets([rows, rows.select([4, 0])])
    for case in (
        rows,
        rows.select([4, 0]),
        rows.select(range(1, 3)),
        rows.shuffle(seed=1),
        many,
        many.shuffle(seed=1),
    ):
        counts = trl_internals.token_counts(case, "input_ids")
        assert counts.tolist() == [len(ids) for ids in case["input_ids"]]
        assert (counts + counts).max() == 2 * counts.max()  # a tensor of its own, to add and to sort


# --- a step tried before training ---


def counted(trainer):
    """Whatever a trainer and its state count or collect: numbers, texts, and the sizes of what is not empty."""
    owners = vars(trainer), vars(trainer.state), trainer._metrics["train"], vars(trainer).get("_logs", {})
    found = {}
    for number, owner in enumerate(owners):
        for name, value in owner.items():
            value = len(value) if isinstance(value, (dict, list, deque)) else value
            if isinstance(value, (int, float, str)) and value:
                found[number, name] = value
    return found


def batch_of(trainer, count=2):
    return [trainer.train_dataset[i] for i in range(count)]


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_untouched_counters(method, request):
    """Nothing of the trial is left in the trainer: the first log of the run is the run's own."""
    trainer = request.getfixturevalue(method)
    trainer.model.train()
    before = counted(trainer)
    with trl_internals.untouched_counters(trainer):
        if method == "grpo":
            trl_internals.try_rollout(trainer, batch_of(trainer, 1) * 4)
        else:
            trl_internals.try_backward(trainer, batch_of(trainer))
        assert counted(trainer) != before
        assert trainer._metrics["train"]
    assert counted(trainer) == before
    assert not trainer._metrics["train"]


def test_try_backward(sft):
    """The gradients of the mean loss of the labelled tokens."""
    sft.model.zero_grad()
    trl_internals.try_backward(sft, batch_of(sft))
    found = {name: weight.grad.clone() for name, weight in sft.model.named_parameters()}
    sft.model.zero_grad()
    batch = sft.data_collator(batch_of(sft))
    labels = batch.pop("labels")[:, 1:]
    cross_entropy(sft.model(**batch).logits[:, :-1].flatten(0, 1), labels.flatten()).backward()
    for name, weight in sft.model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)
    sft.model.zero_grad()


def test_try_backward_fills_the_metrics_that_alarms_read(dpo):
    dpo.model.train()
    dpo.model.zero_grad()
    with trl_internals.untouched_counters(dpo):
        trl_internals.try_backward(dpo, batch_of(dpo))
        assert {"logps/chosen", "logps/rejected", "rewards/margins"} <= dpo._metrics["train"].keys()
    assert all(weight.grad.abs().sum() > 0 for weight in dpo.model.parameters())
    dpo.model.zero_grad()


def test_try_rollout(grpo):
    """The tokens that the model made for the first row, and the figures that checks and alarms read."""
    grpo.model.train()
    torch.manual_seed(0)
    with trl_internals.untouched_counters(grpo):
        first, metrics = trl_internals.try_rollout(grpo, batch_of(grpo, 1) * 8)
        texts = [completion[0]["content"] for completion in grpo._logs["completion"]]
    tokenizer = grpo.processing_class
    assert tokenizer.eos_token_id not in first[:-1]
    assert len(first) == 24 or first[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in first
    assert tokenizer.decode(first, skip_special_tokens=True) == texts[0]
    assert metrics["reward"] == pytest.approx(sum(map(len, texts)) / 8)
    assert metrics["rewards/length/mean"] == pytest.approx(metrics["reward"])
    assert 0 <= metrics["completions/clipped_ratio"] < 1  # those that ended early were padded
    assert 0 <= metrics["frac_reward_zero_std"] <= 1


def test_rollout_logs(grpo):
    """Prompt by prompt, in one order, and in the form in which the report shows them."""
    grpo.model.train()
    rows = [row for row in batch_of(grpo) for _ in range(4)]
    with trl_internals.untouched_counters(grpo):
        trl_internals.try_rollout(grpo, rows)
        logs = trl_internals.rollout_logs(grpo)
        assert list(logs["prompt"]) == [row["prompt"] for row in rows]
        expected = [float(len(completion[0]["content"])) for completion in logs["completion"]]
        assert list(logs["rewards"]) == grpo.reward_func_names == ["length"]
        assert list(logs["rewards"]["length"]) == total_rewards(grpo) == expected
        best = max(range(4), key=expected.__getitem__)
        assert len(logs["advantages"]) == 8
        assert logs["advantages"][best] == max(list(logs["advantages"])[:4])
    assert not trl_internals.rollout_logs(grpo)["prompt"]


# --- models ---


def test_generation_model(folder):
    """The very model, ready to generate: checkpointing, under which there is no cache, is off meanwhile."""
    trainer = sft_trainer(folder, gradient_checkpointing=True)
    trainer.model.gradient_checkpointing_enable()
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode(), trl_internals.generation_model(trainer) as model:
        assert model is trainer.accelerator.unwrap_model(trainer.model)
        assert not model.is_activation_checkpointing
        made = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert trainer.model.is_activation_checkpointing
    torch.testing.assert_close(made, load_model().generate(ids, max_new_tokens=4, do_sample=False))


def test_reference_adapter(adapted, folder):
    """A new adapter is switched off; of one that the run began with, TRL keeps a copy."""
    ids = [5, 6, 7]
    trained = logits(adapted.model, ids)
    with trl_internals.reference_adapter(adapted.model):
        torch.testing.assert_close(logits(adapted.model, ids), logits(load_model(), ids))
    torch.testing.assert_close(logits(adapted.model, ids), trained)
    assert not torch.allclose(trained, logits(load_model(), ids))

    begun = get_peft_model(load_model(), lora())
    stir(begun)
    first = logits(begun, ids)
    model = dpo_trainer(folder, model=begun).model
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            weight.data *= 2
    trained = logits(model, ids)
    assert not torch.allclose(trained, first)
    with trl_internals.reference_adapter(model):
        torch.testing.assert_close(logits(model, ids), first)
    torch.testing.assert_close(logits(model, ids), trained)


@pytest.mark.parametrize("method", ["sft", "dpo", "adapted"])
@torch.no_grad()
def test_answer_log_probs(method, request):
    """As from the full logits, for each row of a padded batch."""
    trainer = request.getfixturevalue(method)
    batch = trainer.data_collator(batch_of(trainer, 3))
    if method != "sft":  # all chosen, then all rejected
        assert batch["input_ids"].shape[0] == 6
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    assert 0 in batch["attention_mask"]
    totals, counts = trl_internals.answer_log_probs(trainer.model, batch)
    labels = batch.pop("labels")[:, 1:]
    each = trainer.model(**batch).logits[:, :-1].log_softmax(-1)
    each = each.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(totals, (each * (labels != -100)).sum(-1), rtol=1e-4, atol=1e-3)
    assert counts.tolist() == (labels != -100).sum(-1).tolist()


@pytest.mark.parametrize("adapter", [None, lora()], ids=["full", "LoRA"])
def test_load_finished(adapter, tmp_path):
    """Weights and state of the checkpoint, without a step."""
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "adapter": adapter}
    trained = sft_trainer(tmp_path, **settings)
    trained.train()
    checkpoint = tmp_path / "checkpoint-2"
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer = sft_trainer(tmp_path, **settings)
    trl_internals.load_finished(trainer, str(checkpoint), state)
    assert trainer.state.global_step == trainer.state.max_steps == 2
    assert trainer.state.log_history
    for found, wanted in zip(trainer.model.parameters(), trained.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


# --- nothing else depends on what TRL does not promise ---

OUTSIDE = [
    path
    for top in ("utils", "sft", "dpo", "online_rl", "data_prep", "tiny", "benchmarks")
    for path in sorted((ROOT / top).rglob("*.py"))
    if path != ROOT / "utils/trl_internals.py"
]


def test_every_function_has_a_test():
    functions = inspect.getmembers(trl_internals, inspect.isfunction)
    names = {name for name, function in functions if function.__module__ == trl_internals.__name__}
    constants = {name.lower() for name in vars(trl_internals) if name.isupper()}
    for name in sorted(names | constants):
        assert f"test_{name}" in globals(), f"utils/trl_internals.py: {name} has no contract test"


def test_private_names_are_touched_in_one_file():
    """Elsewhere no name of another object begins with an underscore, and TRL is imported by its public names."""
    for path in OUTSIDE:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{node.lineno}" if isinstance(node, (ast.stmt, ast.expr)) else ""
            if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                assert own, f"{where} touches {node.attr}; move it to utils/trl_internals.py"
            elif isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
                assert not {name for name in modules if name.startswith("trl.")}, f"{where} imports {modules}"
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl":
                assert node.module in ("trl", "trl.rewards"), f"{where} imports from {node.module}"
                public = {name for name in dir(trl) if not name.startswith("_")}
                names = {alias.name for alias in node.names}
                assert node.module != "trl" or names <= public, f"{where} imports {names - public}"


def test_trainers_have_every_attribute_that_is_read(sft, dpo, grpo):
    """`trainer.NAME` in a method's folder is there on its trainer, and in utils/ on those that can come there."""
    trainers = {"sft": [sft], "dpo": [dpo], "online_rl": [grpo], "utils": [sft, dpo, grpo]}
    only = {"beta": [dpo, grpo], "ld_alpha": [dpo], "ref_model": [dpo, grpo]}  # asked of preference and RL trainers
    for path in OUTSIDE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "trainer":
                method = path.relative_to(ROOT).parts[0]
                for trainer in only.get(node.attr, trainers.get(method, [])):
                    assert node.attr in dir(trainer), f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}"


def test_packed_rows_are_collated_as_one(sft, folder):
    """As the held-out loss relies on: such a batch has one loss, so that it takes rows singly."""
    packed = sft_trainer(folder, packing=True)
    for trainer, count in ((sft, 2), (packed, 1)):
        assert trainer.data_collator.padding_free == (count == 1)
        assert len(trainer.data_collator(batch_of(sft))["input_ids"]) == count


def test_vllm_versions_are_those_of_trl():
    """TRL keeps no list of its own for these; its code is the list."""
    code = inspect.getsource(import_utils.is_vllm_available)
    assert tuple(re.findall(r'Version\("([0-9.]+)"\)', code)) == SUPPORTED
