"""The report: in a real browser it shows the numbers of metrics.json, and text of a model is shown, never run."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from conftest import recipe

from utils.report.tables import digits

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")


def browse(page, profile, *words):
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --virtual-time-budget=2000"
    command = [CHROMIUM, *switches.split(), f"--user-data-dir={profile}", *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_report_and_card_show_the_numbers_of_metrics_json(finished_run):
    folder, printed = finished_run
    metrics = json.loads((folder / "metrics.json").read_text())
    html, card = (folder / "report.html").read_text(), (folder / "README.md").read_text()
    for when in ("before", "after"):
        for figure in metrics[when].values():
            shown = "{} ({} to {})".format(*(digits(figure[key]) for key in ("value", "low", "high")))
            assert shown in html
            assert shown in card
            assert shown in printed
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", html)  # nothing is fetched
    assert card.startswith("---\n")


@needs_chromium
def test_the_report_renders_in_a_browser(finished_run, tmp_path):
    folder, _ = finished_run
    dom = browse(folder / "report.html", tmp_path / "profile", "--dump-dom").stdout
    metrics = json.loads((folder / "metrics.json").read_text())
    for figure in metrics["after"].values():
        assert digits(figure["value"]) in dom
    assert dom.count("<article>") == 12
    assert "⟦" not in dom
    assert "<mark>" in dom


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_screen(finished_run, tmp_path, width):
    """Scripts are run only in this copy: it writes the page's width into its title."""
    html = (finished_run[0] / "report.html").read_text()
    measure = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script></body>"
    page = tmp_path / "page.html"
    # An iframe gives the width: a headless window has a least one.
    (tmp_path / "inner.html").write_text(html.replace("</body>", measure))
    page.write_text(
        f'<iframe src="inner.html" width="{width}" height="900" onload="document.title = this.contentDocument.title">'
        "</iframe>"
    )
    dom = browse(page, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom").stdout
    found = re.search(r"<title>width (\d+)</title>", dom)
    assert found, dom[:500]
    assert int(found[1]) <= width


@needs_chromium
def test_a_script_in_a_transcript_is_shown_not_run(tmp_path):
    attack = "{{ 7 * 7 }}<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n} {attack} \x1b[2J\u202e"},
                {"role": "assistant", "content": f"{attack} {n}"},
            ]
        }
        for n in range(40)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "dataset_name": data,
        "heldout_name": "null",
        "heldout_fraction": 0.3,
        "eval_metrics": "[]",
        "max_length": 900,
    }
    done = recipe(output_dir=tmp_path / "out", max_steps=2, **flags)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out/report.html").read_text()
    assert "<script" not in html
    assert attack in unescape(html)
    assert not {"\x1b", "\u202e"} & set(html)
    assert r"\x1b[2J\u202e" in html
    dom = browse(tmp_path / "out/report.html", tmp_path / "profile", "--dump-dom").stdout
    assert "<title>out</title>" in dom
    assert "&lt;script&gt;" in dom
