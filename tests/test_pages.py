"""The sessions in the docs run, docs/api.md is complete, docs/attention.md is true of the code."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest
from pages import blocks, read_page
from runs import ROOT, entry_point, make_lab, metrics_of

import mcan.api
import mcan.explain.explanation

STEM = {"channels": [4, 6, 6, 8], "strides": [2, 2, 1, 1]}
LIKE_THE_QUICKSTART = {
    "data": {"evaluate": "test"},
    "model": {"heads": 4, "depth": 2, "image": {"input": "pixels", "stem": STEM}},
}
"""With two layers, four heads and 4 x 4 cells."""


def test_the_session_of_the_interface_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = make_lab(tmp_path, LIKE_THE_QUICKSTART, kind="pixels", splits=("train", "test"))
    assert lab.train("easy_vqa_quickstart", "train.max_steps=3").status == 0
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    page, session = read_page("api.md"), dict[str, Any]()
    for block in blocks(page):
        exec(block, session)
    assert len(session["found"]) == 1080
    assert session["weights"].shape == (10, 16)
    assert session["keys"][0].shape == (5, 8)
    assert session["heat"].shape == (256, 256)
    assert "zeppelin" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("attention.*")} == {
        "attention.html",
        "attention.png",
    }
    for command in "\n".join(blocks(page, "sh")).splitlines():
        program, script, *arguments = command.split()
        assert (program, script) == ("python", "eval.py")
        assert lab.eval(*arguments).status == 0


def test_the_search_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/tables.md; started twice, the study has all trials."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lab = make_lab(tmp_path)
    monkeypatch.chdir(tmp_path)
    trained, original = [], subprocess.run

    def unpatch() -> None:
        subprocess.run = original

    def run(command: list[str], check: bool) -> None:
        _, script, config, *keys, resume = command
        assert (script, config, resume) == (
            "train.py",
            "configs/easy_vqa/quickstart.yaml",
            "--resume",
        )
        trained.append(
            lab.train(keys[0].removeprefix("name="), *keys[1:], "train.epochs=1", patch=unpatch)
        )
        assert trained[-1].status == 0, trained[-1].err

    monkeypatch.setattr(subprocess, "run", run)
    (block,) = blocks(read_page("tables.md"))
    for _ in range(2):
        exec(block.replace("n_trials=20", "n_trials=2"), {})
    assert len(trained) == 4
    (study,) = optuna.get_all_study_summaries("sqlite:///runs/search.db")
    finals = [metrics_of(lab.run(f"search_{number}"))[-1]["overall"] for number in range(4)]
    assert study.n_trials == 4
    assert study.best_trial.value == max(finals)
    assert str(max(finals)) in capsys.readouterr().out


def public(module: ModuleType) -> set[str]:
    """The classes that a module defines and their attributes; of the interface, functions too."""
    names = set()
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        if module is not mcan.api and not inspect.isclass(found):
            continue
        names.add(name)
        if inspect.isclass(found):
            names |= {each for each in {**vars(found), **found.__annotations__} if each[0] != "_"}
    return names


@pytest.mark.parametrize("module", [mcan.api, mcan.explain.explanation], ids=str)
def test_the_reference_names_everything_public(module: ModuleType) -> None:
    reference = read_page("api.md").partition("## Reference")[2]
    named = {
        name for code in re.findall(r"`+([^`]+)`+", reference) for name in re.findall(r"\w+", code)
    }
    assert public(module) <= named


GUIDES = ("attention.md", "attention.zh.md")
CODE = re.compile(r"\[`([\w.]+)`\]\(\.\./(mcan/[\w/]+)\.py\)")


@pytest.mark.parametrize("name", sorted(set(CODE.findall(read_page("attention.md")))), ids=str)
def test_the_guide_names_code_that_exists(name: tuple[str, str]) -> None:
    attribute, module = name
    reduce(getattr, attribute.split("."), importlib.import_module(module.replace("/", ".")))


@pytest.mark.parametrize("page", ["api.md", *GUIDES])
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read_page(page)):
        assert (ROOT / "docs" / target).exists(), target


def outline(page: str) -> list[list[Any]]:
    """Of each section: its level, pictures, code, equations and diagrams, numbers in tables."""
    parts = re.split(
        r"^(?=#+ )", re.sub(r"^```python.+?^```", "", page, flags=re.S | re.M), flags=re.M
    )
    return [
        [
            len(part) - len(part.lstrip("#")),
            re.findall(r"\]\((\S+\.png)\)", part),
            CODE.findall(part),
            re.findall(r"^ *```(?:math|mermaid)\n.+?```", part, re.S | re.M),
            re.findall(r"[\d.,]*\d", "".join(re.findall(r"^\|.+$", part, re.M))),
        ]
        for part in parts
    ]


def test_both_guides_say_the_same() -> None:
    english, chinese = (outline(read_page(name)) for name in GUIDES)
    for one, other in zip(english, chinese, strict=True):
        assert one == other


def test_the_figures_and_the_costs_are_those_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = make_lab(tmp_path, LIKE_THE_QUICKSTART, kind="pixels", splits=("train", "test"))
    assert lab.train("tiny", "train.max_steps=1").status == 0
    monkeypatch.chdir(tmp_path)
    script, page = entry_point("scripts/draw_guide"), read_page("attention.md")
    monkeypatch.setattr(script, "IMAGE", 0)
    monkeypatch.setattr(sys, "argv", ["draw_guide.py", "--run", "runs/tiny", "--output", "drawn"])
    script.main()
    drawn = {f"attention/{path.name}" for path in Path("drawn").iterdir()}
    assert drawn == set(re.findall(r"attention/\w+\.png", page))
    assert all((ROOT / "docs" / name).stat().st_size < 150_000 for name in drawn)
    assert capsys.readouterr().out in page
