"""scripts/reproduce.py: mistakes are told in one sentence, before any run, and nothing is lost."""

from __future__ import annotations

import json

import pytest
from runs import contents
from table_lab import TABLE, TableLab, make_table_lab

from mcan.data.synthetic import make_synthetic


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> TableLab:
    return make_table_lab(tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("model.hidden_size=16", "data.prepared=no"), "no: there is no such prepared dataset"),
        (("split: val", "split: vla"), "prepared: there is no split 'vla'; there is train, val"),
        (("yes/no", "yesno"), 'table.yaml: columns has "yesno"; a column is overall, one that'),
    ],
)
def test_what_would_fail_is_told_before_any_run(lab, change, told):
    (lab.folder / "table.yaml").write_text(TABLE.replace(*change))
    result = lab.reproduce("--runs", "told")
    (lab.folder / "table.yaml").write_text(TABLE)
    assert result.status == 2
    (error,) = result.errors()
    assert error.startswith(f"error: {told}")
    assert not (lab.folder / "told").exists()


@pytest.mark.parametrize("output", ["table.yaml", "table.yaml/below"])
def test_a_folder_that_cannot_be_made_is_told_before_any_run(lab, output):
    result = lab.reproduce("--runs", "unmade", "--output", output)
    assert result.status == 2
    (error,) = result.errors()
    assert error.startswith(f"error: {output}: the table's folder cannot be made or written (")
    assert not (lab.folder / "unmade").exists()


def test_changed_data_and_damaged_outcomes_are_told(tmp_path):
    lab = make_table_lab(tmp_path)
    args = ("--rows", "narrow", "--seeds", "0")
    assert lab.reproduce(*args).status == 0
    before = contents(lab.folder / "runs")
    make_synthetic(tmp_path / "new", questions=44, images=10, answers=5, vocabulary=12, seed=1)
    (tmp_path / "prepared").rename(tmp_path / "old")
    (tmp_path / "new/prepared").rename(tmp_path / "prepared")
    result = lab.reproduce(*args)
    assert result.status == 2
    (error,) = result.errors()
    assert "(narrow, seed 0): the split 'train' of prepared is not what it was" in error
    assert contents(lab.folder / "runs") == before
    outcome = lab.folders()[0] / "outcome_val.json"
    for text, reason in (("{", "not valid JSON"), ('{"split": 3}', "not what reproduce.py wrote")):
        outcome.write_text(text)
        (error,) = lab.reproduce(*args).errors()
        assert reason in error


def test_changed_features_are_told(tmp_path):
    """Not where the run is of a version that did not note its image stores."""
    lab = make_table_lab(tmp_path)
    args = ("--rows", "narrow", "--seeds", "0")
    assert lab.reproduce(*args).status == 0
    before = contents(lab.folder / "runs")
    make_synthetic(tmp_path / "new", images=10, feature_dim=6, seed=1)
    (tmp_path / "new/images.h5").replace(tmp_path / "images.h5")
    result = lab.reproduce(*args)
    assert result.status == 2
    (error,) = result.errors()
    assert "(narrow, seed 0): the image store images.h5 is not what it was when" in error
    assert contents(lab.folder / "runs") == before
    (path,) = (lab.folder / "runs/reproduce").glob("*/outcome_val.json")
    outcome = json.loads(path.read_text())
    for trained in outcome["trained_on"]:
        del trained["stores"]
    path.write_text(json.dumps(outcome))
    assert lab.reproduce(*args).status == 0
