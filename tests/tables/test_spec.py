"""Table files: what they state, and every error as one line."""

# ruff: noqa: E501 (tables of one case a line)
from __future__ import annotations

from pathlib import Path

import pytest

from mcan.errors import ConfigError
from mcan.tables.spec import load_table

BASE = "name: run\ndata: {prepared: prepared, images: [regions.h5]}\n"
VALID = """\
title: T
source: S
verified: true
dataset: d
base: config.yaml
split: val
columns: [overall, yes/no]
rows:
"""
ROW = "  - {name: a}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def files(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return files


def test_rows_take_what_they_do_not_state_from_their_table(write):
    """Bases are stated from the folder of the file that states them."""
    write(
        {
            "tables/t.yaml": "_base_: shared/s.yaml\ntitle: T\nrows:\n  - {name: a}\n"
            "  - {name: b, base: ../other.yaml, split: test, submission: true, verified: false}\n",
            "tables/shared/s.yaml": "source: S\nverified: true\ndataset: d\nbase: ../../config.yaml\n"
            "split: val\ncolumns: [overall]\n",
        }
    )
    table = load_table(Path("tables/t.yaml"))
    assert (table.path, table.seeds) == (Path("tables/t.yaml"), (0,))
    assert [(row.base, row.split, row.submission, row.verified) for row in table.rows] == [
        ("config.yaml", "val", False, True),
        ("other.yaml", "test", True, False),
    ]


def test_loops_stand_for_their_product(write):
    text = (
        '  - {name: "{kind}-{L}", overrides: ["model.depth={L}", "model.cascade={kind}"],\n'
        '     series: "{kind} {q}", x: "{L}", for: {kind: [stacking, encoder_decoder], L: [1, 2.5]}}\n'
    )
    write({"t.yaml": VALID + text + ROW})
    found = load_table("t.yaml").rows
    assert [row.name for row in found] == [
        "stacking-1",
        "stacking-2.5",
        "encoder_decoder-1",
        "encoder_decoder-2.5",
        "a",
    ]
    assert found[1].overrides == ("model.depth=2.5", "model.cascade=stacking")
    assert [row.x for row in found] == [1, 2.5, 1, 2.5, None]
    assert found[2].series == "encoder_decoder {q}"  # not in `for`


# Rows that follow the eight lines of VALID -> how the message begins.
IN_ROWS = [
    ("  - {nam: a}", "t.yaml:9: rows[0].nam is not a key of rows[0]; did you mean name?"),
    ("  - {name: 3}", "t.yaml:9: rows[0].name is 3; it must be text, so write it in quotes"),
    ("  - a", 't.yaml:8: rows[0] is "a"; it must be a mapping'),
    ("  []", "t.yaml:8: rows is []; it must be a list of at least 1 item, each a mapping"),
    ("  - {name: a, overrides: model.depth=1}", 't.yaml:9: rows[0].overrides is "model.depth=1"; it must be a list, each text'),
    ("  - {name: a, published: {number: 3}}", 't.yaml:9: row "a": published has "number"; the columns are overall, yes/no'),
    ("  - {name: a}\n  - {name: b}\n  - {name: a}", 't.yaml:11: there are two rows named "a"'),
    ("  - {name: a, for: {L: [1, 2]}}", 't.yaml:9: there are two rows named "a"'),
    ("  - {name: '{L}', for: {L: 3}}", 't.yaml:9: rows[0].for is {"L": 3}; it must be a mapping of names to lists of values'),
]  # fmt: skip
IN_TABLE = [
    ("title: T", "titel: T", "t.yaml:1: titel is not a key of the table; did you mean title? (and 1 more)"),
    ("verified: true\n", "", "t.yaml: verified is missing; it must be true or false"),
    ("[overall, yes/no]", "[]", "t.yaml:7: columns is []; it must be a list of at least 1 item, each text"),
    ("yes/no", "overall", "t.yaml:7: columns states one twice: overall, overall"),
    ("split: val", "split: val\nplot: {y: a}", "t.yaml:7: plot.y is not a key of plot; its keys are x"),
    ("split: val", "split: val\nmetric: vqa_pre2012", 't.yaml:7: metric is "vqa_pre2012"; it must be'),
    ("title: T", "title: [", "t.yaml:"),
    ("rows:\n" + ROW, "", "t.yaml: rows is missing; it must be a list of at least 1 item, each a mapping"),
    (VALID + ROW, BASE, "t.yaml:1: name is not a key of the table; did you mean"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "begins"),
    [(VALID + text + "\n", begins) for text, begins in IN_ROWS]
    + [((VALID + ROW).replace(old, new), begins) for old, new, begins in IN_TABLE],
)
def test_errors(write, text, begins):
    write({"t.yaml": text})
    with pytest.raises(ConfigError) as caught:
        load_table("t.yaml")
    assert str(caught.value).startswith(begins)
    assert "\n" not in str(caught.value)
