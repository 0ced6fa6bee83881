"""view.py: what the page shows of rows in every format, and what it does with hostile ones."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from test_report import browse, needs_chromium

from data_prep.view import Statistics, histogram, quantiles

ATTACK = "<script>document.title = 'owned'</script></details></pre><img src=x onerror=\"document.title = 'owned'\">"


def view(folder, rows, *flags):
    path = folder / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, str(ROOT / "data_prep/view.py"), str(path), *map(str, flags)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    return done, (folder / "rows.html").read_text() if (folder / "rows.html").exists() else ""


def turn(text, role="assistant"):
    return [{"role": role, "content": text}]


ROWS = [
    {"messages": turn("How many?", "user") + turn("<think>\nsecret sum\n</think>\n\nFour it is.")},
    {"prompt": turn("Which one?", "user"), "completion": turn("This one."), "score": 0.5},
    {"prompt": turn("Which one?", "user"), "chosen": turn("Chosen words"), "rejected": turn("Rejected words")},
    {"question": "Asked plainly?", "answer": "#### 5", "pass_rate": 0.25},
    {"text": "Plain text of a document"},
    {"prompt": turn("Sampled?", "user"), "responses": [{"completion": turn("First try")}, {"completion": turn("")}]},
    {"neither": 1},
]


def test_rows_in_every_format_are_shown(tmp_path):
    done, page = view(tmp_path, ROWS)
    assert done.returncode == 0, done.stderr
    for text in ("Four it is.", "secret sum", "This one.", "Chosen words", "Rejected words", "#### 5", "Plain text"):
        assert text in page, text
    for text in ("First try", "neither", "0.25", "1 are not training rows", "1 have the prompt of another"):
        assert text in page + done.stdout, text
    assert "<details><summary>reasoning</summary><pre>secret sum</pre>" in page


def test_hostile_text_is_shown_not_run(tmp_path):
    manifest = {"made_by": [ATTACK], "settings": {}, "versions": {}, "counts": {ATTACK: 1}, "examples": {}}
    manifest["examples"] = {"rule": [{"row": 1, "why": ATTACK, "text": ATTACK}]}
    (tmp_path / "rows.manifest.json").write_text(json.dumps(manifest))
    done, page = view(tmp_path, [{"messages": turn(ATTACK, "user") + turn(ATTACK), ATTACK: ATTACK}] * 3)
    assert done.returncode == 0, done.stderr
    assert "<script>" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") > 8


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_screen(tmp_path, width):
    long = {"messages": turn("w" * 3000, "user") + turn("word " * 900), "column_" + "x" * 300: 1}
    _, html = view(tmp_path, [*ROWS, long])
    measure = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script></body>"
    (tmp_path / "inner.html").write_text(html.replace("</body>", measure))
    page = tmp_path / "page.html"
    page.write_text(
        f'<iframe src="inner.html" width="{width}" height="900" onload="document.title = this.contentDocument.title">'
        "</iframe>"
    )
    dom = browse(page, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom").stdout
    assert int(dom.partition("<title>width ")[2].partition("<")[0]) <= width


def test_what_rules_dropped_is_shown(tmp_path):
    manifest = {
        "made_by": ["filter.py"],
        "settings": {"config": {}},
        "versions": {},
        "counts": {"in": 9, "refusals": 2},
    }
    manifest["examples"] = {"refusals": [{"row": 4, "why": "begins with 'I cannot'", "text": "I cannot help"}]}
    (tmp_path / "rows.manifest.json").write_text(json.dumps(manifest))
    _, page = view(tmp_path, ROWS)
    for text in ("What was dropped", "refusals", "begins with &#39;I cannot&#39;", "How it was made"):
        assert text in page, text


def test_the_sample_depends_on_the_seed(tmp_path):
    rows = [{"text": f"number {n} of them"} for n in range(300)]
    pages = [view(tmp_path, rows, "--rows", 5, "--seed", seed)[1] for seed in (0, 0, 1)]
    assert pages[0] == pages[1] != pages[2]
    assert pages[0].count("<article>") == 5


def test_every_row_is_equally_likely_to_be_shown():
    drawn = []
    for seed in range(400):
        data = Statistics(2, seed, None)
        for n in range(20):
            data.add({"text": str(n)})
        drawn += [number for number, _ in data.sample]
    assert 20 <= min(drawn.count(n) for n in range(1, 21)) <= max(drawn.count(n) for n in range(1, 21)) <= 65


def test_lengths_in_tokens(tmp_path):
    done, page = view(tmp_path, ROWS, "--tokenizer", "tiny/base")
    assert "tokens" in done.stdout
    assert "Lengths, in tokens" in page
    done, _ = view(tmp_path, ROWS, "--tokenizer", "nowhere")
    assert (done.returncode, "tokenizer: there is no" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x"}, "{\n"], "rows.jsonl:2: is not JSON"),
        ([], "has no training rows"),
        ([{"a": 1}], "has no training rows"),
    ],
)
def test_what_cannot_be_shown_is_reported(tmp_path, rows, message):
    done, _ = view(tmp_path, rows)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert message in done.stderr


def test_odd_rows_are_shown_as_they_are(tmp_path):
    """And another program's manifest, a missing folder, and half a surrogate are no obstacle."""
    (tmp_path / "rows.manifest.json").write_text('{"of": "another program"}')
    odd = [
        {"prompt": turn("q", "user"), "responses": ["one", "two"]}, {"responses": [5]}, {"responses": 7},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "typed part"}]}]},
        '{"text": "not a number", "score": NaN}\n', '{"text": "huge", "score": 1' + "0" * 400 + "}\n",
        {"text": "half \ud800", "\ud800": 1}, {"messages": turn("x", "\ud800") + turn("y")},
    ]  # fmt: skip
    done, _ = view(tmp_path, odd, "--tokenizer", "tiny/base", "--output_file", tmp_path / "new" / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "new" / "page.html").read_text()
    for text in ("typed part", "two", "not a number", "half ?"):
        assert text in page, text
    done, _ = view(tmp_path, ROWS, "--output_file", tmp_path / "rows.jsonl")
    assert (done.returncode, "must end with .html" in done.stderr) == (2, True)


def test_figures():
    assert quantiles([1, 2, 3, 4, 100]) == ["1", "1", "3", "100", "100", "100"]
    bars = histogram([5.0] * 4)
    assert sum(int(bar["count"]) for bar in bars) == 4
