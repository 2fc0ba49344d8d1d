"""Means, spreads and differences against numpy and by hand; scores of an evaluation server."""

from __future__ import annotations

import numpy as np
import pytest
from made import Made, make, row

from mcan.errors import ConfigError, RunError
from mcan.tables.outcomes import RunMetrics
from mcan.tables.planning import CommandOptions, plan
from mcan.tables.summary import Cell, enter_scores, numbers, read_scores

TYPES = {"yes/no": 80.0, "number": 40.0}


def one_row(folder, **published) -> Made:
    return make(folder, [row("A", 1, published=published)])


def cell(made: Made, column: str = "overall") -> Cell:
    return made.summary.rows[0].cells[column]


def test_mean_and_spread_over_seeds(tmp_path):
    made = one_row(tmp_path, overall=65.0)
    values = [64.125, 66.5, 65.875]
    for seed, value in enumerate(values):
        made.finish("A", seed, value, {"yes/no": value + 20, "number": value - 30})
    for name, shift in (("overall", 0), ("yes/no", 20), ("number", -30)):
        expected = np.array(values) + shift
        assert cell(made, name).mean == pytest.approx(expected.mean(), abs=1e-12)
        assert cell(made, name).std == pytest.approx(expected.std(ddof=1), abs=1e-12)
    assert cell(made).seeds == dict(enumerate(values))
    assert cell(made).difference == pytest.approx(0.5)
    assert cell(made, "yes/no").difference is None  # nothing published


@pytest.mark.parametrize(("ours", "expected"), [(64.0, -1.0), (65.0, 0.0), (66.0, 1.0)])
def test_the_difference_is_ours_minus_published(tmp_path, ours, expected):
    made = one_row(tmp_path, overall=65.0)
    assert cell(made) == Cell(None, None, 65.0, None, {})
    made.finish("A", 1, ours)
    assert cell(made) == Cell(ours, None, 65.0, expected, {1: ours})
    made.finish("A", 2, ours)
    assert cell(made).std == 0
    assert made.summary.rows[0].outcomes.keys() == {1, 2}


def test_rows_that_were_not_planned_are_left_out(tmp_path):
    rows = [row("A", 1), row("B", 2), {"name": "C", "runs": False, "published": {"overall": 60}}]
    made = make(tmp_path, rows)
    made.runs = [run for run in made.runs if run.row.name == "B"]
    assert [each.row.name for each in made.summary.rows] == ["B", "C"]


def test_rows_of_one_config_share_their_run(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 1), row("C", 1, split="test")], seeds=[0])
    made.finish("A", 0, 61.0)
    means = [each.cells["overall"].mean for each in made.summary.rows]
    assert means == [61.0, 61.0, None]


@pytest.mark.parametrize(
    ("types", "dataset", "columns"),
    [
        ({"relational": 95.0, "local": 99.0}, "shapes", ("overall", "local", "relational")),
        (TYPES, "vqa_v1", ("overall", "yes/no", "number")),
        ({"": 60.0}, "mine", ("overall", "yes/no", "number")),  # questions without a type
        ({**TYPES, "": 1.0, "other": 2.0}, "vqa_v2", ("overall", "yes/no", "number")),
    ],
)
def test_columns_are_the_tables_or_those_of_another_dataset(tmp_path, types, dataset, columns):
    rows = [row("A", 1, published={"overall": 65.0}), row("B", 2)]
    made = make(tmp_path, rows, seeds=[0])
    made.finish("A", 0, 97.0, types, {"how many": 30.0}, dataset=dataset)
    summary = made.summary
    assert summary.columns == columns
    assert summary.rows[1].cells[columns[-1]].mean is None  # it is not finished
    assert summary.comparable == (dataset == "vqa_v2")
    assert (cell(made).difference is None) == (dataset != "vqa_v2")
    assert cell(made, "per_question_type.how many").mean == 30.0
    assert all(cell(made, name).mean == value for name, value in types.items() if name)


def test_no_difference_between_metrics(tmp_path):
    made = one_row(tmp_path, overall=65.0)
    made.finish("A", 0, 66.0, metric="vqa")
    assert cell(made) == Cell(66.0, None, 65.0, None, {0: 66.0})
    assert not made.summary.comparable
    made.finish("A", 0, 66.0)
    assert cell(made).difference == 1.0
    made.finish("A", 1, 66.0, metric="vqa")
    assert cell(made).difference is None


