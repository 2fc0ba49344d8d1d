"""What would make runs fail is told before the first, all of it in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mcan.data.synthetic import make_synthetic
from mcan.errors import DataError
from mcan.tables.contents import Contents
from mcan.tables.plan import plan
from mcan.tables.readiness import check_known, check_ready, unchecked
from mcan.tables.spec import load_table

TABLE = {
    "title": "T",
    "source": "S",
    "verified": True,
    "dataset": "synthetic",
    "base": "config.yaml",
    "split": "val",
    "columns": ["overall", "yes/no", "number"],
    "rows": [{"name": "a"}, {"name": "b", "overrides": ["model.depth=2"]}],
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_synthetic(tmp_path / "made", questions=12, images=4)
    Path("config.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "run",
                "data": {
                    "prepared": str(made.prepared.relative_to(tmp_path)),
                    "images": [str(made.images.relative_to(tmp_path))],
                },
            }
        )
    )


def problems(overrides=(), known=False, base=None, **changes) -> str:
    Path("t.yaml").write_text(yaml.safe_dump({**TABLE, **changes}))
    table = load_table("t.yaml")
    runs = plan(table, base, overrides)
    check = check_known if known else check_ready
    try:
        check(table, runs, runs, Contents())
    except DataError as error:
        return str(error)
    return ""


def test_all_is_there(data):
    assert problems() == ""


def test_everything_that_is_missing_is_told_once(data):
    absent = ["data.prepared=no", "data.images=[no.h5]", "model.question.word_vectors.path=no.txt"]
    assert problems(absent) == (
        "no: there is no such prepared dataset; run the prepare.py of the dataset; "
        "no.h5: there is no such image store; no.txt: there is no such file of word vectors"
    )
    assert problems(absent, known=True) == ""


def test_the_script_is_named_where_there_is_one(data):
    Path("rooms").mkdir()
    Path("rooms/prepare.py").touch()
    assert problems(["data.prepared=rooms/prepared"]).endswith("; run python rooms/prepare.py")


def test_rows_are_named_where_others_could_run(data):
    rows = [{"name": "a"}, {"name": "b", "overrides": ["data.prepared=no"]}]
    assert problems(rows=rows).endswith("run the prepare.py of the dataset (rows: b)")


@pytest.mark.parametrize("known", [True, False])
def test_splits(data, known):
    rows = [{"name": "a"}, {"name": "b", "split": "vla", "overrides": ["data.evaluate=tset"]}]
    found = problems(["data.train=[train, vg]"], known, rows=rows)
    begins = "made/prepared: there is no split '{}'; there is train, val"
    assert found == (
        f"{begins.format('vg')}; {begins.format('tset')} (rows: b); "
        f"{begins.format('vla')} (rows: b)"
    )


@pytest.mark.parametrize("known", [True, False])
def test_columns(data, known):
    columns = ["overall", "yes/no", "colour", "shape"]
    assert problems(known=known, columns=columns) == (
        't.yaml: columns has "colour", "shape"; a column is overall, one that is published, or an '
        "answer type of made/prepared (number, other, yes/no)"
    )


def test_columns_that_need_not_be_of_the_data(data):
    columns = ["overall", "shape"]
    cited = {"name": "theirs", "runs": False, "published": {"shape": 3}}
    assert problems(columns=columns, rows=[*TABLE["rows"], cited]) == ""
    assert problems(columns=columns, submission=True) == ""
    Path("other.yaml").write_text(Path("config.yaml").read_text().replace("run", "other"))
    base = Path("other.yaml")
    evaluate = ["data.evaluate=val"]
    assert problems(evaluate, base=base, columns=columns, dataset="another") == ""
    assert problems(evaluate, base=base, columns=columns).startswith('t.yaml: columns has "shape"')
    assert problems(columns=columns, dataset="another").startswith('t.yaml: columns has "shape"')


def test_what_cannot_be_checked_is_told(data):
    Path("t.yaml").write_text(yaml.safe_dump(TABLE))
    table = load_table("t.yaml")
    assert unchecked(table, plan(table), Contents()) == []
    assert unchecked(table, plan(table, overrides=["data.prepared=no"]), Contents()) == [
        "not checked, since no is not prepared here: splits and the columns yes/no, number"
    ]
