"""Table files, and the runs they need: identity, sharing, what the command line changes."""

# ruff: noqa: E501 (tables of one case a line)
from __future__ import annotations

from pathlib import Path

import pytest

from mcan.config import load_config
from mcan.errors import ConfigError
from mcan.tables import planning

BASE = """\
name: {name}
data: {{prepared: prepared, images: [regions.h5], evaluate: {evaluate}}}
"""
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
TABLE = (
    VALID.replace("rows:", "seeds: [0, 7]\nrows:")
    + """\
  - {name: two, overrides: [model.depth=2]}
  - {name: six}
  - {name: six too, overrides: [model.depth=6]}
  - {name: theirs, runs: false}
"""
)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, evaluate in (("config", "val"), ("other", "test"), ("none", "null")):
        Path(f"{name}.yaml").write_text(BASE.format(name=name, evaluate=evaluate))
    return changed("", "")


def changed(old: str, new: str) -> planning.Table:
    Path("t.yaml").write_text(TABLE.replace(old, new) if old else TABLE)
    return planning.load_table("t.yaml")


def planned(
    table: planning.Table, *overrides: str, rows=None, **options
) -> list[planning.PlannedRun]:
    return planning.plan(table, planning.CommandOptions(overrides=overrides, **options), rows)


def folders(*args, **options) -> set[Path]:
    return {run.folder for run in planned(*args, **options)}


def test_runs_in_order(table):
    runs = planned(table)
    assert [(run.row.name, run.seed) for run in runs] == [
        (name, seed) for name in ("two", "six", "six too") for seed in (0, 7)
    ]
    assert {run.split for run in runs} == {"val"}
    assert len({run.folder for run in runs}) == 4  # equal configs share a run
    assert [run.seed for run in planned(table, seeds=(3, 0, 3), rows=["two"])] == [3, 0]


def test_the_command_resolves_to_the_config(table):
    for run in planned(table, "optimizer.lr=1e-3", runs=Path("a b/12: c")):
        assert load_config(run.base, run.overrides) == run.config
        assert Path(run.config.runs) / run.config.name == run.folder
        assert run.config.seed == run.seed
        assert run.config.optimizer.lr == 1e-3


FREE = (
    *("data.prepared=moved", "data.images=[moved.h5]", "data.workers=3", "train.device=cpu"),
    *("train.log_every=7", "train.keep_last=2", "evaluation.batch_size=3"),
)
COUNTED = (
    *("model.depth=3", "optimizer.lr=1e-3", "data.max_tokens=9", "evaluation.metric=vqa"),
    *("data.limit=9", "train.max_steps=9", "evaluation.best_by=n"),
)


@pytest.mark.parametrize("change", [*FREE, *COUNTED])
def test_every_key_that_is_not_free_identifies_a_run(table, change):
    same = folders(table, rows=["six"]) == folders(table, change, rows=["six"])
    assert same == (change in FREE)


def test_defaults_and_the_schemas_version_count(table, monkeypatch):
    names = {folder.name for folder in folders(table, "train.epochs=13")}
    assert names == {folder.name for folder in folders(table, runs=Path("elsewhere"))}
    monkeypatch.setattr(planning, "SCHEMA_VERSION", 1000)
    assert not names & {folder.name for folder in folders(table)}


def test_data_that_rows_state_makes_other_runs(table):
    """Paths are free, since data may move, but rows compare stores or word vectors by them."""
    rows = "".join(
        f"  - {{name: '{path}', overrides: ['{path}']}}\n"
        for path in ("data.images=[a.h5]", "data.images=[b.h5]", "data={grid: [c.h5]}")
    )
    table = changed(TABLE[TABLE.index("  - ") :], rows)
    assert len(folders(table, seeds=(0,))) == 3
    assert folders(table) == folders(table, "data.prepared=moved")


def test_runs_are_scored_by_the_metric_of_the_published_values(table):
    table = changed("split: val", "split: val\nmetric: vqa_pre2021")
    for metric, overrides, base in (
        ("vqa_pre2021", (), None),
        ("vqa", ("evaluation.metric=vqa",), None),
        (None, (), Path("other.yaml")),
    ):
        runs = planned(table, *overrides, base=base)
        assert {run.config.evaluation.metric for run in runs} == {metric}


