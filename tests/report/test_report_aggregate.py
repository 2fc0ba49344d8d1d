"""Means, spreads and differences against numpy and figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made import make, row

from mcan.report.aggregate import Evaluation
from mcan.report.files import markdown
from mcan.report.plots import png

TYPES = {"yes/no": 80.0, "number": 40.0}


def one_row(folder, **published):
    return make(folder, [row("A", 1, published=published)])


def test_mean_and_spread_over_seeds(tmp_path):
    made = one_row(tmp_path, overall=65.0)
    values = [64.125, 66.5, 65.875]
    for seed, value in enumerate(values):
        made.finish("A", seed, value, {"yes/no": value + 20, "number": value - 30})
    summary = made.summary
    cells = summary.rows[0].cells
    for name, shift in (("overall", 0), ("yes/no", 20), ("number", -30)):
        expected = np.array(values) + shift
        assert cells[name].mean == pytest.approx(expected.mean(), abs=1e-12)
        assert cells[name].std == pytest.approx(expected.std(ddof=1), abs=1e-12)
    assert cells["overall"].values == dict(enumerate(values))
    assert cells["overall"].difference == pytest.approx(0.5)
    assert cells["yes/no"].difference is None  # nothing published
    assert summary.rows[0].evaluations == [Evaluation("vqa_v2", "val", "vqa", 4000)]
    assert not summary.rows[0].missing


@pytest.mark.parametrize(("ours", "expected"), [(64.0, -1.0), (65.0, 0.0), (66.0, 1.0)])
def test_the_difference_is_ours_minus_published(tmp_path, ours, expected):
    made = one_row(tmp_path, overall=65.0)
    made.finish("A", 0, ours)
    assert made.summary.rows[0].cells["overall"].difference == expected


def test_one_run_has_no_spread_and_equal_runs_have_none_to_see(tmp_path):
    made = one_row(tmp_path)
    made.finish("A", 1, 50.0)
    cell = made.summary.rows[0].cells["overall"]
    assert (cell.mean, cell.std) == (50.0, None)
    made.finish("A", 2, 50.0)
    assert made.summary.rows[0].cells["overall"].std == 0


def test_runs_that_are_not_finished(tmp_path):
    made = one_row(tmp_path, overall=65.0)
    summary = made.summary
    assert summary.rows[0].missing == [0, 1, 2]
    cell = summary.rows[0].cells["overall"]
    assert (cell.mean, cell.std, cell.difference, cell.published) == (None, None, None, 65.0)
    made.finish("A", 1, 60.0)
    assert made.summary.rows[0].missing == [0, 2]


def test_rows_that_were_not_planned_are_left_out(tmp_path):
    rows = [row("A", 1), row("B", 2), {"name": "C", "runs": False, "published": {"overall": 60}}]
    made = make(tmp_path, rows)
    made.runs = [run for run in made.runs if run.row.name == "B"]
    assert [each.row.name for each in made.summary.rows] == ["B", "C"]


def test_rows_of_one_config_share_their_run(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 1), row("C", 1, split="test")], seeds=[0])
    made.finish("A", 0, 61.0)
    first, second, other_split = (each.cells["overall"].mean for each in made.summary.rows)
    assert (first, second, other_split) == (61.0, 61.0, None)


def test_another_dataset_has_its_own_columns_and_no_differences(tmp_path):
    made = one_row(tmp_path, overall=65.0)
    made.finish("A", 0, 97.0, {"relational": 95.0, "non-relational": 99.0}, dataset="shapes")
    summary = made.summary
    assert summary.columns == ("overall", "non-relational", "relational")
    cells = summary.rows[0].cells
    assert (cells["overall"].published, cells["overall"].difference) == (65.0, None)
    assert cells["relational"].mean == 95.0
    assert not summary.comparable


def test_a_row_without_runs_has_the_columns_of_the_others(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 2)], seeds=[0])
    made.finish("A", 0, 97.0, {"relational": 95.0}, dataset="shapes")
    summary = made.summary
    assert summary.rows[1].cells["relational"].mean is None
    assert "| B " in markdown(summary)
    assert png(summary)


def test_another_dataset_of_the_same_types_keeps_the_columns(tmp_path):
    made = one_row(tmp_path, number=45.0)
    made.finish("A", 0, 60.0, TYPES, dataset="vqa_v1")
    assert made.summary.columns == ("overall", "yes/no", "number")
    assert made.summary.rows[0].cells["number"].difference is None


def test_the_tables_dataset_keeps_the_columns_whatever_types_there_are(tmp_path):
    made = one_row(tmp_path)
    made.finish("A", 0, 60.0, {**TYPES, "": 10.0, "other": 20.0}, {"how many": 30.0})
    summary = made.summary
    assert summary.columns == ("overall", "yes/no", "number")
    assert summary.rows[0].cells["other"].mean == 20.0  # for the files
    assert summary.rows[0].question_types["how many"].mean == 30.0


def test_questions_without_a_type_are_no_column(tmp_path):
    made = one_row(tmp_path)
    made.finish("A", 0, 60.0, {"": 60.0}, dataset="mine")
    assert made.summary.columns == ("overall", "yes/no", "number")


def test_figures_of_the_evaluation_server(tmp_path):
    rows = [row("A", 1, published={"overall": 70.5}), row("B", 2)]
    made = make(tmp_path, rows, seeds=[0], submission=True)
    made.finish("A", 0, None)
    made.finish("B", 0, None)
    assert [each.submitted for each in made.summary.rows] == [True, True]
    made.filled = {"A": {"overall": 70.75}}
    first, second = made.summary.rows
    cell = first.cells["overall"]
    assert (cell.mean, cell.std, cell.difference, cell.from_server) == (70.75, None, 0.25, True)
    assert (first.submitted, second.submitted, first.missing) == (False, True, [])


def test_what_was_measured_goes_before_what_was_filled_in(tmp_path):
    made = one_row(tmp_path)
    made.finish("A", 0, 60.0)
    made.filled = {"A": {"overall": 70.0, "number": 50.0}}
    cells = made.summary.rows[0].cells
    assert (cells["overall"].mean, cells["overall"].from_server) == (60.0, False)
    assert (cells["number"].mean, cells["number"].from_server) == (50.0, True)
