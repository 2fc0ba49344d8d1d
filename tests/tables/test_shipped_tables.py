"""The tables of configs/tables, against their configs, without any data."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import ROOT, entry_point
from table_lab import REPRODUCE

from mcan.tables.planning import CommandOptions, load_table, plan

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
    "transfer": 2,
}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_dry_run(path, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # where there is no data, whatever is prepared in the repository
    assert entry_point(REPRODUCE).main([str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    table = load_table(path)
    assert {row.name for row in table.rows if row.runs} <= set(printed)
    seeds = [line for line in printed if line.startswith("  seed 0 ") and "cost unknown" in line]
    assert len(seeds) == RUNS[path.stem]
    metrics = {run.config.evaluation.metric for run in plan(table, CommandOptions())}
    published = "vqa_pre2021" if table.dataset == "vqa_v2" else None
    assert metrics == {table.metric} == {published}
    assert not (tmp_path / "runs").exists()


def test_rows_that_are_one_network_are_one_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables = {name: load_table(f"configs/tables/{name}.yaml") for name in RUNS}
    folders = {
        name: {run.row.name: run.folder for run in plan(table, CommandOptions())}
        for name, table in tables.items()
    }
    assert len(set(folders["figure_depth"].values())) == 40 - 2
    small = folders["model_zoo_vqa_v2"]["MCAN-small, train -> val"]
    assert folders["table_1b"]["MCAN_ed-6"] == small
    assert folders["table_1c"]["GloVe_pt+ft + LSTM"] == small
    assert folders["similarities"]["scaled_dot, 8 heads"] == small
    assert folders["figure_depth"]["SA(Y)-SGA(X,Y), encoder-decoder-6"] == small
    assert folders["figure_depth"]["ID(Y)-GA(X,Y)-1"] == folders["table_1a"]["ID(Y)-GA(X,Y)"]
    assert folders["table_2"]["MCAN_ed-6"] == folders["authors_readme"]["MCAN-small"]
    # As it always was: a key that is added later must not send finished runs out of sight.
    assert folders["table_2"]["MCAN_ed-6"].name.endswith("-9bb414572087")
    start = ["train.init_from={checkpoint: x.pt}", "train.freeze=[x]"]
    changed = [
        plan(tables["table_2"], CommandOptions(overrides=tuple(start[:n])))[0] for n in range(3)
    ]
    assert len({run.folder for run in changed}) == 3


@pytest.mark.parametrize("name", ["table_1a", "table_1b", "figure_depth", "similarities"])
def test_on_sort_of_clevr(name, monkeypatch):
    """The rows say what the base must not: its question layers are not theirs."""
    monkeypatch.chdir(ROOT)
    table = load_table(f"configs/tables/{name}.yaml")
    runs = plan(table, CommandOptions(Path("configs/sort_of_clevr/mcan_objects.yaml")))
    assert len(runs) == RUNS[name]
    if name != "similarities":
        assert {run.config.model.question_depth for run in runs} == {None}
