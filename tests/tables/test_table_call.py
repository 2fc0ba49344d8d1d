"""What a command changes: what is told of it, and the folder of its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcan.errors import ConfigError
from mcan.tables.call import Call, in_force, table_folder
from mcan.tables.plan import RUNS, plan
from mcan.tables.spec import load_table

BASE = "name: {name}\ndata: {{prepared: prepared, images: [regions.h5], evaluate: val}}\n"
TABLE = """\
title: T
source: S
verified: true
dataset: d
base: config.yaml
split: val
columns: [overall]
rows:
  - {name: two, overrides: [model.depth=2]}
  - {name: six}
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(BASE.format(name="run"))
    Path("other.yaml").write_text(BASE.format(name="other"))
    Path("t.yaml").write_text(TABLE)
    return load_table("t.yaml")


@pytest.mark.parametrize(
    ("overrides", "held"),
    [
        (["a.b=1", "c=2"], ["a.b=1", "c=2"]),
        (["a.b=1", "c=2", "a.b=3"], ["c=2", "a.b=3"]),
        (["a=1", "a=1", "a=1"], ["a=1"]),
        (["a.b=1", "a=null"], ["a=null"]),
        (["a.b=1", "a={b: 2}"], ["a={b: 2}"]),
        (["a.b=1", "a={c: 2}"], ["a.b=1", "a={c: 2}"]),
        (["a={b: 1, c: 2}", "a.b=3"], ["a={b: 1, c: 2}", "a.b=3"]),
    ],
)
def test_overrides_in_force(overrides, held):
    assert in_force(overrides) == tuple(held)


def test_calls_of_one_effect_are_equal():
    one = Call.of(None, ["train.epochs=3", "optimizer.lr=1", "optimizer.lr=5e-4"], [2, 0, 2])
    assert one == Call.of(None, ["optimizer.lr=5e-4", "train.epochs=3"], [0, 2])
    # In alphabetical order c would be 1.
    nested = ("b.a={c: 1, d: 2}", "b={a: {c: 3}}")
    assert Call.of(None, nested, None).overrides == nested
    with pytest.raises(ConfigError, match='"epochs" is not an override'):
        Call.of(None, ["epochs"], None)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (Call(), ""),
        (Call(Path("c.yaml")), "on c.yaml"),
        (Call(overrides=("a=1", "b=2")), "with a=1 b=2"),
        (Call(seeds=(3,)), "with seed 3"),
        (Call(Path("c.yaml"), ("a=1",), (0, 1)), "on c.yaml with a=1 and seeds 0, 1"),
    ],
)
def test_what_is_told(call, told):
    assert call.told == told


def folder(table, base=None, overrides=(), seeds=None, runs_folder=RUNS) -> Path:
    call = Call.of(base, overrides, seeds)
    runs = plan(table, call.base, call.overrides, call.seeds, None, runs_folder)
    return table_folder(table, call, runs, runs_folder)


def test_other_runs_have_another_folder(table):
    tables = RUNS / "tables"
    assert folder(table) == tables / "t"
    assert folder(table, Path("other.yaml")) == tables / "t_other"
    longer = folder(table, overrides=["train.epochs=3", "optimizer.lr=1"])
    assert longer == folder(table, overrides=["optimizer.lr=1", "train.epochs=3"])
    different = {
        longer,
        folder(table, overrides=["train.epochs=4"]),
        folder(table, overrides=["train.epochs=3"], seeds=[1]),
        folder(table, seeds=[0, 1]),
        folder(table, seeds=[0]),
    }
    assert len(different) == 5
    names = [path.relative_to(tables).name.partition("-") for path in different]
    assert all(name == "t" and len(digest) == 8 for name, _, digest in names)
    based = folder(table, Path("other.yaml"), ["train.epochs=3"])
    assert based.name.startswith("t_other-")


def test_the_folder_follows_the_configs(table):
    """It is the same in another folder of runs, and another where a base has changed."""
    first = folder(table, seeds=[0, 1])
    moved = folder(table, seeds=[1, 0], runs_folder=Path("elsewhere"))
    assert moved == Path("elsewhere/tables") / first.name
    Path("config.yaml").write_text(BASE.format(name="run") + "train: {batch_size: 2}\n")
    assert folder(table, seeds=[0, 1]) != first
