"""filter.py: each rule on what it must drop and must keep, and the whole by its command line."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.filter import FilterConfig
from data_prep.filters import scan
from data_prep.filters import single_row as rules
from data_prep.filters.near_duplicates import band_size, clusters, find_copies, signatures
from data_prep.filters.personal_data import find_personal_data
from data_prep.filters.scanner import load_identifier
from data_prep.filters.texts import HASHES, OPERATOR, SEPARATOR, RowTexts, Words, words_of
from utils.config import UserError

IDENTIFIER = load_identifier(["en"])
USER, ASSISTANT = ({"role": role, "content": role[0]} for role in ("user", "assistant"))


def row(question, answer, **more):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | more


def good(count, start=0):
    rng = random.Random(start)
    names = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn"]
    return [
        row(
            f"{rng.choice(names)} {n} has {rng.randrange(99)} {rng.choice(['nuts', 'pens', 'cups'])} and gets "
            f"{rng.randrange(99)}. How many of {n}?",
            f"That is {n} and {rng.randrange(9999)} for {rng.choice(names)}. The answer is {n}.",
        )
        for n in range(start, start + count)
    ]


def run(folder, rows, *flags, **rules):
    text = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows)
    (folder / "rows.jsonl").write_text(text)
    settings = {"dataset_name": str(folder / "rows.jsonl"), "output_file": str(folder / "clean.jsonl")} | rules
    path = folder / "filter.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    words = [sys.executable, str(ROOT / "data_prep/filter.py"), "--config", str(path), *flags]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def filtered(folder, rows, *flags, **rules):
    """(kept rows, manifest)."""
    done = run(folder, rows, *flags, **rules)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in (folder / "clean.jsonl").read_text().splitlines()]
    return kept, json.loads((folder / "clean.manifest.json").read_text())


def test_rows_in_every_format_are_kept_as_they_are(tmp_path):
    turn = [{"role": "user", "content": "q ä"}]
    answer = [{"role": "assistant", "content": "a"}]
    rows = [
        row("one?", "1"), {"prompt": "two?", "completion": "2", "id": 7}, {"prompt": turn, "completion": answer},
        {"text": "plain text"}, {"prompt": turn, "chosen": answer, "rejected": answer}, {"prompt": turn},
        {"question": "five?", "answer": "#### 5"},
    ]  # fmt: skip
    kept, manifest = filtered(tmp_path, rows)
    assert kept == rows
    assert manifest["counts"] == {"in": 7, "out": 7}
    assert (tmp_path / "clean.jsonl").read_text() == (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    "bad",
    [
        {"foo": 1}, {"messages": []}, {"messages": [{"role": "user", "content": "x"}]}, row("q", ""), row("q", "  "),
        {"prompt": "x", "completion": ""}, {"messages": "text"}, {"messages": [1, 2]}, {"text": ""}, {"text": None},
        {"prompt": "x", "completion": []},
        {"messages": [{"content": "x"}]}, {"prompt": {"a": 1}, "completion": "x"}, {"prompt": "x", "completion": 3},
    ],
)  # fmt: skip
def test_what_is_not_a_training_row_is_dropped(tmp_path, bad):
    kept, manifest = filtered(tmp_path, [*good(3), bad], "--start_over")
    assert kept == good(3)
    assert manifest["counts"] == {"in": 4, "out": 3, "invalid_row": 1}
    assert manifest["examples"]["invalid_row"][0]["row"] == 4


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, (["u", "u"], [], ["a", "a"], "a", "")),
        ({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}, (["u", "u"], ["a"], ["a"], "a", "")),
        ({"prompt": "q", "chosen": "c", "rejected": "r"}, (["q"], [], ["c"], "c", "r")),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, USER]}, (["u"], [], ["a"], "a", "u")),
        ({"chosen": "Q: x A: yes", "rejected": "Q: x A: no"}, (["Q: x A:"], [], [" yes"], " yes", " no")),
        ({"question": "q", "answer": 5}, (["q"], [], ["5"], "5", "")), ({"text": "t"}, ([], [], ["t"], "t", "")),
    ],
)  # fmt: skip
def test_the_parts_of_a_row(row, parts):
    found = RowTexts.of(row)
    assert (found.questions, found.context, found.answers, found.response, found.rejected) == parts


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I cannot assist with this.", "As an AI language model, I have",
        "Sorry, I can't do that.", "<think>Hm.</think>\n\nI apologize, but no.", "**I am unable to help**",
        "I am a small model and I cannot help.", "Lorem ipsum dolor",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "I am sorry, but I cannot provide that.", "I'm sorry, I can't assist.", "I'm unable to help with this.",
        "I'm not able to provide that.", "Unfortunately, I cannot help.", "I must decline.", "No. I won't do that.",
    ],
)  # fmt: skip
def test_refusals(text):
    assert rules.refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "It cannot be known. It is not said how many.", "There is not enough information to answer.",
        "I can help: the answer is 4.", "The answer is 4. I'm sorry, but the question is odd.", "I think it is 4.",
        "As an aid, take paper.", "<think>I cannot help it.</think>4", "I can't help but smile at that.",
        "As an AI engineer, you will write code.", "I'm sorry, but your flight has been cancelled. Here is why.",
        "I cannot answer for others, but I like 42.", "No, 4 is not prime.", "Unfortunately, it rains.",
    ],
)  # fmt: skip
def test_honest_answers_are_not_refusals(text):
    assert rules.refusal(text) is None


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("<think>\nhm\n</think>\n\n4", False), ("hm\n</think>\n\n4", False), ("<think>\nhm", True),
        ("<think>a</think><think>b", True), ("<think>a</think>  ", True), ("a</think>b</think>c", True),
        ("</think>\n\n4", True),
        (CALL, False), (CALL.replace("}}", "}"), True), (CALL.replace('"name"', '"nom"'), True),
        (CALL.removesuffix("</tool_call>"), True), ("```python\nx = 1\n```", False), ("```python\nx = 1", True),
        ("\\boxed{\\frac{1}{2}}", False), ("\\boxed{\\frac{1}{2}", True), ("plain.", False),
        ("\\boxed{f = \\left\\{ x \\right.}", False), ('if line.startswith("```"): pass', False),
        ("<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>", False),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>', True),
    ],
)  # fmt: skip
def test_broken_format(text, broken):
    assert bool(rules.broken_format(text)) == broken


@pytest.mark.parametrize(
    ("function", "broken"),
    [
        ({"name": "f", "arguments": {"x": 1}}, False), ({"name": "f", "arguments": '{"x": 1}'}, False),
        ({"name": "f", "arguments": "{x"}, True), ({"name": "", "arguments": {}}, True), ({"arguments": {}}, True),
        ({"name": "f", "arguments": [1]}, True), ({"name": "f", "arguments": ""}, False), ({"name": "f"}, False),
    ],
)  # fmt: skip
def test_tool_calls_in_messages(function, broken):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert bool(rules.broken_calls({"messages": [call]})) == broken
    assert rules.broken_calls({"finish_reason": "length"})
    assert rules.broken_calls({"messages": [{"role": "assistant", "content": "x", "tool_calls": True}]})


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("The answer is 4.", False),
        ("The answer is 4", False),
        ("x = {1}", False),
        ("Done!", False),
        ("是的", False),
        ("`code`", False),
        ("The answer is", True),
        ("and then,", True),
        ("a list:\n-", True),
        ("", False),
        ("B", False),
        ("Paris", False),
        ("5 km", False),
        ("Best regards,\nJohn", False),
        ("def f(x):\n    return x", False),
        ("Some things are here to buy:\n- one long item of many words that goes on and on for a while", False),
        ("It begins. Then it goes on for quite some time and in the middle of a long sentence it sto", True),
    ],
)
def test_truncated_endings(text, cut):
    assert bool(rules.truncated_ending(text)) == cut


def test_repetition():
    prose = (ROOT / "CONTRIBUTING.md").read_text()
    assert rules.repetition(prose, words_of(prose)) is None
    for bad in ("the same line\n" * 8, "go on and " * 40, prose[:900] + prose[:900]):
        assert rules.repetition(bad, words_of(bad)), bad[:40]
    entries = json.dumps([{"name": f"x{n}", "type": "string", "default": None} for n in range(9)], indent=2)
    grid = "\n".join(" ".join("1" if i == k else "0" for k in range(8)) for i in range(8))
    table = "\n".join(f"7 x {n} = {7 * n}" for n in range(20))
    code = "```js\n" + "app.get('/', (req, res) => {\n  res.send('hi');\n});\n" * 9 + "```\nThat is all."
    for fine in ("no no no no", entries, grid, table, code):
        assert rules.repetition(fine, words_of(fine)) is None, fine


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe@mail.org", "e-mail"), ("call +44 20 7946 0958", "telephone"),
        ("call (555) 555-0123", "telephone"), ("my card 4111 1111 1111 1111", "card"),
        ("DE89 3704 0044 0532 0130 00", "IBAN"), ("host 8.8.4.4 is down", "IP"), ("hf_" + "a1B2" * 9, "access key"),
        ("sk-proj-" + "abcd1234" * 4, "access key"), ("AKIA" + "ABCDEFGH12345678", "access key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"), ("85.210.4.3", "IP"), ("jane.roe@test.de", "e-mail"),
        ("call 555.123.4567" .replace("123", "223"), "telephone"), ("Amex 3782 822463 10005", "card"),
        ("IBAN ES91 2100 0418 4502 0005 1332 BIC CAIXESBB", "IBAN"), ("AIza" + "Ab3_" * 8 + "xyz", "access key"),
        ("+14155550123 is mine", "telephone"), ("Mastercard 2223 0031 2200 3222", "card"),
    ],
)  # fmt: skip
def test_personal_data(text, kind):
    assert kind in find_personal_data(text)


@pytest.mark.parametrize(
    "text",
    [
        "12 + 7 = 19, and 1,234,567 - 89 = 1,234,478", "3.14159265358979", "2024-11-24 at 10:30", "version 1.2.3",
        "mail me at user@example.com", "127.0.0.1", "4111 1111 1111 1112", "1234567890123456", "@home", "a sk-ip",
        "f(x) = 2 ** 100 = 1267650600228229401496703205376", "section 1.2.3.4.5", "123 456 789 + 987 654 321",
        "DE00 3704 0044 0532 0130 00", "git clone git@github.com:huggingface/trl.git", "q@k.transpose(-2, -1)",
        "x@self.weight + b", "npm i pkg@1.0.beta", "foo==4.2.0.1", "OID 1.3.6.1 tree", "172.16.0.1", "203.0.113.5",
        "900-300-2000 = -1400", "+100 200 300 400", "+1234567890", "2^45 = 35184372088832", "1 + 1 = 4111111111111111",
        "1000 2000 3000 4000 5000\n4111 1111 1111 1111 1000", "W@x.T", "0.1.2.3 and 10.0.0.1",
    ],
)  # fmt: skip
def test_sums_are_not_personal_data(text):
    assert find_personal_data(text) is None


def test_the_tiny_world_passes_every_rule():
    for name in ("sft_messages", "sft_tools", "dpo_honesty"):
        for line in (ROOT / f"tiny/data/{name}.jsonl").read_text().splitlines()[:500]:
            made = json.loads(line)
            part = RowTexts.of(made)
            assert rules.broken_calls(made) is None, made
            for response in part.answers:
                assert rules.refusal(response) is None, response
                assert rules.broken_format(response) is None, response
            assert rules.truncated_ending(part.answers[-1]) is None, part.answers
            assert rules.repetition(part.response, part.response_words) is None, part.response
            assert find_personal_data(part.everything()) is None, part.prompt


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and it was not happy with that at all, as they said.", "en"),
        ("Der Hund ist nicht in dem Haus und die Katze ist auch nicht da, sondern auf dem Dach.", "de"),
        ("Le chat est dans la maison et il ne veut pas sortir avec les chiens du voisin.", "fr"),
        ("El perro no está en la casa y los gatos se fueron por la noche con una amiga.", "es"),
        ("这是一个简单的句子，用来测试。", "zh"), ("これは簡単な文です。", "ja"), ("Это простое предложение.", "ru"),
        ("12 + 7 = 19", None), ("x = y", None), ("The answer is 18.", None),
        ("Hunden er ikke i huset, og katten er heller ikke der, men på taget.", "da"),
        ("Так:\n```python\nfor thing in all_of_them: print(thing)  # this is what they want\n```\nЭто всё.", "ru"),
        ("def quick(a):\n  if len(a) < 2: return a\n  return quick([x for x in a[1:]]) + [a[0]]", None),
    ],
)  # fmt: skip
def test_languages(text, language):
    assert rules.language_of(text, IDENTIFIER) == language


def test_lengths_in_words_and_tokens(tmp_path):
    rows = [row("q", "one."), row("q", "one two three."), row("q", "word " * 50 + "end.")]
    kept, manifest = filtered(tmp_path, rows, min_words=2, max_words=10)
    assert kept == rows[1:2]
    assert manifest["counts"] == {"in": 3, "out": 1, "min_length": 1, "max_length": 1}
    kept, _ = filtered(tmp_path, rows, "--start_over", tokenizer="tiny/base", max_tokens=20)
    assert kept == rows[:2]
    done = run(tmp_path, rows, "--start_over", max_tokens=20)
    assert (done.returncode, "tokenizer: is missing" in done.stderr) == (2, True)


def test_of_copies_the_best_scored_stays_then_the_shorter_then_the_first(tmp_path):
    rows = [
        row("What is 2 + 3?", "Long it is: 5.", score=0.5), row("what  is 2 + 3?", "5.", score=1.0),
        row("What is 2 + 3?\n", "It is 5.", score=1.0), row("Another?", "Yes."), row("another?", "Yes."),
        row("What is 2 - 3?", "-1."),
    ]  # fmt: skip
    kept, manifest = filtered(tmp_path, rows, exact_duplicates="prompt")
    assert kept == [rows[1], rows[3], rows[5]]
    assert [e["why"] for e in manifest["examples"]["exact_duplicates"]] == [
        "like row 2, which is kept", "like row 2, which is kept", "like row 4, which is kept"
    ]  # fmt: skip
    kept, _ = filtered(tmp_path, rows, "--start_over", exact_duplicates="both")
    assert kept == [*rows[:4], rows[5]]


DOCUMENT = " ".join(f"fact{n} of the document" for n in range(300))


def dialogue(system, question, answer, **more):
    return {"messages": [{"role": "system", "content": system}, *row(question, answer)["messages"]]} | more


@pytest.mark.parametrize(
    "rows",
    [
        [dialogue(DOCUMENT, f"What about thing{n} there?", f"The thing{n} is so{n}.") for n in range(9)],
        [row(f"{DOCUMENT}\nWhat about thing{n}?", f"That thing{n} is so{n} here.") for n in range(9)],
        [{"text": f"text number{n} about thing{n}"} for n in range(9)],
        [{"prompt": f"Task number{n}: what is thing{n}?"} for n in range(9)],
        [
            {"chosen": row(f"question{n} of mine{n}", "Yes.")["messages"],
             "rejected": row(f"question{n} of mine{n}", "No.")["messages"]}
            for n in range(9)
        ],
        [{"prompt": "Which?", "chosen": "This one it is.", "rejected": f"that{n}"} for n in range(9)],
        [
            {"messages": [*row("Write a poem, please", f"Here is poem{n} of mine{n}")["messages"],
                          *row("Thanks a lot to you", "You are welcome, have a nice day")["messages"]]}
            for n in range(4)
        ],
        [row("Is -5 bigger than 5?", "No."), row("Is 5 bigger than -5?", "Yes.")],
        [row("Sum it in code", "return a + b"), row("Sum it in code", "return a - b")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["exact_duplicates", "near_duplicates"])
def test_what_is_not_a_copy_stays(tmp_path, rows, rule):
    """Shared documents, system prompts, missing prompts, other rejected answers, other operators."""
    kept, _ = filtered(tmp_path, rows, **{rule: "both"})
    assert kept == rows
    if "text" in rows[0]:  # rows without a prompt are no copies of one another's
        assert filtered(tmp_path, rows, "--start_over", **{rule: "prompt"})[0] == rows


def test_a_chain_keeps_its_ends():
    """80 texts, each like the next, the ends sharing nothing."""
    stream = texts(1, 3, 80 * 6 + 60)[0]
    chain = [stream[6 * n : 6 * n + 60] for n in range(80)]
    assert jaccard(chain[0], chain[1]) > 0.7
    found = signatures(Words(chain), 3, 256)
    dropped = dict(find_copies(found, 0.7, 1, np.arange(80)))
    assert 20 < 80 - len(dropped) < 60
    assert all(kept not in dropped for kept in dropped.values())
    assert all(jaccard(chain[a], chain[b]) > 0.6 for a, b in dropped.items())


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("permutations", [16, 64, 128, 1024])
def test_rows_at_the_threshold_become_candidates(threshold, permutations):
    rows = band_size(threshold, permutations)
    assert rows == 1 or 1 - (1 - threshold**rows) ** (permutations // rows) >= 0.985


def texts(count, seed, words=60):
    rng = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(3000)]
    return [[rng.choice(vocabulary) for _ in range(words)] for _ in range(count)]


def jaccard(a, b, n=3):
    one, two = ({tuple(x[i : i + n]) for i in range(len(x) - n + 1)} for x in (a, b))
    return len(one & two) / len(one | two)


def test_near_copies_are_found_and_others_left():
    """3,000 rows, 300 of them planted copies over the threshold, 150 that share less of their text."""
    rng, made = random.Random(0), texts(2550, 1)
    copies = []
    for source in rng.sample(range(2000), 300):
        copy = list(made[source])
        copy[rng.randrange(60)] = "changed"
        copies.append(copy)
    halves = [made[source][:30] + texts(1, source, 30)[0] for source in rng.sample(range(2000), 150)]
    every = made + copies + halves
    assert min(jaccard(copy, made_) for copy, made_ in zip(copies[:1], copies[:1], strict=True)) == 1
    parent = clusters(signatures(Words(every), 3, 128), 0.7)
    dropped = set(np.flatnonzero(parent != np.arange(3000)).tolist())
    planted = set(range(2550, 2850))
    assert len(dropped & planted) / 300 > 0.95
    assert len(dropped & planted) / len(dropped) > 0.95


def test_the_signature_estimates_the_overlap():
    a = texts(1, 5, 200)[0]
    b = a[:150] + texts(1, 6, 50)[0]
    both = signatures(Words([a, b, a]), 3, 1024)
    assert abs((both[0] == both[1]).mean() - jaccard(a, b)) < 0.05
    assert (both[0] == both[2]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=9), min_size=1, max_size=6), st.integers(1, 4))
def test_runs_of_words_are_those_of_plain_python(rows, n):
    """Same runs, same hashes; other runs, others; a short text is one run."""
    words = Words(rows)
    grams, offsets = words.grams(n)
    seen = {}
    for i, text in enumerate(rows):
        wanted = [tuple(text[k : k + n]) for k in range(len(text) - n + 1)] or ([("short", *text)] if text else [])
        found = grams[offsets[i] : offsets[i + 1]].tolist()
        assert len(found) == len(wanted)
        for run, number in zip(wanted, found, strict=True):
            assert seen.setdefault(run, number) == number
    assert len(set(seen.values())) == len(seen)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab1 9_-+*/=<>!.,()\n'\t", max_size=30))
def test_words_are_those_of_the_pattern_however_they_are_found(text):
    assert words_of(text) == re.findall(rf"\w+|{OPERATOR}", text.lower())[:20_000]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.lists(st.sampled_from("abcd"), max_size=5)] * 2), min_size=1, max_size=5))
def test_texts_one_before_the_other(pairs):
    whole = Words([a for a, _ in pairs]).joined(Words([b for _, b in pairs]))
    for i, (a, b) in enumerate(pairs):
        own = whole.hashes[whole.starts[i] : whole.starts[i + 1]].tolist()
        assert own == [*map(HASHES.__getitem__, a), int(SEPARATOR), *map(HASHES.__getitem__, b)]


def test_contamination(tmp_path):
    asked = "A train leaves the town at noon and drives for three hours at eighty miles an hour. How far does it go?"
    held = [row(asked, "240."), {"question": "What is 2+3?", "answer": "#### 5"}]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(r) + "\n" for r in held))
    bad = [
        row(asked.upper(), "240."), row(f"Tell me: {asked}", "240."), row("what is 2 + 3 ?", "5"),
        row(asked.replace("three", "four"), "320."),
    ]  # fmt: skip
    kept, manifest = filtered(
        tmp_path, [*good(3), *bad], contamination=[str(tmp_path / "held.jsonl")], contamination_ngram=8,
        contamination_share=0.3,
    )  # fmt: skip
    assert kept == good(3)
    assert manifest["counts"]["contamination"] == 4
    done = run(tmp_path, good(3), "--start_over", contamination=[str(tmp_path / "nowhere.jsonl")])
    assert (done.returncode, "there is no file" in done.stderr) == (2, True)


SYSTEM = "You are a careful assistant who answers every question in a few words, shows each step of its reasoning, "
SYSTEM += "never guesses, says so when something is not known, and ends with the answer on a line of its own, please."
LONG = "A train leaves the town at noon and drives for three hours at eighty miles an hour. How far does it go today?"
HELD = [
    {"question": LONG, "answer": "240"},
    {"Problem": LONG, "solution": "It is 240.", "answer": 240},
    {"question": LONG, "choices": ["240", "1"], "answer": 0},
    {"instruction": "A train leaves the town at noon and drives for three hours at eighty miles an hour.",
     "input": "How far does it go today?", "output": "240"},
    {"turns": [LONG, "go on"]},
    {"messages": [{"role": "system", "content": SYSTEM}, *row(LONG, "240.")["messages"]]},
    {"chosen": row(LONG, "240.")["messages"], "rejected": row(LONG, "1.")["messages"]},
]  # fmt: skip


@pytest.mark.parametrize("held", HELD)
def test_benchmarks_are_read_as_they_are_published(tmp_path, held):
    (tmp_path / "held.jsonl").write_text(json.dumps(held) + "\n")
    turns = row(LONG, "240.")["messages"] + row("Thanks. And who built it, and when was that?", "Ann.")["messages"]
    asks = [
        row(LONG, "240."), {"messages": turns}, dialogue(SYSTEM, LONG, "240."), {"text": f"{LONG} It goes 240 miles."},
        row(f"Read this and answer. {'It is a story of old times. ' * 12} {LONG} {'Take your time. ' * 12}", "240."),
    ]  # fmt: skip
    fine = [*good(3), dialogue(SYSTEM, "What is the largest lake of the world, by its area?", "It is a sea."),
            row("go on", "And so it went.")]  # fmt: skip
    kept, manifest = filtered(tmp_path, [*fine, *asks], contamination=[str(tmp_path / "held.jsonl")])
    assert kept == fine
    assert manifest["counts"]["contamination"] == len(asks)


def test_short_questions_are_found_within_others(tmp_path):
    held = [{"question": "What is the capital of France?"}, {"question": "Why?"}, {"question": "What is 7 - 3?"}]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(r) + "\n" for r in held))
    fine = [row("Hi! Why is the sky blue?", "It is not."), row("What is 7 + 3?", "10.")]
    rows = [
        *fine,
        row("Hi! What is the capital of France, please?", "Paris."),
        row("why", "So."),
        row("what is 7-3", "4"),
    ]
    kept, _ = filtered(tmp_path, rows, contamination=[str(tmp_path / "held.jsonl")])
    assert kept == fine


def test_held_out_questions_that_share_runs_of_words(tmp_path):
    """The verdict depends neither on their order nor on what another question shares."""
    words = [f"w{n}" for n in range(300)]
    long, within, more = words[:100], words[40:60], [*words[:60], "more"]
    asks = row(" ".join([*words[100:250], *within, *words[250:300]]), "a")
    tail = row(" ".join([*words[100:300], *more[-13:]]), "a")
    for held, dropped in (((long, within), 1), ((within, long), 1), ((words[:60], more), 0)):
        rows = [{"question": " ".join(text)} for text in held]
        (tmp_path / "held.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        kept, _ = filtered(
            tmp_path, [*good(1), asks if dropped else tail], "--start_over",
            contamination=[str(tmp_path / "held.jsonl")]
        )  # fmt: skip
        assert len(kept) == 2 - dropped


def test_a_held_out_file_without_questions_is_named(tmp_path):
    """In a worker process too, where a mistake must not hang."""
    pad = [row("pad", "long " * 900)] * 900
    for text, message in (("", "held.jsonl has no rows"), ('{"a": 1}\n', "held.jsonl, row 1: none of its columns")):
        (tmp_path / "held.jsonl").write_text(text)
        done = run(tmp_path, pad, workers=2, contamination=[str(tmp_path / "held.jsonl")])
        assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def ends_itself(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_reported(monkeypatch):
    monkeypatch.setattr(scan, "scan_chunk", ends_itself)
    with pytest.raises(UserError, match="ran out of memory"):
        list(scan.scan_in_parallel(2, FilterConfig("", ""), iter([[b"{}"]] * 5)))


def test_every_answer_that_is_trained_on_is_checked(tmp_path):
    first = row("one?", "I'm sorry, but I can't help with that.")["messages"]
    bad = [
        {"messages": [*first, *row("two?", "Two.")["messages"]]},
        {"messages": [*row("one?", "<think>hm")["messages"], *row("two?", "Two.")["messages"]]},
        {"prompt": "q", "chosen": "fine.", "rejected": "write to jane.doe@mail.org"},
        dialogue("Your key is AKIAABCDEFGH12345678.", "q", "fine."),
    ]
    fine = [
        {"prompt": "q", "completion": "I cannot help.", "label": False},
        {"prompt": "q", "chosen": "fine.", "rejected": "I cannot help."},
        {"prompt": "How many?", "answer": 450}, {"prompt": "How long?", "solution": 4.5}, {"prompt": "Just a task."},
        {"prompt": "q", "completion": "a", "text": None, "messages": None},
    ]  # fmt: skip
    kept, manifest = filtered(
        tmp_path, [*fine, *bad], refusals=True, broken_format=True, personal_data=True, min_words=1
    )
    assert kept == fine
    assert {k: v for k, v in manifest["counts"].items() if k not in ("in", "out")} == {
        "refusals": 1, "broken_format": 1, "personal_data": 2
    }  # fmt: skip


def test_odd_scores_columns_and_vectors(tmp_path):
    rows = ['{"text": "nan", "score": NaN}\n', {"text": "true", "score": True}, {"text": "t", "score": "9"}]
    rows += ['{"text": "huge", "score": 1' + "0" * 400 + "}\n", {"text": "good one", "score": 0.9}]
    kept, _ = filtered(tmp_path, rows, min_score=0.5)
    assert kept == [rows[-1]]
    deep = '{"text": ' + "[" * 100_000 + "\n"
    done = run(tmp_path, [rows[-1], deep], "--start_over")
    assert (done.returncode, "rows.jsonl:2: is not JSON" in done.stderr) == (2, True), done.stderr
    half = [row("q", "half \ud800 it is."), {"text": "x", "\ud800": 1}]
    assert filtered(tmp_path, half, "--start_over", tokenizer="tiny/base", min_tokens=1)[1]["counts"]["out"] == 2
    points = [row(f"q{n}", "a", e=[1e6 * n, 1.0]) for n in range(9)] + [{"no": "row"}]
    kept, _ = filtered(tmp_path, points, "--start_over", diversity=5, embeddings="e")
    assert len(kept) == 5
    many = [row(f"q{n}", f"a{n}", e=[float(n), 1.0]) for n in range(2000)] + [row("q", "")]
    kept, _ = filtered(tmp_path, many, "--start_over", diversity=5, embeddings="e")  # the last chunk has no vectors
    assert len(kept) == 5
    for odd in ([1.0], 3.0, [1.0, float("inf")]):
        done = run(tmp_path, [*points, row("q", "a", e=odd)], "--start_over", diversity=5, embeddings="e")
        assert (done.returncode, "embeddings: not every row" in done.stderr) == (2, True), done.stderr


def test_diversity_keeps_what_differs(tmp_path):
    groups = [
        [row(f"{topic} {topic} number {n}?", f"It is {topic} {n}.") for n in range(20)]
        for topic in ("sea", "sky", "ice")
    ]
    rows = [r for group in groups for r in group]
    kept, manifest = filtered(tmp_path, rows, diversity=3)
    assert {RowTexts.of(r).prompt.split()[0] for r in kept} == {"sea", "sky", "ice"}
    assert manifest["counts"]["diversity"] == 57
    again, _ = filtered(tmp_path, rows, "--start_over", diversity=3)
    assert again == kept
    points = [row(f"q{n}", "a", e=[float(n == 0), float(n == 1), float(n > 1)]) for n in range(9)]
    kept, _ = filtered(tmp_path, points, "--start_over", diversity=3, embeddings="e")
    assert len({tuple(r["e"]) for r in kept}) == 3
    done = run(tmp_path, good(3), "--start_over", diversity=2, embeddings="nothing")
    assert (done.returncode, "embeddings: not every row" in done.stderr) == (2, True)


EVERY = {
    "min_words": 1, "refusals": True, "broken_format": True, "repetition": True, "personal_data": True,
    "exact_duplicates": "both", "near_duplicates": "both",
}  # fmt: skip


def test_any_number_of_processes_gives_the_same(tmp_path):
    rows = good(9000) + good(1000) + [row("q", "I'm sorry, but no.")] * 500 + [row("q", "<think>x")] * 500
    random.Random(0).shuffle(rows)
    rows[4000] = "\n\n" + json.dumps(rows[4000]) + "\n"
    rows += [row("pad", "long " * 2000)] * 200
    one, first = filtered(tmp_path, rows, workers=1, **EVERY)
    three, second = filtered(tmp_path, rows, "--start_over", workers=3, **EVERY)
    assert one == three
    assert first["counts"] == second["counts"]
    assert first["examples"] == second["examples"]
    assert first["counts"]["refusals"] == 500
    assert first["counts"]["exact_duplicates"] >= 1000


def test_what_is_dropped_can_be_written(tmp_path):
    rows = [*good(2), row("q", "I cannot help."), row("q", "mail a.b@mail.org")]
    dropped = tmp_path / "dropped.jsonl"
    _, manifest = filtered(tmp_path, rows, refusals=True, personal_data=True, dropped_to=str(dropped))
    listed = [json.loads(line) for line in dropped.read_text().splitlines()]
    assert [(r["_row"], r["_rule"]) for r in listed] == [(3, "refusals"), (4, "personal_data")]
    assert "mail.org" not in json.dumps(manifest)


def test_personal_data_is_not_shown_whatever_the_rule(tmp_path):
    """Nor is a text within a reason."""
    rows = [*good(2), row("I am jane.roe@mail.org", "I cannot help."), row("q", "write to, jane.roe@mail.org,")]
    rows += [row("q", "It begins. " + "x " * 20 + "then go and write to jane.roe@mail.org")]
    flags = {"refusals": True, "truncated_endings": True, "personal_data": True}
    _, manifest = filtered(tmp_path, rows, **flags)
    assert sum(map(len, manifest["examples"].values())) == 3
    assert "mail.org" not in json.dumps(manifest)
    done = run(tmp_path, rows[-1:], "--start_over", **flags)
    assert (done.returncode, "mail.org" in done.stderr) == (2, False), done.stderr


def test_no_file_is_written_over(tmp_path):
    rows, outputs = [*good(2), row("q", "I cannot help.")], {"refusals": True}
    for name in ("rows.jsonl", "clean.jsonl"):
        done = run(tmp_path, rows, "--start_over", dropped_to=str(tmp_path / name), **outputs)
        assert (done.returncode, "Name another file" in done.stderr) == (2, True), done.stderr
    (tmp_path / "mine.jsonl").write_text("precious\n")
    done = run(tmp_path, rows, dropped_to=str(tmp_path / "mine.jsonl"), **outputs)
    assert (done.returncode, (tmp_path / "mine.jsonl").read_text()) == (2, "precious\n")
    filtered(tmp_path, rows, **outputs)
    filtered(tmp_path, rows, dropped_to=str(tmp_path / "dropped.jsonl"), **outputs)  # what is missing is made
    assert len((tmp_path / "dropped.jsonl").read_text().splitlines()) == 1
    assert not list(tmp_path.glob("*.part"))


def test_the_same_again_is_finished(tmp_path):
    filtered(tmp_path, good(5), refusals=True)
    assert "nothing to do" in run(tmp_path, good(5), refusals=True).stdout
    again = {"dataset_name": str(tmp_path / "hf_ultrachat_long_name.jsonl")}  # it looks like a key, and is masked
    (tmp_path / "hf_ultrachat_long_name.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    for _ in range(2):
        done = run(tmp_path, good(5), output_file=str(tmp_path / "hf.jsonl"), **again)
    assert "nothing to do" in done.stdout, done.stderr
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "held.jsonl").write_text('{"prompt": "What?"}\n')
    held = {"contamination": [str(tmp_path / name / "held.jsonl") for name in ("a", "b")]}
    filtered(tmp_path, good(5), "--start_over", **held)
    (tmp_path / "a" / "held.jsonl").write_text('{"prompt": "Which?"}\n')
    done = run(tmp_path, good(5), **held)
    assert (done.returncode, "was made with other settings" in done.stderr) == (2, True)
    filtered(tmp_path, good(5), "--start_over", refusals=True)
    done = run(tmp_path, good(5), refusals=False)
    assert (done.returncode, "refusals: True -> False" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json\n", "rows.jsonl:4: is not JSON"),
        ("[1]\n", "rows.jsonl:4: is not a JSON object"),
        ("\n\n{\n", ":6:"),
        ("\n" * 3000 + json.dumps({"text": "x"}) + "\n{\n", ":3005:"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_named(tmp_path, line, message, workers):
    pad = [row("pad", "long " * 200)] * 3
    done = run(tmp_path, [*pad, line], workers=workers)
    assert (done.returncode, message in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert not (tmp_path / "clean.jsonl").exists()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"refusal": True}, "did you mean refusals?"), ({"near_duplicates": "all"}, "not a choice"),
        ({"near_threshold": 7}, "out of range"), ({"languages": ["english"]}, "did you mean en?"),
        ({"dataset_name": "nowhere.jsonl"}, "there is no file"),
        ({"tokenizer": "nowhere", "max_tokens": 3}, "tokenizer: there is no"), ({"embeddings": "e"}, "no effect"),
        ({"min_words": 10_000}, "no row is left of 3: min_length dropped 3, the first in line 1:"),
        ({"refusals": "yes"}, "true or false"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_message(tmp_path, rules, message):
    done = run(tmp_path, good(3), **rules)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "clean.jsonl").exists()


def test_marks_upon_marks_take_bounded_time():
    began = time.monotonic()
    words_of("a" + "\u0315\u0300" * 200_000)
    assert time.monotonic() - began < 5


def test_hostile_rows_take_bounded_time(tmp_path):
    """Megabytes of what slow patterns choke on."""
    big = 1_000_000
    hostile = [
        row("q", "a" * big), row("q", "a@" * (big // 2)), row("q", "1" * big), row("q", "+1 2 3 " * (big // 7)),
        row("q", "<think>" * (big // 7)), row("q", "```" * 100_001), row("q", "\\boxed{" * 100_000),
        row("q", "<tool_call>" * 50_000), row("q", "A1" * (big // 2)), row("q", "1.1.1." * (big // 6)),
        row("q", " \n" * (big // 2) + "x."), row("\ud800 q", "half a surrogate \ud800."), row("q", "\u0000 zero."),
    ]  # fmt: skip
    began = time.monotonic()
    _, manifest = filtered(
        tmp_path, [*hostile, *good(3)], workers=1, languages=["en"], truncated_endings=True, **EVERY
    )
    assert time.monotonic() - began < 40
    assert manifest["counts"]["in"] == len(hostile) + 3
