"""What a machine can check of the house rules."""

import ast
import difflib
import graphlib
import importlib
import re
import subprocess

from conftest import ROOT

from utils.config import RecipeConfig
from utils.config.findings import NAMES

METHODS = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
for method in METHODS:
    if (ROOT / method / "config.py").is_file():
        importlib.import_module(f"{method}.config")


def imports_of(path):
    """The modules of this repository that a file imports, wherever in it, as dotted names; not those that it imports
    for its types alone."""
    found, tree = set(), ast.parse(path.read_text())
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {child for node in for_types for child in ast.walk(node)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


def module_of(path):
    name = path.relative_to(ROOT).with_suffix("")
    return ".".join(name.parent.parts if name.name == "__init__" else name.parts)


SOURCES = [path for top in ("utils", "data_prep", *METHODS) for path in (ROOT / top).rglob("*.py")]
MODULES = {module_of(path): path for path in SOURCES}


def room_of(module):
    """utils/data/rows.py stands in utils.data, data_prep/files/jsonl.py in data_prep.files, sft/checks.py in sft."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("utils", "data_prep") and len(parts) > 1 else parts[0]


def test_arrows_run_one_way():
    """No circle between modules, and none between rooms."""
    modules, rooms = {}, {}
    for module, path in MODULES.items():
        is_door = path.name == "__init__.py"
        # A door is what stands before its room: those inside do not import it.
        wanted = {name for name in imports_of(path) if name != module}
        inside = {name for name in wanted if is_door or room_of(name) != room_of(module) or name.count(".") > 1}
        modules[module] = inside
        rooms.setdefault(room_of(module), set()).update(room_of(name) for name in wanted)
    for room in rooms:
        rooms[room].discard(room)
    graphlib.TopologicalSorter(modules).prepare()
    graphlib.TopologicalSorter(rooms).prepare()


def test_utils_knows_no_method():
    for module, path in MODULES.items():
        if not module.startswith("utils"):
            continue
        methods = {name for name in imports_of(path) if name.split(".")[0] in (*METHODS, "data_prep")}
        assert not methods, f"{module} imports {methods}"
        trainers = re.findall(r"\b(?:SFT|DPO|GRPO|KTO)(?:Trainer|Config)\b", code_of(path))
        assert not trainers, f"{module} names {trainers}"


def code_of(path):
    """Without comments and docstrings, which may name a trainer."""
    return ast.unparse(without_docstrings(ast.parse(path.read_text())))


def without_docstrings(tree):
    for node in ast.walk(tree):
        body = vars(node).get("body")
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return tree


def test_rooms_are_entered_by_their_doors():
    """From outside, a room's names are imported from its __init__.py, which lists them."""
    doors = [module for module, path in MODULES.items() if path.name == "__init__.py" and module != "utils"]
    for module, path in MODULES.items():
        for name in imports_of(path):
            room = room_of(name)
            if room in doors and room != room_of(module):
                assert name == room, f"{module} imports {name}; import it from {room}"
    for module in doors:
        names = vars(importlib.import_module(module))
        assert set(names["__all__"]) <= names.keys(), module
        assert 3 <= len(names["__doc__"].strip().splitlines()) <= 6, module


def test_every_finding_can_be_found():
    code = "".join(path.read_text() for path in SOURCES)
    classes = [RecipeConfig, *RecipeConfig.__subclasses__()]
    names = [*NAMES, *(name for cls in classes for name in cls.FINDINGS)]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.search(rf'(report|add)\(\s*"{name}"', code), name


def test_files_stay_small():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if name and (ROOT / name).is_file()}
    assert sum(sizes.values()) < 25_000_000
    assert all(size < 5_000_000 for size in sizes.values())
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 320, path
    for path in ROOT.glob("*/train.py"):
        assert len(path.read_text().splitlines()) <= 120, path


def test_the_recipes_are_alike():
    """From read_config on, two train.py differ in the method's own names and lines alone."""
    mains = {}
    for name in METHODS:
        text = (ROOT / name / "train.py").read_text()
        mains[name] = re.sub(
            r"SFT|DPO|KTO|GRPO|OnlineRL|\b(?:sft|dpo|kto|online_rl)\b", "X", text[text.index("def main()") :]
        ).split("\n")
    for name in mains.keys() - {"sft"}:
        most = 20 if name == "online_rl" else 4  # it adds rewards, a backend, its watch
        lines = list(difflib.ndiff(mains["sft"], mains[name]))
        removed, added = ([line for line in lines if line[0] == sign] for sign in "-+")
        assert len(removed) <= 5, removed
        assert len(added) <= most, added


def test_pins_are_exact():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            assert line.startswith(("#", "-c ", "-r ")) or re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line), line


def test_pins_are_those_of_the_lock():
    """pip installs the pins with the lock as its constraints, on every Python."""
    lock = (ROOT / "constraints.txt").read_text().splitlines()
    for path in ROOT.glob("requirements*.txt"):
        for name, version in re.findall(r"^([a-z0-9.-]+)==(.*)", path.read_text(), re.MULTILINE):
            name = name.replace(".", "-")
            locked = [line for line in lock if line.startswith(f"{name}==")]
            assert locked == [f"{name}=={version}"], path.name
