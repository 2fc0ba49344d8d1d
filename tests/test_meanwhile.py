"""What a user sees if files change or vanish while a command runs, or cannot be written."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

import pytest
import runs
from runs import ROOT, Lab, make_lab, program
from table_lab import TABLE, make_table_lab
from vqa_toys import TRAIN, write_split

from mcan.data.prepared import Prepared
from mcan.engine.trainer import Trainer
from mcan.preparation import recipe
from mcan.tables import running


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = make_lab(tmp_path_factory.mktemp("lab"))
    assert made.train("whole").status == 0
    return made


def obey_permissions() -> None:
    """Also as root: give up the right to write to what is read-only."""
    libc, header, rights = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), ctypes.c_uint32 * 6
    held = rights()
    libc.capget(header, held)
    held[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc.capset(header, held)


@pytest.mark.parametrize(
    ("change", "workers"), [("deleted", 0), ("replaced", 1), ("truncated", 0), ("rewritten", 1)]
)
def test_a_store_that_changes_during_training(lab: Lab, change: str, workers: int) -> None:
    """One that was deleted or replaced is read to the end of the training, as it was."""
    store, kept = lab.folder / "images.h5", lab.folder / "kept.h5"
    content = store.read_bytes()

    def act() -> None:
        if change == "truncated":
            os.truncate(store, 100)
        elif change == "rewritten":
            store.write_bytes(bytes(len(content)))
        else:
            store.rename(kept)
            if change == "replaced":
                store.write_bytes(b"another")

    name = f"{change}_{workers}"
    result = lab.train(
        name, f"data.workers={workers}", patch=runs.at_call(Trainer, "update", 9, act)
    )
    kept.unlink(missing_ok=True)
    store.write_bytes(content)
    if change in ("deleted", "replaced"):
        assert result.status == 0, result.err
    else:
        assert (result.status, len(result.errors())) == (2, 1), result.err
        assert (
            "images.h5: was overwritten while it is in use; write a new store under" in result.err
        )
        assert lab.resume(name).status == 0
    outcomes = (runs.outcome(lab.run(each)) for each in (name, "whole"))
    runs.assert_same(*outcomes, ignore=("name", "workers"))


def test_two_preparations_into_one_folder(tmp_path: Path) -> None:
    """The second is refused, and the folder is that of the first."""
    lab = Lab(tmp_path)
    arguments = [*write_split(tmp_path, "train", TRAIN), "--min-answer-count=1", "--output", "out"]

    def second() -> None:
        lab.launch("data/vqa_v2/prepare", arguments, number=1)()

    first = runs.at_call(recipe, "encode_split", 1, second)
    result = lab.execute("data/vqa_v2/prepare", arguments, patch=first)
    assert result.status == 0, result.err
    refused = (tmp_path / "printed_1.err").read_text()
    assert refused == "error: out: another process is preparing this folder\n"
    assert Prepared.open(tmp_path / "out").splits == ("train",)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_table_whose_base_is_edited_while_it_runs(tmp_path: Path, moment: str) -> None:
    """Nothing is taken for a run of the table that was planned."""
    lab = make_table_lab(tmp_path)
    config = tmp_path / "config.yaml"
    text = config.read_text()

    def edit() -> None:
        config.write_text(text.replace("lr: 0.003", "lr: 0.1"))

    # Between the two checks, `after` edits what train.py reads.
    patch = runs.at_call(running, "_refuse_edited", 1, edit, after=moment == "after")
    one = TABLE.replace("[0, 1]", "[0]").partition("  - name: narrow")[0]
    result = lab.reproduce(table=one, patch=patch)
    assert result.status == 1
    (failed,) = (line for line in result.err.splitlines() if line.startswith("failed: "))
    assert "failed: wide, seed 0: config.yaml: was edited after the start of this command" in failed
    assert not list(tmp_path.glob("runs/reproduce/*/outcome_*.json"))
    if moment == "after":
        assert "away; start the command again" in failed
        (folder,) = lab.folders()
        folder.rename(tmp_path / "away")
    assert lab.reproduce(table=one).status == 0, "by the edited base"


def test_a_table_file_that_is_edited_while_it_runs(tmp_path: Path) -> None:
    """What was read at the start counts."""
    lab = make_table_lab(tmp_path)
    one = TABLE.replace("[0, 1]", "[0]").partition("  - name: narrow")[0]
    edit = runs.at_call(running, "_execute", 1, (tmp_path / "table.yaml").unlink)
    assert lab.reproduce(table=one, patch=edit).status == 0
    assert "wide" in (tmp_path / "runs/reproduce/tables/table/table.md").read_text()


def test_a_read_only_run_folder(lab: Lab) -> None:
    """It can be evaluated with --output elsewhere; nothing in it changes."""
    run = lab.run("whole")
    before = runs.contents(run)
    folders = [run, *(path for path in run.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        for args in (["name=whole", "train.epochs=4", "--resume"], ["name=new", f"runs={run}"]):
            result = lab.execute("train", [lab.config, *args], obey_permissions)
            assert (result.status, len(result.errors())) == (2, 1), result.err
            assert "runs/whole/" in result.err
            assert "Permission denied" in result.err
        result = lab.eval("runs/whole", patch=obey_permissions)
        assert re.search(
            r"error: runs/whole/predictions/.*: could not be written: Perm", result.err
        )
        result = lab.eval("runs/whole", "--output", "elsewhere", patch=obey_permissions)
        assert result.status == 0, result.err
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert runs.contents(run) == before


@pytest.mark.slow
def test_a_home_in_which_nothing_can_be_written(lab: Lab) -> None:
    """matplotlib and torch would keep caches there."""
    environment = {"HOME": "/proc", "TORCH_HOME": "", "MPLCONFIGDIR": "", "XDG_CACHE_HOME": ""}
    variables = ["env", *(f"-u{name}" for name in environment), "HOME=/proc"]
    for script, *args in (
        ["train.py", lab.config, "name=no_home", "train.max_steps=7"],
        ["scripts/ask.py", "runs/whole", "0", "word1?", "--attention", "answer.png"],
    ):
        result = program(*variables, sys.executable, f"{ROOT}/{script}", *args, cwd=lab.folder)
        assert result.status == 0, result.err
    assert (lab.folder / "answer.png").stat().st_size > 1000
