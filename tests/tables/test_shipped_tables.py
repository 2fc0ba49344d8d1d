"""The tables of configs/tables, against the configs of VQA v2, without any data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runs import ROOT, entry_point
from table_lab import REPRODUCE

from mcan.tables.plan import plan
from mcan.tables.spec import load_table

TABLES = sorted((ROOT / "configs/tables").glob("*.yaml"))
RUNS = {
    "table_1a": 3,
    "table_1b": 8,
    "table_1c": 4,
    "figure_depth": 40,
    "table_2": 2,
    "authors_readme": 2,
    "model_zoo_vqa_v2": 6,
    "similarities": 20,
}


def test_all_are_here():
    assert {path.stem for path in TABLES} == set(RUNS)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_dry_run(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # where there is no data, whatever is prepared in the repository
    arguments = [str(path), "--dry-run"]
    assert entry_point(REPRODUCE).main(arguments) == 0
    printed = capsys.readouterr().out
    table = load_table(path)
    lines = printed.splitlines()
    for row in table.rows:
        at = lines.index(row.name)
        for column, figure in row.published.items():
            assert f"{column} {figure:.2f}" in lines[at + 1]
        assert not row.published or row.verified != lines[at + 1].endswith("†")
    assert len(re.findall(r"^  seed 0 .* PFLOP  ", printed, re.MULTILINE)) == RUNS[path.stem]
    assert "sizes of data that is not prepared here are assumed" in printed
    assert not (tmp_path / "runs").exists()


def test_rows_that_are_one_network_are_one_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    depth = plan(load_table("configs/tables/figure_depth.yaml"))
    assert len({run.folder for run in depth}) == 40 - 2
    folders = {
        name: {run.row.name: run.folder for run in plan(load_table(f"configs/tables/{name}.yaml"))}
        for name in RUNS
    }
    small = folders["model_zoo_vqa_v2"]["MCAN-small, train -> val"]
    assert folders["table_1b"]["MCAN_ed-6"] == small
    assert folders["table_1c"]["GloVe_pt+ft + LSTM"] == small
    assert folders["similarities"]["scaled_dot, 8 heads"] == small
    assert folders["figure_depth"]["SA(Y)-SGA(X,Y), encoder-decoder-6"] == small
    assert folders["figure_depth"]["ID(Y)-GA(X,Y)-1"] == folders["table_1a"]["ID(Y)-GA(X,Y)"]
    assert folders["table_2"]["MCAN_ed-6"] == folders["authors_readme"]["MCAN-small"]


@pytest.mark.parametrize("name", ["table_1a", "table_1b", "figure_depth", "similarities"])
def test_on_sort_of_clevr(name, monkeypatch):
    """The rows say what the base must not: its question layers are not theirs."""
    monkeypatch.chdir(ROOT)
    table = load_table(f"configs/tables/{name}.yaml")
    runs = plan(table, Path("configs/sort_of_clevr/mcan_objects.yaml"))
    assert len(runs) == RUNS[name]
    if name != "similarities":
        assert {run.config.model.question_depth for run in runs} == {None}
