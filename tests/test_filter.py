"""filter.py: each rule on what it must drop and must keep, and the whole by its command line."""

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import rules
from data_prep.near_duplicates import clusters, signatures
from data_prep.texts import Words, parts_of, words_of


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


def test_rows_of_every_form_are_kept_as_they_are(tmp_path):
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
        {"messages": [{"content": "x"}]}, {"prompt": {"a": 1}, "completion": "x"}, {"prompt": "x", "completion": 3},
    ],
)  # fmt: skip
def test_what_is_no_training_row_is_dropped(tmp_path, bad):
    kept, manifest = filtered(tmp_path, [*good(3), bad], "--start_over")
    assert kept == good(3)
    assert manifest["counts"] == {"in": 4, "out": 3, "bad_form": 1}
    assert manifest["examples"]["bad_form"][0]["row"] == 4


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.", "I cannot assist with this.", "As an AI language model, I have",
        "Sorry, I can't do that.", "<think>Hm.</think>\n\nI apologize, but no.", "**I am unable to help**",
        "I am a small model and I cannot help.", "Lorem ipsum dolor",
    ],
)  # fmt: skip
def test_refusals(text):
    assert rules.refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "It cannot be known. It is not said how many.", "There is not enough information to answer.",
        "I can help: the answer is 4.", "The answer is 4. I'm sorry, but the question is odd.", "I think it is 4.",
        "As an aid, take paper.", "<think>I cannot help it.</think>4",
    ],
)  # fmt: skip
def test_honest_answers_are_no_refusals(text):
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
    ],
)  # fmt: skip
def test_broken_format(text, broken):
    assert bool(rules.broken_format({}, text)) == broken


@pytest.mark.parametrize(
    ("function", "broken"),
    [
        ({"name": "f", "arguments": {"x": 1}}, False), ({"name": "f", "arguments": '{"x": 1}'}, False),
        ({"name": "f", "arguments": "{x"}, True), ({"name": "", "arguments": {}}, True), ({"arguments": {}}, True),
        ({"name": "f", "arguments": [1]}, True),
    ],
)  # fmt: skip
def test_tool_calls_in_messages(function, broken):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    assert bool(rules.broken_format({"messages": [call]}, "")) == broken
    assert rules.broken_format({"finish_reason": "length"}, "fine.")


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
    ],
)
def test_truncated_endings(text, cut):
    assert bool(rules.truncated_ending(text)) == cut


def test_repetition():
    prose = (ROOT / "CONTRIBUTING.md").read_text()
    assert rules.repetition(prose, words_of(prose)) is None
    for bad in ("the same line\n" * 8, "go on and " * 40, prose[:900] + prose[:900]):
        assert rules.repetition(bad, words_of(bad)), bad[:40]
    short = "no no no no"
    assert rules.repetition(short, words_of(short)) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe@mail.org", "e-mail"), ("call +44 20 7946 0958", "telephone"),
        ("call (555) 555-0123", "telephone"), ("my card 4111 1111 1111 1111", "card"),
        ("DE89 3704 0044 0532 0130 00", "IBAN"), ("host 8.8.4.4 is down", "IP"), ("hf_" + "a1B2" * 9, "access key"),
        ("sk-proj-" + "abcd1234" * 4, "access key"), ("AKIA" + "ABCDEFGH12345678", "access key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
    ],
)  # fmt: skip
def test_personal_data(text, kind):
    assert kind in rules.personal_data(text)


@pytest.mark.parametrize(
    "text",
    [
        "12 + 7 = 19, and 1,234,567 - 89 = 1,234,478", "3.14159265358979", "2024-11-24 at 10:30", "version 1.2.3",
        "mail me at user@example.com", "127.0.0.1", "4111 1111 1111 1112", "1234567890123456", "@home", "a sk-ip",
        "f(x) = 2 ** 100 = 1267650600228229401496703205376", "section 1.2.3.4.5", "123 456 789 + 987 654 321",
        "DE00 3704 0044 0532 0130 00",
    ],
)  # fmt: skip
def test_sums_are_no_personal_data(text):
    assert rules.personal_data(text) is None


