"""Silent failures: what becomes of the rows in templates, masks, limits and packing."""

import json
import shutil

from conftest import ROOT
from silent_cases import CALL_AND_RESULT, PREVENTED, STOPS, TRAIN, WARNS, case
from stage import assistant, sums, user
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from transformers.utils import get_json_schema

from utils.generation.tools import calculator


@case(
    "D4",
    "`completion_only_loss: true` on `messages` rows",
    "it has no effect: the prompts are learnt too",
    STOPS,
    "sft.checks.check_masks",
)
def test_mask_without_effect(stage):
    done = stage.run("completion_only_loss: true\nassistant_only_loss: false")
    done.tells("mask_without_effect: completion_only_loss: true masks nothing", "Write assistant_only_loss: true")


@case(
    "D5",
    "`assistant_only_loss` with a template without generation marks, or with marks around everything",
    "an error for templates it does not know; a mask over whole rows, with a loss that looks healthy",
    STOPS,
    "sft.checks.check_masks",
)
def test_template_without_marks(stage):
    turn = "{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}"
    marked = "{% for m in messages %}{% generation %}" + turn + "{% endgeneration %}{% endfor %}"
    done = stage.run(f"chat_template: {stage.write('all.jinja', marked)}\naccept: [template_mismatch]")
    done.tells("mask_without_effect: assistant_only_loss: true masks nothing: the chat template marks every token")
    plain = stage.write("plain.jinja", "{% for m in messages %}" + turn + "{% endfor %}")
    stage.run(f"chat_template: {plain}").tells("SFTTrainer refuses", "generation")


@case(
    "D6",
    "rows longer than `max_length`",
    "cuts them, the ends of the answers first; packing with `bfd` drops the rest",
    STOPS,
    "utils.preflight.shared.check_lengths",
)
def test_truncated(stage):
    done = stage.run("max_length: 40")
    done.tells("truncated_rows: max_length = 40 cuts 24 of 24 sampled rows", "Write max_length: 49 to keep 99%")
    done = stage.run("max_length: 40\npacking: true\nassistant_only_loss: false")
    done.tells("truncated_rows", "or packing_strategy: bfd_split")
    done = stage.run(
        "max_length: 40\naccept: [truncated_rows]\noutput_dir: " + str(stage.folder / "out2"), flags=TRAIN
    )
    assert done.code == 0, done.said
    done.tells("ACCEPTED  truncated_rows")
    kept = json.loads((stage.folder / "out2/metrics.json").read_text())["findings"]
    assert [(f["name"], f["accepted"]) for f in kept] == [("truncated_rows", True)]
    assert "truncated_rows" in (stage.folder / "out2/report.html").read_text()


@case("D7", "`packing_strategy: wrapped`", "packed examples attend to each other", STOPS, "sft.checks.check_packing")
def test_wrapped_packing(stage):
    done = stage.run("packing: true\npacking_strategy: wrapped")
    done.tells(
        "wrapped_packing: packing_strategy: wrapped lets an example see the one before it",
        "Write packing_strategy: bfd",
    )


@case(
    "D8",
    "a tokenizer whose PAD is its EOS",
    "masks EOS out of the loss: the model never learns to stop",
    PREVENTED,
    ("utils.model.SPARE_PADS", ()),
    without_it="PAD and EOS are both '<|im_end|>'",
)
def test_pad_is_eos(stage):
    base = copied_base(stage, lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token))
    done = stage.run(f"model_name_or_path: {base}", flags=("--max_steps", 1))
    assert done.code == 0, done.said
    done.tells("100.0% of the rows end with <|im_end|>")
    assert AutoTokenizer.from_pretrained(stage.folder / "out").pad_token == "<|endoftext|>"


@case(
    "D9",
    "texts that begin with BOS, and a tokenizer that adds it",
    "every row begins with two BOS",
    STOPS,
    "utils.preflight.shared.check_tokens",
)
def test_double_bos(stage):
    def adds_bos(tokenizer):
        bos = tokenizer.bos_token = "<|endoftext|>"
        ids = [(bos, tokenizer.convert_tokens_to_ids(bos))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=ids)

    rows = [{"text": f"<|endoftext|>Ann has {n} nuts."} for n in range(8)]
    text = f"model_name_or_path: {copied_base(stage, adds_bos)}\nassistant_only_loss: false"
    done = stage.run(text, rows=rows)
    done.tells(
        "double_bos: 8 of 8 sampled rows (first 1, 2, 3, ...: '<|endoftext|>Ann",
        "begin with <|endoftext|> twice",
        "Remove",
    )


