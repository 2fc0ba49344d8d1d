"""Table files: what they state, and every mistake as one sentence."""

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
        for name, text in {"config.yaml": BASE, **texts}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return files


def rows(write, text: str):
    write({"t.yaml": VALID + text})
    return load_table("t.yaml").rows


def test_rows_have_what_they_do_not_state_of_their_table(write):
    write(
        {
            "tables/t.yaml": "_base_: shared/s.yaml\ntitle: T\nrows:\n  - {name: a}\n"
            "  - {name: b, base: ../other.yaml, split: test, submission: true, verified: false}\n",
            "tables/shared/s.yaml": "source: S\nverified: true\ndataset: d\nbase: ../../config.yaml\n"
            "split: val\ncolumns: [overall]\n",
            "other.yaml": BASE,
        }
    )
    table = load_table(Path("tables/t.yaml"))
    assert (table.name, table.path, table.seeds) == ("t", Path("tables/t.yaml"), (0,))
    first, second = table.rows
    assert (first.base, first.split, first.submission, first.verified) == (
        *("config.yaml", "val"),
        *(False, True),
    )
    assert (second.base, second.split, second.submission, second.verified) == (
        *("other.yaml", "test"),
        *(True, False),
    )
    assert first.runs
    assert dict(first.published) == {}


def test_loops_stand_for_their_product(write):
    text = (
        '  - {name: "{kind}-{L}", overrides: ["model.depth={L}", "model.cascade={kind}"],\n'
        '     series: "{kind} { }", x: "{L}", for: {kind: [stacking, encoder_decoder], L: [1, 2.5]}}\n'
    )
    found = rows(write, text + ROW)
    assert [row.name for row in found] == [
        "stacking-1",
        "stacking-2.5",
        "encoder_decoder-1",
        "encoder_decoder-2.5",
        "a",
    ]
    assert found[1].overrides == ("model.depth=2.5", "model.cascade=stacking")
    assert [row.x for row in found] == [1, 2.5, 1, 2.5, None]
    assert found[2].series == "encoder_decoder { }"


# Rows that follow the eight lines of VALID -> how the message begins.
IN_ROWS = [
    ("  - {nam: a}", "t.yaml:9: rows[0].nam is not a key of rows[0]; did you mean name?"),
    ("  - {overrides: []}", "t.yaml:9: rows[0].name is missing; it must be text"),
    ("  - {name: 3}", "t.yaml:9: rows[0].name is 3; it must be text, so write it in quotes"),
    ("  - a", 't.yaml:9: rows[0] is "a"; it must be a mapping'),
    ("  []", "t.yaml:8: rows is []; it must be a list of at least 1 item, each a mapping"),
    ("  - {name: a, overrides: model.depth=1}", 't.yaml:9: rows[0].overrides is "model.depth=1"; it must be a list, each text'),
    ("  - {name: a, overrides: [model.depth]}", 't.yaml:9: row "a": "model.depth" is not an override; write key=value'),
    ("  - {name: a, overrides: ['model.depth=[']}", 't.yaml:9: row "a": model.depth is not valid YAML'),
    ("  - {name: a, overrides: [seed=1]}", 't.yaml:9: row "a": seed is not the table\'s to set; seeds are stated by `seeds`'),
    ("  - {name: a, overrides: [a=1], runs: false}", 't.yaml:9: rows[0].overrides=["a=1"] contradicts rows[0].runs=false'),
    ("  - {name: a, published: {overall: much}}", 't.yaml:9: rows[0].published.overall is "much"; it must be a number'),
    ("  - {name: a, published: {number: 3}}", 't.yaml:9: row "a": published has "number", which is not of columns (overall, yes/no)'),
    ("  - {name: a}\n  - {name: b}\n  - {name: a}", 't.yaml:11: the row "a" is stated twice, first in line 9'),
    ("  - {name: a, for: {L: [1, 2]}}", 't.yaml:9: the row "a" is stated twice, first in line 9'),
    ("  - {name: '{L}', for: {L: 3}}", 't.yaml:9: rows[0].for is {"L": 3}; it must be a mapping of names to lists of values'),
    ("  - {name: '{L}', for: {L: []}}", "t.yaml:9: rows[0].for is"),
    ("  - {name: '{L}', for: {L: [[1]]}}", "t.yaml:9: rows[0].for is"),
    ("  - {name: '{L}', for: {}}", "t.yaml:9: rows[0].for is {}; it must be"),
    ("  - {name: 'n{L}', for: {L: [1]},\n     published: {overall: 3}}", "t.yaml:10: rows[0] has `for`; state figures in rows of their own"),
    ("  - {name: 'n{q}'}", 't.yaml:9: rows[0] has {q} in "n{q}", but the row has no `for`'),
    ("  - {name: a}\n  - {name: b, x: '{q}'}", 't.yaml:10: rows[1] has {q} in "{q}", but the row has no `for`'),
    ("  - {name: '{L}', overrides: ['model.depth={l}'], for: {L: [1], k: [2]}}", 't.yaml:9: rows[0] has {l} in "model.depth={l}", but its `for` gives L, k'),
    ("  - {name: a, base: no.yaml}", "t.yaml:9: base names no.yaml, which does not exist"),
    ("  - {name: a, base: 3}", "t.yaml:9: rows[0].base is 3; it must be text"),
    ("  - {name: a, x: far}", 't.yaml:9: rows[0].x is "far"; it must be a number, or null'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "begins"), IN_ROWS)
