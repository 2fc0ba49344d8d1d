"""`--dry-run`: what is printed of the runs, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import entry_point
from table_lab import REPRODUCE, TABLE, make_table_lab

from mcan.config import dump_config
from mcan.tables.plan import plan
from mcan.tables.spec import load_table


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    make_table_lab(tmp_path, TABLE.replace("seeds: [0, 1]", "seeds: [0]"))
    monkeypatch.chdir(tmp_path)

    def printed(*arguments: str) -> list[str]:
        assert entry_point(REPRODUCE).main(["table.yaml", "--dry-run", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return printed


def test_the_overrides_that_hold(dry_run):
    configs = [line for line in dry_run() if line.startswith("  config")]
    assert configs == [
        "  config     config.yaml model.hidden_size=16 train.epochs=2 -> val",
        "  config     config.yaml model.hidden_size=4 train.epochs=2 -> val",
    ]
    lines = dry_run("--set", "train.epochs=7", "optimizer.lr=1")
    assert lines[0] == "Tiny (table.yaml, with optimizer.lr=1 train.epochs=7)"
    assert [line for line in lines if line.startswith("  config")] == [
        "  config     config.yaml model.hidden_size=16 optimizer.lr=1 train.epochs=7 -> val",
        "  config     config.yaml model.hidden_size=4 optimizer.lr=1 train.epochs=7 -> val",
    ]


def test_rows_that_are_one_run_and_the_folder(dry_run):
    lines = dry_run()
    assert "2 runs: 2 new" in lines
    assert lines[-1] == "table: runs/reproduce/tables/table"
    assert not any("are one run" in line for line in lines)
    lines = dry_run("--set", "model.hidden_size=8", "--seeds", "0", "1", "--shard", "1/2")
    assert "1 run: 1 new" in lines
    assert lines[-2] == "rows that are one run, since their configs are equal: wide = narrow"
    assert lines[-1].startswith("table: runs/reproduce/tables/table-")
    assert dry_run("--output", "mine")[-1] == "table: mine"
    assert not Path("runs").exists()


def test_whose_pace_hours_are_of(dry_run):
    assert not any("hours" in line for line in dry_run())
    run = plan(load_table("table.yaml"))[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    (run.folder / "environment.json").write_text(json.dumps({"starts": [{}]}))
    (run.folder / "outcome_test.json").write_text(json.dumps({"seconds": 60}))
    assert (
        f"hours assume the pace of {run.folder}, the median of 1 run done without interruption"
    ) in dry_run()


def test_without_data(dry_run):
    lines = dry_run("--set", "data.prepared=no")
    assert lines[-2] == (
        "not checked, since no is not prepared here: splits and the columns yes/no, number, other"
    )
