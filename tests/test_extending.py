"""docs/extending.md: its blocks, put where they say into a copy of the code, work as they are."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from pages import blocks, read_page
from runs import ROOT, make_lab, program

PAGE = read_page("extending.md")
BLOCK = re.compile(
    r"# (?P<file>[^\s,]+)(, (?P<side>above|below) (?P<line>[^\n]+))?\n(?P<code>.+)", re.DOTALL
)
USES = re.findall(r"Use it with `(\S+=\S+)`", PAGE)
TESTS = re.findall(r"`pytest (\S+) -k (\S+)`", PAGE)


def extended(folder: Path) -> Path:
    """A copy of the code with every block of the page, as its first line says."""
    for name in ("mcan", "scripts", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "eval.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for block in map(BLOCK.fullmatch, blocks(PAGE)):
        assert block is not None
        path, code = folder / block["file"], block["code"]
        if block["side"] is None:
            path.parent.mkdir(parents=True)
            path.write_text(code)
            continue
        # Before the first line that starts so, or after it; a class or function stands alone.
        place = rf"^ *{re.escape(block['line'])}(?!\w).*\n"
        code += "" if code.startswith(" ") else "\n\n"
        text = path.read_text()
        found = re.search(place, text, re.MULTILINE)
        assert found, block["line"]
        at = found.end() if block["side"] == "below" else found.start()
        path.write_text(text[:at] + code + text[at:])
    return folder


def test_one_of_each_is_added_and_trained(tmp_path, monkeypatch):
    folder = extended(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    make_lab(folder)
    assert len(USES) == 5
    trained = program(
        sys.executable,
        "train.py",
        "config.yaml",
        "name=new",
        "train.epochs=1",
        "schedule.warmup_epochs=0",
        *USES,
        cwd=folder,
    )
    assert trained.status == 0, trained.err
    kept = (folder / "runs/new/config.yaml").read_text()
    assert all(use.rpartition("=")[2] in kept for use in USES)
    last = json.loads((folder / "runs/new/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["overall"] <= 100

    raw = folder / "data/mine/raw"
    raw.mkdir()
    for split, answers in (("train", ["Yes", "2"]), ("val", ["yes", "3"])):
        rows = [f"img_{n},What is {n}?,{answer}\n" for n, answer in enumerate(answers)]
        (raw / f"{split}.csv").write_text("image,question,answer\n" + "".join(rows))
    prepared = program(sys.executable, "data/mine/prepare.py", cwd=folder)
    assert prepared.status == 0, prepared.err
    bounds = {line.split()[0]: line.split()[-2] for line in prepared.out.splitlines()[-2:]}
    assert bounds == {"train": "100.00", "val": "50.00"}


@pytest.mark.slow
def test_the_tests_that_the_page_names_cover_them(tmp_path, monkeypatch):
    folder = extended(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert len(TESTS) == 6
    files, names = zip(*TESTS, strict=True)
    run = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *dict.fromkeys(files)]
    done = program(*run, "-k", " or ".join(names), cwd=folder)
    assert done.status == 0, done.out
    for file, name in TESTS:
        assert re.search(rf"{file}::.*{name}.* PASSED", done.out)
