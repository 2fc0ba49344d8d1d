"""Figures of an evaluation server, entered by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcan.errors import ConfigError, RunError
from mcan.tables.filled import fill, read_filled
from mcan.tables.outcome import Outcome, write_outcome
from mcan.tables.plan import plan
from mcan.tables.spec import load_table

BASE = "name: run\ndata: {prepared: prepared, images: [regions.h5]}\n"
TABLE = """\
title: T
source: S
verified: true
dataset: d
base: config.yaml
split: test
submission: true
columns: [overall, yes/no, test_std]
rows:
  - {name: "small: L = 6"}
  - {name: large, overrides: [model.depth=8]}
  - {name: theirs, runs: false}
"""
WITH_VAL = f"{TABLE}  - {{name: val, split: val, submission: false}}\n"


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(BASE)
    Path("t.yaml").write_text(TABLE)
    return load_table("t.yaml")


@pytest.fixture
def runs(table):
    """All done."""
    runs = plan(table)
    for run in runs:
        write_outcome(run, Outcome("test", None, "submission_test.json", "d", "0", [], 1.0))
    return runs


def test_figures_are_kept_and_replaced(table, runs):
    assert read_filled(runs) == {}
    fill(table, runs, ["small: L = 6=70.63", "large:yes/no=86.82"])
    fill(table, runs, ["large=70", "large:yes/no=87", "small: L = 6:test_std=70.9"])
    assert read_filled(runs) == {
        "small: L = 6": {"overall": 70.63, "test_std": 70.9},
        "large": {"yes/no": 87.0, "overall": 70.0},
    }


def test_any_percentage(table, runs):
    fill(table, runs, ["large=0", "large:yes/no=100", "large:test_std=1.01"])
    assert read_filled(runs) == {"large": {"overall": 0, "yes/no": 100, "test_std": 1.01}}


def test_figures_belong_to_the_run(table, runs):
    fill(table, runs, ["large=70"])
    Path("other.yaml").write_text(TABLE.replace("name: large", "name: deep"))
    assert read_filled(plan(load_table("other.yaml"))) == {"deep": {"overall": 70.0}}
    assert read_filled(plan(table, overrides=["optimizer.lr=1e-3"])) == {}
    Path("val.yaml").write_text(TABLE.replace("split: test", "split: val"))
    assert read_filled(plan(load_table("val.yaml"))) == {}


def test_rows_that_share_a_run(table, runs):
    Path("t.yaml").write_text(TABLE + "  - {name: too, overrides: [model.depth=8]}\n")
    table = load_table("t.yaml")
    runs = plan(table)
    fill(table, runs, ["large=70", "too:yes/no=87"])
    assert read_filled(runs)["large"] == read_filled(runs)["too"] == {"overall": 70, "yes/no": 87}


def test_seeds(table, runs):
    """One of them was submitted; the row shows its figures."""
    fill(table, runs, ["large=70"])
    several = plan(table, seeds=[7, 0])
    assert read_filled(several) == {"large": {"overall": 70.0}}
    with pytest.raises(ConfigError, match=r"'large' has a run for each of the seeds 7, 0; .*--see"):
        fill(table, several, ["large=71"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small=70", "has no row to fill named 'small'; there is ['small: L = 6', 'large']"),
        ("theirs=70", "has no row to fill named 'theirs'"),
        ("val=70", "the row 'val' is evaluated here, not by a server; there is ['small: L = 6', "),
        ("=70", "has no row to fill named ''"),
        ("70", "expected ROW[:COLUMN]=FIGURE with a row to fill of t.yaml; there is ['small: L = "),
        ("nonsense", "'nonsense': expected ROW[:COLUMN]=FIGURE"),
        ("large:other=70", "has no column 'other'; there is overall, yes/no, test_std"),
        ("large=", "'' is no percentage"),
        ("large=7O", "'7O' is no percentage"),
        ("large=700", "'700' is no percentage"),
        ("large=nan", "'nan' is no percentage"),
        ("large=0.707", "'0.707' looks like a fraction; figures are percentages, 70.7 say"),
        ("large=1", "'1' looks like a fraction; figures are percentages, 100 say"),
    ],
)
def test_mistakes(table, runs, text, message):
    Path("t.yaml").write_text(WITH_VAL)
    table = load_table("t.yaml")
    runs = plan(table)
    with pytest.raises(ConfigError) as caught:
        fill(table, runs, ["large=2", text])
    assert message in str(caught.value)
    assert read_filled(runs) == {}


def test_a_run_that_is_not_done(table, runs):
    (runs[1].folder / "outcome_test.json").unlink()
    with pytest.raises(RunError, match=r"\(large, seed 0\) is not done; give --set, --seeds"):
        fill(table, runs, ["small: L = 6=70", "large=70"])
    assert read_filled(runs) == {}


def test_figures_of_an_outcome_that_is_gone(table, runs):
    """Nothing tells then which dataset they are of."""
    fill(table, runs, ["large=70"])
    (runs[1].folder / "outcome_test.json").unlink()
    assert read_filled(runs) == {}


def test_rows_that_are_evaluated_here(table, runs):
    """Another base has answers; a row of the same run as a submission takes no figures of it."""
    fill(table, runs, ["large=70"])
    based = plan(table, base=Path("config.yaml"), overrides=["data.evaluate=test"])
    with pytest.raises(ConfigError, match=r"evaluated here, .*; no row here is a submission"):
        fill(table, based, ["large=70"])
    Path("t.yaml").write_text(TABLE.replace("submission: true", "submission: false"))
    assert read_filled(plan(load_table("t.yaml"))) == {}


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"overall": "3"}', '{"overall": {}}'])
def test_damaged_files(table, runs, text):
    path = runs[1].folder / "server_test.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"server_test\.json: "):
        read_filled(runs)
    with pytest.raises(RunError, match=r"server_test\.json: "):
        fill(table, runs, ["small: L = 6=70", "large=2"])
    assert path.read_text() == text
    assert read_filled(runs[:1]) == {}
