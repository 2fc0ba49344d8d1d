"""Figures of an evaluation server, entered by hand."""

from __future__ import annotations

import pytest

from mcan.errors import ConfigError, RunError
from mcan.tables.filled import fill, read_filled
from mcan.tables.spec import load_table

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
  - {name: large}
  - {name: theirs, runs: false}
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "t.yaml").write_text(TABLE)
    return load_table(tmp_path / "t.yaml")


def test_figures_are_kept_and_replaced(table, tmp_path):
    output = tmp_path / "out"
    assert read_filled(output) == {}
    fill(output, table, ["small: L = 6=70.63", "large:yes/no=86.82"])
    fill(output, table, ["large=70", "large:yes/no=87", "small: L = 6:test_std=70.9"])
    assert read_filled(output) == {
        "small: L = 6": {"overall": 70.63, "test_std": 70.9},
        "large": {"yes/no": 87.0, "overall": 70.0},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small=70", "has no row to fill named 'small'; there is ['small: L = 6', 'large']"),
        ("theirs=70", "has no row to fill named 'theirs'"),
        ("70", "has no row to fill named ''"),
        ("large:other=70", "has no column 'other'; there is overall, yes/no, test_std"),
        ("large=", "'' is no percentage"),
        ("large=7O", "'7O' is no percentage"),
        ("large=700", "'700' is no percentage"),
        ("large=nan", "'nan' is no percentage"),
    ],
)
def test_mistakes(table, tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        fill(tmp_path, table, ["large=1", text])
    assert message in str(caught.value)
    assert not (tmp_path / "filled.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"large": 3}', '{"large": {"overall": "3"}}'])
def test_damaged_files(table, tmp_path, text):
    (tmp_path / "filled.json").write_text(text)
    with pytest.raises(RunError, match=r"filled\.json: "):
        fill(tmp_path, table, ["large=1"])
    assert (tmp_path / "filled.json").read_text() == text
