"""What a machine can check of the house rules."""

import difflib
import re
import subprocess

from conftest import ROOT

from utils.findings import NAMES


def test_arrows_run_one_way():
    """utils never imports a recipe, and its own arrows make no circle."""
    order = [
        "terminal", "fields", "findings", "moved", "files", "source", "strict", "rows", "config", "data", "answers",
        "mathematics", "sandbox", "rewards", "tools", "model", "backends", "named", "generation", "alarms", "progress",
        "run", "intervals", "drift", "evaluation", "completions", "rollouts", "checks", "checks_step", "checks_sft",
        "checks_dpo", "checks_rewards", "checks_grpo", "preflight", "curves", "report",
    ]  # fmt: skip
    for path in (ROOT / "utils").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(from|import) (sft|dpo|online_rl|data_prep)\b", text, flags=re.MULTILINE), path
        if path.stem == "__init__":
            continue
        for name in re.findall(r"^from utils\.(\w+) import", text, flags=re.MULTILINE):
            assert order.index(name) < order.index(path.stem), f"{path.stem} imports {name}"


def test_every_finding_can_be_found():
    code = "".join(path.read_text() for path in (ROOT / "utils").glob("*.py"))
    for name in NAMES:
        assert re.search(rf'(found|add)\(\s*"{name}"', code), name


def test_files_stay_small():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if name and (ROOT / name).is_file()}
    assert sum(sizes.values()) < 25_000_000
    assert all(size < 5_000_000 for size in sizes.values())
    for path in (ROOT / "utils").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path
    for path in ROOT.glob("*/train.py"):
        assert len(path.read_text().splitlines()) <= 120, path


def test_the_recipes_are_alike():
    """From read_config on, two train.py differ in the method's own names and lines alone."""
    mains = {}
    for name in ("sft", "dpo", "online_rl"):
        text = (ROOT / name / "train.py").read_text()
        mains[name] = re.sub(r"SFT|DPO|GRPO", "X", text[text.index("def main()") :]).split("\n")
    for name, most in (("dpo", 4), ("online_rl", 20)):  # online RL adds rewards, tools, a backend, and its watch
        lines = list(difflib.ndiff(mains["sft"], mains[name]))
        removed, added = ([line for line in lines if line[0] == sign] for sign in "-+")
        assert len(removed) <= 5, removed
        assert len(added) <= most, added


def test_pins_are_exact():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            assert line.startswith(("#", "-c ", "-r ")) or re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line), line
