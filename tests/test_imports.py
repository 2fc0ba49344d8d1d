"""The table of imports between the rooms of the package, and where datasets may be named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mcan"

LEAVES = {"arguments", "errors", "files", "progress", "ragged", "batch"}
"""Modules that any room may import; they import only each other."""

ROOMS: dict[str, set[str]] = {
    "config": set(),
    "text": set(),
    "nn": set(),
    "data": {"text"},
    "engine": {"nn", "data", "config"},
    "evaluation": {"text", "data"},
    "importing": {"data"},
    "vision": {"data"},
    "tables": {"config", "data", "engine", "nn"},
    "report": {"config", "data", "evaluation", "tables"},
    "benchmarking": {"config", "data", "engine", "nn", "prediction", "text", "wiring"},
}
"""What each room may import besides itself and the leaves. Entry points wire the rooms together."""

DATASETS = re.compile(r"gqa|clevr|easy.?vqa|vqa.?v[12]|vqa.?cp|ok.?vqa|vizwiz", re.IGNORECASE)


@dataclass(frozen=True)
class Import:
    target: str
    """Room or module directly below the package."""
    typing_only: bool


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources(*rooms: str) -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room(path) in rooms]


def imports(tree: ast.AST, path: Path, typing_only: bool = False) -> Iterator[Import]:
    """Every import of the package itself below `tree`, also inside functions."""
    for node in ast.iter_child_nodes(tree):
        inside = typing_only
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = True
        for name in names(node, path):
            if name.startswith("mcan."):
                yield Import(name.split(".")[1], typing_only)
        yield from imports(node, path, inside)


def names(node: ast.AST, path: Path) -> list[str]:
    """The full names that an import statement reads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parent.parts
        base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
    if base == "mcan":
        return [f"mcan.{alias.name}" for alias in node.names if is_module(alias.name)]
    return [base]


def is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


def imported(path: Path) -> list[Import]:
    return list(imports(ast.parse(path.read_text(encoding="utf-8")), path))


@pytest.mark.parametrize("path", sources(*ROOMS, *LEAVES), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    own = room(path)
    allowed = LEAVES if own in LEAVES else ROOMS[own] | LEAVES | {own}
    for item in imported(path):
        if (own, item.target) == ("nn", "config") and item.typing_only:
            continue  # `build_model` says what it reads
        assert item.target in allowed, f"{own} must not import mcan.{item.target}"


def test_every_room_is_in_the_table():
    assert {p.name for p in PACKAGE.iterdir() if any(p.glob("*.py"))} == ROOMS.keys()


def spoken(tree: ast.Module) -> Iterator[str]:
    """Identifiers and strings of a module, without its docstrings."""
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in documentation:
            yield str(node.value)
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if room(p) != "evaluation"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_dataset_is_named(path):
    """Everything peculiar to a dataset ends in `data/<dataset>/prepare.py`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [text for text in spoken(tree) if DATASETS.search(text)]
    assert not DATASETS.search(path.name)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mcan.data.store as s", [("data", False)]),
        ("from mcan import text, __version__", [("text", False)]),
        ("from mcan.engine.trainer import Trainer", [("engine", False)]),
        ("from ..data import store", [("data", False)]),
        ("from . import units\nfrom .units import X", [("nn", False), ("nn", False)]),
        ("def f():\n    from mcan.config import Config", [("config", False)]),
        ("if TYPE_CHECKING:\n    from mcan.config import Config", [("config", True)]),
        ("if typing.TYPE_CHECKING:\n    import mcan.config", [("config", True)]),
        ("import mcanical, torch", []),
    ],
)
def test_the_reader_of_imports(source, expected):
    found = imports(ast.parse(source), PACKAGE / "nn" / "mcan.py")
    assert [(item.target, item.typing_only) for item in found] == expected


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('"""For VQA v2."""\nx = 1\n"""As in GQA."""', False),
        ('if kind == "gqa":\n    pass', True),
        ("class CLEVRLoader: ...", True),
        ("def f(vizwiz): ...", True),
        ("from data.easy_vqa import prepare", True),
        ('metric = "vqa"\nVQADataset = 1', False),
    ],
)
def test_the_reader_of_names(source, named):
    assert any(DATASETS.search(text) for text in spoken(ast.parse(source))) == named
