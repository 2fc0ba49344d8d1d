"""Imports follow the table in docs/architecture.md; datasets are named only in their folders."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from runs import program

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mcan"
DATASETS = re.compile(r"gqa|clevr|easy.?vqa|vqa.?v[12]|vqa.?cp|ok.?vqa|vizwiz", re.IGNORECASE)
EVERY_MODULE = pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)


def read_table() -> dict[str, set[str]]:
    """What each package and each module directly below `mcan` may import, itself included."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("| package |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1::2] for line in section.splitlines()[2:]]
    table = [(re.findall(r"`(\w+)`", first), re.findall(r"`(\w+)`", last)) for first, last in rows]
    leaves = table[0][0]
    return {name: {name, *leaves, *allowed} for names, allowed in table for name in names}


TABLE = read_table()


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_package_is_in_the_table():
    assert {name_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == TABLE.keys()


@EVERY_MODULE
def test_imports_follow_the_table(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [node.module or ""]
        for imported in (name.split(".")[1] for name in names if name.startswith("mcan.")):
            allowed = {"__init__": {"api"}} | TABLE  # `mcan.load`
            assert imported in allowed[name_of(path)], f"line {node.lineno}"


WINDOWS = """
import importlib.util, signal, sys
import h5py, matplotlib, torch, torchvision, torch.distributed
for name in ("SIGCHLD", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))
for name in [name for name in sys.modules if name.partition(".")[0] in ("filelock", "tqdm")]:
    del sys.modules[name]
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location(path, path)
    sys.modules[path] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[path])
"""


def test_nothing_needs_unix_when_it_is_imported():
    """Except benchmarks, which measure memory with `resource`."""
    files = [ROOT / "train.py", ROOT / "eval.py", *(ROOT / "scripts").glob("*.py")]
    paths = [str(path) for path in (*files, *PACKAGE.rglob("*.py")) if "benchmark" not in path.name]
    result = program(sys.executable, "-c", WINDOWS, *paths, cwd=ROOT)
    assert result.status == 0, result.err


@EVERY_MODULE
def test_no_dataset_is_named(path):
    """What is peculiar to a dataset is in `data/<dataset>/prepare.py`; docstrings may name it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    assert not DATASETS.search(ast.unparse(tree))
    assert not DATASETS.search(path.name)