@case(
    "D10",
    "a template that drops `<think>` from earlier turns, or renders the prompt differently for generation",
    "trains on a text that the model will never see",
    STOPS,
    "utils.preflight.shared.check_template",
)
def test_template_differs(stage):
    thought = assistant("<think>\n1 and 1\n</think>\n\nThe answer is 2.")
    rows = [{"messages": [user(f"1 + {n}?"), thought, user("And 2 + 2?"), thought]} for n in range(8)]
    done = stage.run("assistant_only_loss: false", rows=rows)
    done.tells("lost_thinking: the chat template drops <think> from 8 of 8 sampled rows (first 1, 2, 3", "Keep one")
    turns = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    path = stage.write("other.jinja", turns + "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}")
    done = stage.run(f"chat_template: {path}\nassistant_only_loss: false", rows=sums(8))
    done.tells("template_mismatch: 8 of 8 sampled rows", "'Assistant: ' for generation, 'assistant: The answ")
    path = stage.write("small.jinja", turns.replace("m['content']", "m['content'].lower()"))
    stage.run(f"chat_template: {path}\nassistant_only_loss: false").tells(
        "altered_text: the chat template or tokenizer"
    )


@case(
    "D16",
    "ChatML rows",
    "also trains on the newline after `<|im_end|>`",
    WARNS,
    ("sft.checks.facts", lambda context: {}),
)
def test_newline_is_trained(stage):
    stage.run().tells("and the template's newline after it is learnt too")


@case("X2", "answers that begin beyond `max_length`", "drops the rows", STOPS, "utils.preflight.shared.check_lengths")
def test_dropped_rows(stage):
    rows = [*sums(30), {"messages": [user("word " * 300), assistant("Yes.")]}]
    stage.run(rows=rows).tells("dropped_rows: the trainer left out 1 of 31 rows: max_length = 256 leaves them nothing")
    done = stage.run("max_length: 20", rows=sums(24))
    done.tells("dropped_rows: the trainer left out 24 of 24 rows: max_length = 20 leaves them nothing", "Raise it")


@case("X7", "`messages` rows without a mask", "the user's turns are learnt too", WARNS, "sft.checks.check_masks")
def test_prompts_trained(stage):
    done = stage.run("assistant_only_loss: false")
    done.tells("WARNING   prompts_trained: every token is learnt", "Write assistant_only_loss: true")


@case(
    "X12",
    "`max_length` beyond the model's context",
    "trains positions that the model has never seen",
    STOPS,
    "utils.preflight.shared.check_lengths",
)
def test_over_context(stage):
    rows = [*sums(8), {"messages": [user("Hello."), assistant("word " * 1000)]}]
    done = stage.run("max_length: 4096", rows=rows)
    done.tells(
        "over_context: rows have up to", "(max_length: 4096), and the model's context ends at 1024", "Write max_length"
    )
    done = stage.run("max_length: 1000", rows=rows)
    done.tells("truncated_rows", "The model's context ends at 1024: split the longer rows, or remove them")


@case(
    "X16",
    "several turns, or tool calls, with Qwen3's own template and `assistant_only_loss`",
    "trains on its own template, which keeps empty `<think>` blocks that generation drops",
    STOPS,
    "utils.preflight.shared.check_template",
)
def test_template_of_trl(stage):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    asks = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [
        {"messages": [user(f"Add 1 and {n}."), asks, {"role": "tool", "name": "add", "content": "3"}, assistant("3.")]}
        for n in range(6)
    ]
    done = stage.run(rows=rows)
    done.tells("template_mismatch: 6 of 6 sampled rows", "write chat_template: qwen3_training, and generation has it")
    done = stage.run("chat_template: qwen3_training", rows=rows)
    assert done.code == 0, done.said


@case(
    "X17",
    "a template that does not render the answers",
    "drops every row, then fails without a reason",
    STOPS,
    "sft.checks.check_masks",
    without_it="eos_not_trained",
)
def test_no_answers(stage):
    path = stage.write("mute.jinja", "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}")
    rows = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in sums(8)]
    done = stage.run(f"chat_template: {path}\nassistant_only_loss: false", rows=rows)
    done.tells(
        "no_supervised_tokens: 8 of 8 sampled rows (first 1, 2, 3, ...: 'Ann has", "have no token to learn from"
    )


@case(
    "X26",
    "SFT on tool rows whose schema differs from the tool's",
    "trains on a prompt that generation never produces",
    STOPS,
    "utils.preflight.shared.check_template",
)
def test_another_schema(stage):
    schema = get_json_schema(calculator)
    schema["function"]["description"] = "Another text."
    tools = json.dumps([schema])
    rows = [
        {"messages": [row["messages"][0], *CALL_AND_RESULT, row["messages"][1]], "tools": tools} for row in sums(8)
    ]
    done = stage.run("chat_template: qwen3_training\nmax_length: 700\ntools: [calculator]", rows=rows)
    done.tells("template_mismatch: 8 of 8 sampled rows", "Another text.")


def copied_base(stage, change):
    """The tiny base with another tokenizer."""
    folder = stage.folder / "base"
    if not folder.exists():
        shutil.copytree(ROOT / "tiny/base", folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
    return folder
