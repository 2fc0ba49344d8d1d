"""Tables -> runs: identity, sharing, what the command line changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mcan.config import load_config
from mcan.errors import ConfigError
from mcan.tables.plan import plan
from mcan.tables.spec import load_table

BASE = """\
name: {name}
data: {{prepared: prepared, images: [regions.h5], evaluate: {evaluate}}}
"""
TABLE = """\
title: T
source: S
verified: true
dataset: d
base: config.yaml
split: val
columns: [overall]
seeds: [0, 7]
rows:
  - {name: two, overrides: [model.depth=2]}
  - {name: six}
  - {name: six too, overrides: [model.depth=6]}
  - {name: theirs, runs: false}
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(BASE.format(name="run", evaluate="val"))
    Path("other.yaml").write_text(BASE.format(name="other", evaluate="test"))
    Path("none.yaml").write_text(BASE.format(name="none", evaluate="null"))
    Path("t.yaml").write_text(TABLE)
    return load_table("t.yaml")


def test_runs_in_order(table):
    runs = plan(table)
    assert [(run.row.name, run.seed) for run in runs] == [
        (name, seed) for name in ("two", "six", "six too") for seed in (0, 7)
    ]
    assert {run.split for run in runs} == {"val"}


def test_the_command_resolves_to_the_config(table):
    for run in plan(table, overrides=["optimizer.lr=1e-3"], runs_folder=Path("a b/12: c")):
        assert load_config(run.base, run.overrides) == run.config
        assert Path(run.config.runs) / run.config.name == run.folder
        assert run.config.seed == run.seed
        assert run.config.optimizer.lr == 1e-3


def test_a_run_is_named_by_what_its_config_states(table):
    """By what differs from the defaults, so that a key added later changes no run."""
    data = {"prepared": "prepared", "images": ["regions.h5"]}
    rows = ({"data": data, "model": {"depth": 2}}, {"data": data}, {"data": data})
    stated = [content | seed for content in rows for seed in ({}, {"seed": 7})]
    for run, content in zip(plan(table), stated, strict=True):
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        assert run.folder == Path("runs/reproduce") / f"run-{digest[:12]}"
    moved = [run.folder.name for run in plan(table, runs_folder=Path("elsewhere"))]
    assert moved == [run.folder.name for run in plan(table)]


def test_equal_configs_share_a_run(table):
    folders = {(run.row.name, run.seed): run.folder for run in plan(table)}
    assert folders["six", 0] == folders["six too", 0]
    assert len(set(folders.values())) == 4
    same = plan(table, overrides=["model.depth=3"])
    assert len({run.folder for run in same}) == 2
    changed = plan(table, overrides=["train.epochs=5"])
    assert not set(folders.values()) & {run.folder for run in changed}


def test_a_seed_given_twice_is_one_run(table):
    assert [run.seed for run in plan(table, seeds=[3, 0, 3], rows=["two"])] == [3, 0]


def test_another_base(table):
    runs = plan(table, Path("other.yaml"), seeds=[3], rows=["two"])
    assert [(run.base, run.split, run.seed) for run in runs] == [(Path("other.yaml"), "test", 3)]
    assert runs[0].folder.name.startswith("other-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ["tow"]}, "t.yaml: no row to run is named 'tow'; there is ['two', 'six',"),
        ({"rows": ["theirs"]}, "t.yaml: no row to run is named 'theirs'"),
        ({"overrides": ["seed=3"]}, "--set: seed=3 cannot be set"),
        ({"overrides": ["model.dpth=3"]}, "command line: model.dpth is not a key of model"),
        ({"overrides": ["model"]}, 'command line: "model" is not an override'),
        ({"base": Path("no.yaml")}, "no.yaml: the file does not exist"),
        ({"base": Path("none.yaml")}, "none.yaml: data.evaluate is null"),
        ({"seeds": [-1]}, "t.yaml: row 'two': seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_mistakes(table, options, message):
    with pytest.raises(ConfigError) as caught:
        plan(table, **options)
    assert str(caught.value).startswith(message)


def test_rows_that_do_not_fit_their_base(table):
    Path("t.yaml").write_text(TABLE.replace("model.depth=2", "model.dpth=2"))
    with pytest.raises(ConfigError, match=r"t\.yaml: row 'two': model\.dpth is not a key of model"):
        plan(load_table("t.yaml"))
    Path("t.yaml").write_text(
        TABLE.replace("model.depth=2", "model.question.word_vectors.frozen=true")
    )
    with pytest.raises(ConfigError) as caught:
        plan(load_table("t.yaml"), Path("other.yaml"))
    assert str(caught.value) == (
        "t.yaml: row 'two' needs model.question.word_vectors.path, which other.yaml does not "
        "state; choose a base that does"
    )
    Path("t.yaml").write_text(TABLE.replace("name: six}", "name: six, base: other.yaml}"))
    with pytest.raises(ConfigError, match="the row 'six' has a base of its own"):
        plan(load_table("t.yaml"), Path("other.yaml"))