def test_columns_are_any_number_of_metrics_json():
    metrics = {
        "n": 7,
        "overall": 60.0,
        "per_answer_type": {"yes/no": 80.0, "n": 3.0},
        "per_question_type": {"what is. the": 50.0},
        "metric": "vqa",
        "more": {"deep": {"er": 1.5}, "flag": True},
    }
    found = numbers(RunMetrics.model_validate(metrics))
    assert {key: value for key, value in found.items() if "answer" not in key} == {
        "n": 3.0,  # answer types first
        "overall": 60.0,
        "yes/no": 80.0,
        "per_question_type.what is. the": 50.0,
        "more.deep.er": 1.5,
    }


@pytest.mark.parametrize(("metric", "difference"), [("vqa_pre2021", None), (None, 0.25)])
def test_scores_of_the_evaluation_server(tmp_path, metric, difference):
    """The server's metric is unknown, so there is no difference if the table states one."""
    rows = [row("A", 1, published={"overall": 70.5}), row("B", 2)]
    made = make(tmp_path, rows, seeds=[0], submission=True, metric=metric)
    made.finish("A", 0, None)
    made.score("A", overall=70.75)
    assert cell(made) == Cell(70.75, None, 70.5, difference, {})
    assert made.summary.rows[0].outcomes


@pytest.fixture
def server(tmp_path, monkeypatch) -> Made:
    """Rows with submissions, two of them one finished run, and rows without."""
    monkeypatch.chdir(tmp_path)
    rows = [
        row("small: L = 6", 6),
        row("large", 8),
        row("too", 8),
        {"name": "theirs", "runs": False},
        row("val", 1, split="val", submission=False),
    ]
    columns = ["overall", "yes/no", "test_std"]
    made = make(tmp_path, rows, seeds=[0], split="test", submission=True, columns=columns)
    made.finish("small: L = 6", 0, None)
    made.finish("large", 0, None)
    return made


def scores(made: Made) -> dict[str, dict[str, float]]:
    return {run.row.name: found for run in made.runs if (found := read_scores([run]))}


def test_scores_are_kept_and_replaced(server):
    """Rows that share a run share them."""
    assert scores(server) == {}
    enter_scores(server.table, server.runs, ["small: L = 6=70.63", "large:yes/no=86.82"])
    texts = ["too=0.5", "large:yes/no=87", "small: L = 6:test_std=70.9"]
    enter_scores(server.table, server.runs, texts)
    assert scores(server) == {
        "small: L = 6": {"overall": 70.63, "test_std": 70.9},
        "large": {"yes/no": 87.0, "overall": 0.5},
        "too": {"yes/no": 87.0, "overall": 0.5},
    }


def test_scores_belong_to_the_run(server):
    enter_scores(server.table, server.runs, ["large=70"])
    run = server.run("large")
    options = CommandOptions(seeds=(7, 0), runs=run.folder.parent)
    several = plan(server.table, options, ["large"])
    assert read_scores(several[:1]) == {}
    assert read_scores(several) == {"overall": 70.0}
    with pytest.raises(ConfigError, match=r"'large' has several seeds; .* with --seeds"):
        enter_scores(server.table, several, ["large=71"])
    run.outcome_path.unlink()
    assert read_scores([run]) == {}
    with pytest.raises(RunError, match=r"\(large, seed 0\) is not finished; give --set, --seeds"):
        enter_scores(server.table, server.runs, ["small: L = 6=70", "large=70"])
    assert "small: L = 6" not in scores(server)


@pytest.mark.parametrize(
    "text",
    [
        *("small=70", "theirs=70", "val=70", "=70", "70", "nonsense", "large:other=70"),
        *("large=", "large=7O", "large=700", "large=nan"),
    ],
)
def test_errors_in_scores(server, text):
    with pytest.raises(ConfigError) as caught:
        enter_scores(server.table, server.runs, ["large=2", text])
    assert str(caught.value) == (
        f"--fill {text!r}: expected ROW[:COLUMN]=SCORE in percent; the rows of "
        f"{server.table.path} with a submission: ['small: L = 6', 'large', 'too'], columns: "
        "overall, yes/no, test_std"
    )
    assert scores(server) == {}


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"overall": "3"}', '{"overall": {}}'])
def test_damaged_scores(server, text):
    path = server.run("large").folder / "server_test.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"server_test\.json: "):
        scores(server)
    with pytest.raises(RunError, match=r"server_test\.json: "):
        enter_scores(server.table, server.runs, ["small: L = 6=70", "large=2"])
    assert path.read_text() == text
