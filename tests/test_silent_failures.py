"""The table of the silent failures: `python tests/test_silent_failures.py > docs/silent_failures.md` makes it."""

import importlib
from pathlib import Path

from silent_cases import CASES, ROOT

from utils.config import RecipeConfig
from utils.config.findings import NAMES

for path in sorted(Path(__file__).parent.glob("test_silent_*.py")):
    if path.stem != "test_silent_failures":
        importlib.import_module(path.stem)

HEAD = """\
# Silent failures, and what happens here

Made by `python tests/test_silent_failures.py > docs/silent_failures.md` from the cases in `tests/test_silent_*.py`.
Each one is run as the code is, and again with its check switched off. C: the config, D: the data, G: online RL, R: the
run, X: found later. The third column was measured, read in the source, or reported by users, for trl 1.16.0. A finding
that stops a run can be accepted by name (`accept: [truncated_rows]`), and stays in the report. In R6 to R8 and X1 the
test replaces what the device or the system reports.

| | what the user did, or what happened | what TRL's own script does | what happens here |
|---|---|---|---|
"""
LAST = {"C": 13, "D": 16, "G": 11, "R": 12, "X": 28}  # the highest number of each letter
FINDINGS = """
## Findings, by the names that `accept:` takes

| name | what was found |
|---|---|
"""


def table() -> str:
    """docs/silent_failures.md, with the cases in the order of their letters and numbers."""
    cases = sorted(CASES, key=lambda case: (list(LAST).index(case.row[0]), int(case.row[1:])))
    cells = [[text.replace("|", "\\|") for text in (case.row, case.user, case.trl, case.ours)] for case in cases]
    names = dict(NAMES)
    for path in sorted(ROOT.glob("*/train.py")):
        recipes = (
            vars(importlib.import_module(f"{path.parent.name}.config"))
            if (path.parent / "config.py").is_file()
            else {}
        )
        for recipe in recipes.values():
            names |= recipe.FINDINGS if isinstance(recipe, type) and issubclass(recipe, RecipeConfig) else {}
    rows = [f"| {' | '.join(row)} |\n" for row in cells]
    found = [f"| `{name}` | {text.replace('<think>', '`<think>`')} |\n" for name, text in names.items()]
    return HEAD + "".join(rows) + FINDINGS + "".join(found)


def test_the_table_is_current():
    assert (ROOT / "docs/silent_failures.md").read_text() == table()


def test_every_case_has_a_row_of_its_own():
    rows = {case.row for case in CASES}
    assert len(rows) == len(CASES)
    assert rows == {f"{letter}{n}" for letter, last in LAST.items() for n in range(1, last + 1)}


if __name__ == "__main__":
    print(table(), end="")