def test_the_tiny_world_passes_every_rule():
    for name in ("sft_messages", "sft_tools", "dpo_honesty"):
        for line in (ROOT / f"tiny/data/{name}.jsonl").read_text().splitlines()[:500]:
            made = json.loads(line)
            prompt, response = parts_of(made)
            assert rules.refusal(response) is None, response
            assert rules.broken_format(made, response) is None, response
            assert rules.truncated_ending(response.splitlines()[-1]) is None, response
            assert rules.personal_data(prompt + response) is None, prompt


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and it was not happy with that at all, as they said.", "en"),
        ("Der Hund ist nicht in dem Haus und die Katze ist auch nicht da, sondern auf dem Dach.", "de"),
        ("Le chat est dans la maison et il ne veut pas sortir avec les chiens du voisin.", "fr"),
        ("El perro no está en la casa y los gatos se fueron por la noche con una amiga.", "es"),
        ("这是一个简单的句子，用来测试。", "zh"), ("これは簡単な文です。", "ja"), ("Это простое предложение.", "ru"),
        ("12 + 7 = 19", None), ("x = y", None),
    ],
)  # fmt: skip
def test_languages(text, language):
    assert rules.language_of(text, words_of(text)) == language


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
        row("What is 2 + 3?", "Long it is: 5.", score=0.5), row("what is 2+3", "5.", score=1.0),
        row("What is 2 + 3 ?", "It is 5.", score=1.0), row("Another?", "Yes."), row("another", "Yes."),
    ]  # fmt: skip
    kept, manifest = filtered(tmp_path, rows, exact_duplicates="prompt")
    assert kept == [rows[1], rows[3]]
    assert [e["why"] for e in manifest["examples"]["exact_duplicates"]] == [
        "like row 2, which is kept", "like row 2, which is kept", "like row 4, which is kept"
    ]  # fmt: skip
    kept, _ = filtered(tmp_path, rows, "--start_over", exact_duplicates="both")
    assert kept == rows[:4]


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


def test_diversity_keeps_what_differs(tmp_path):
    groups = [
        [row(f"{topic} {topic} number {n}?", f"It is {topic} {n}.") for n in range(20)]
        for topic in ("sea", "sky", "ice")
    ]
    rows = [r for group in groups for r in group]
    kept, manifest = filtered(tmp_path, rows, diversity=3)
    assert {parts_of(r)[0].split()[0] for r in kept} == {"sea", "sky", "ice"}
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


def test_the_same_again_is_finished(tmp_path):
    filtered(tmp_path, good(5), refusals=True)
    assert "nothing to do" in run(tmp_path, good(5), refusals=True).stdout
    done = run(tmp_path, good(5), refusals=False)
    assert (done.returncode, "refusals: True was, False is asked" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [("not json\n", "rows.jsonl:4: is not JSON"), ("[1]\n", "rows.jsonl:4: is not a JSON object"), ("\n\n{\n", ":6:")],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_named(tmp_path, line, said, workers):
    pad = [row("pad", "long " * 200)] * 3
    done = run(tmp_path, [*pad, line], workers=workers)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert not (tmp_path / "clean.jsonl").exists()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"refusal": True}, "did you mean refusals?"), ({"near_duplicates": "all"}, "not a choice"),
        ({"near_threshold": 7}, "out of range"), ({"dataset_name": "nowhere.jsonl"}, "there is no file"),
        ({"tokenizer": "nowhere", "max_tokens": 3}, "tokenizer: there is no"), ({"embeddings": "e"}, "no effect"),
        ({"min_words": 10_000}, "no row is left of 3: min_length dropped 3"), ({"refusals": "yes"}, "true or false"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_message(tmp_path, rules, said):
    done = run(tmp_path, good(3), **rules)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert said in done.stderr
    assert not (tmp_path / "clean.jsonl").exists()


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