def test_another_base(table):
    (run,) = planned(table, base=Path("other.yaml"), seeds=(3,), rows=["two"])
    assert (run.base, run.split, run.seed) == (Path("other.yaml"), "test", 3)
    assert run.folder.name.startswith("other-")


SIX, OTHER = "name: six}", Path("other.yaml")


# Change of the table, options, how the message begins.
@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (("", ""), {"rows": ["tow"]}, "t.yaml: there is no run for a row 'tow'; rows: ['two', 's"),
        (("", ""), {"overrides": ("seed=3",)}, "t.yaml: seed cannot be overridden: runs are named"),
        (("", ""), {"overrides": ("model.dpth=3",)}, "command line: model.dpth is not a key of mo"),
        (("", ""), {"base": Path("none.yaml")}, "none.yaml: data.evaluate is null"),
        (("", ""), {"seeds": (-1,)}, "t.yaml: row 'two': seed is -1; it must be a whole number of"),
        (("depth=2", "dpth=2"), {}, "t.yaml: row 'two': model.dpth is not a key of model"),
        (("model.depth=2", "name=x"), {}, "t.yaml: name cannot be overridden"),
        ((SIX, "name: six, base: no.yaml}"), {}, "no.yaml: the file cannot be read"),
        (
            ("model.depth=2", "model.question.word_vectors.frozen=true"),
            {"base": OTHER},
            "t.yaml: row 'two': other.yaml and the command line: model.question.word_vectors.path is "
            "missing; it must be text",
        ),
        (
            (SIX, "name: six, base: other.yaml}"),
            {"base": OTHER},
            "t.yaml: --base other.yaml cannot replace the base of every row, since the row 'six'",
        ),
    ],
)
def test_errors(table, edit, options, message):
    rows = options.pop("rows", None)
    with pytest.raises(ConfigError) as caught:
        planning.plan(changed(*edit), planning.CommandOptions(**options), rows)
    assert str(caught.value).startswith(message)


def folder(table: planning.Table, *overrides: str, **options) -> Path:
    runs = planned(table, *overrides, **options)
    return planning.table_folder(
        table, planning.CommandOptions(overrides=overrides, **options), runs
    )


def test_other_runs_have_another_folder(table):
    assert folder(table) == planning.RUNS / "tables" / "t"
    longer = folder(table, "train.epochs=3", "optimizer.lr=1")
    assert longer == folder(table, "optimizer.lr=1", "train.epochs=3")
    different = {
        longer,
        folder(table, "train.epochs=4"),
        folder(table, "train.epochs=3", seeds=(1,)),
        folder(table, seeds=(0, 1)),
        folder(table, seeds=(0,)),
        folder(table, base=Path("other.yaml")),
        folder(table, "train.epochs=3", base=Path("other.yaml")),
    }
    assert len(different) == 7
    names = [path.relative_to(planning.RUNS / "tables").name.partition("-") for path in different]
    assert all(name == "t" and len(digest) == 8 for name, _, digest in names)
    moved = folder(table, seeds=(1, 0), runs=Path("elsewhere"))
    assert moved == Path("elsewhere/tables") / folder(table, seeds=(0, 1)).name


# ------------------------------------------------------------------------------ table files


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
    table = planning.load_table(Path("tables/t.yaml"))
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
    found = planning.load_table("t.yaml").rows
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
    (VALID + ROW, "name: run\n", "t.yaml:1: name is not a key of the table; did you mean"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "begins"),
    [(VALID + text + "\n", begins) for text, begins in IN_ROWS]
    + [((VALID + ROW).replace(old, new), begins) for old, new, begins in IN_TABLE],
)
def test_errors_in_table_files(write, text, begins):
    write({"t.yaml": text})
    with pytest.raises(ConfigError) as caught:
        planning.load_table("t.yaml")
    assert str(caught.value).startswith(begins)
    assert "\n" not in str(caught.value)