def test_mistakes_in_rows(write, text, begins):
    with pytest.raises(ConfigError) as caught:
        rows(write, text + "\n")
    assert str(caught.value).startswith(begins)
    assert "\n" not in str(caught.value)


IN_TABLE = [
    (("title: T", "titel: T"), "t.yaml:1: titel is not a key of the table; did you mean title? (and 1 more)"),
    (("title: T", "lr: 1"), "t.yaml:1: lr is not a key of the table; its keys are title, source"),
    (("verified: true\n", ""), "t.yaml: verified is missing; it must be true or false"),
    (("base: config.yaml\n", ""), "t.yaml: base is missing; it must be text"),
    (("base: config.yaml", "base: no.yaml"), "t.yaml:5: base names no.yaml, which does not exist"),
    (("[overall, yes/no]", "[]"), "t.yaml:7: columns is []; it must be a list of at least 1 item, each text"),
    (("yes/no", "''"), 't.yaml:7: columns[1] is ""; it must be the name of a column'),
    (("yes/no", "' '"), 't.yaml:7: columns[1] is " "; it must be the name of a column'),
    (("yes/no", "overall"), 't.yaml:7: columns[1] is "overall", which is there already'),
    (("overall,", "overal,"), 't.yaml:7: columns[0] is "overal"; did you mean overall?'),
    (("overall,", "Overall,"), 't.yaml:7: columns[0] is "Overall"; did you mean overall?'),
    (("split: val", "split: val\nseeds: 3"), "t.yaml:7: seeds is 3; it must be a list of at least 1 item, each a whole number"),
    (("split: val", "split: val\nplot: {y: a}"), "t.yaml:7: plot.y is not a key of plot; its keys are x"),
    (("split: val", "split: val\npath: a"), "t.yaml:7: path is not a key of the table"),
    (("split: val", "split: val\nassume: {questions: {train: 0}}"), "t.yaml:7: assume.questions.train is 0; it must be a whole number of at least 1"),
    (("rows:\n", "rows: a #"), 't.yaml:8: rows is "a"; it must be a list'),
    (("title: T", "title: ["), "t.yaml:"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "begins"), IN_TABLE)
def test_mistakes_in_the_table(write, change, begins):
    write({"t.yaml": (VALID + ROW).replace(*change)})
    with pytest.raises(ConfigError) as caught:
        load_table("t.yaml")
    assert str(caught.value).startswith(begins)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [BASE, ""])
def test_a_file_that_is_no_table(write, text):
    write({"t.yaml": text})
    with pytest.raises(ConfigError) as caught:
        load_table("t.yaml")
    assert str(caught.value) == (
        "t.yaml: the file is no table: a table states title, source, verified, dataset, base, "
        "split, columns, rows (docs/tables.md); a config of train.py is given with --base"
    )


def test_no_file(write):
    write({})
    with pytest.raises(ConfigError, match=r"t\.yaml: the file does not exist"):
        load_table("t.yaml")
