"""Means, spreads and differences against numpy and by hand; scores of an evaluation server; files.

table.md, .tex, .csv and .json are read back by other means than wrote them.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import Made, make, row

from mcan.errors import ConfigError, RunError
from mcan.tables import writing
from mcan.tables.planning import CommandOptions, plan
from mcan.tables.running import RunMetrics

TYPES = {"yes/no": 80.0, "number": 40.0}


def one_row(folder, **published) -> Made:
    return make(folder, [row("A", 1, published=published)])


def cell(made: Made, column: str = "overall") -> writing.Cell:
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
    assert cell(made) == writing.Cell(None, None, 65.0, None, {})
    made.finish("A", 1, ours)
    assert cell(made) == writing.Cell(ours, None, 65.0, expected, {1: ours})
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
    assert cell(made) == writing.Cell(66.0, None, 65.0, None, {0: 66.0})
    assert not made.summary.comparable
    made.finish("A", 0, 66.0)
    assert cell(made).difference == 1.0
    made.finish("A", 1, 66.0, metric="vqa")
    assert cell(made).difference is None


def test_every_number_of_metrics_json_is_kept():
    metrics = {
        "n": 7,
        "overall": 60.0,
        "per_answer_type": {"yes/no": 80.0, "n": 3.0},
        "per_question_type": {"what is. the": 50.0},
        "metric": "vqa",
        "more": {"deep": {"er": 1.5}, "flag": True},
    }
    found = writing.numbers(RunMetrics.model_validate(metrics))
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
    assert cell(made) == writing.Cell(70.75, None, 70.5, difference, {})
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
    return {run.row.name: found for run in made.runs if (found := writing.read_scores([run]))}


def test_scores_are_kept_and_replaced(server):
    """Rows that share a run share them."""
    assert scores(server) == {}
    writing.enter_scores(server.table, server.runs, ["small: L = 6=70.63", "large:yes/no=86.82"])
    texts = ["too=0.5", "large:yes/no=87", "small: L = 6:test_std=70.9"]
    writing.enter_scores(server.table, server.runs, texts)
    assert scores(server) == {
        "small: L = 6": {"overall": 70.63, "test_std": 70.9},
        "large": {"yes/no": 87.0, "overall": 0.5},
        "too": {"yes/no": 87.0, "overall": 0.5},
    }


def test_scores_belong_to_the_run(server):
    writing.enter_scores(server.table, server.runs, ["large=70"])
    run = server.run("large")
    options = CommandOptions(seeds=(7, 0), runs=run.folder.parent)
    several = plan(server.table, options, ["large"])
    assert writing.read_scores(several[:1]) == {}
    assert writing.read_scores(several) == {"overall": 70.0}
    with pytest.raises(ConfigError, match=r"'large' has several seeds; .* with --seeds"):
        writing.enter_scores(server.table, several, ["large=71"])
    run.outcome_path.unlink()
    assert writing.read_scores([run]) == {}
    with pytest.raises(RunError, match=r"\(large, seed 0\) is not finished; give --set, --seeds"):
        writing.enter_scores(server.table, server.runs, ["small: L = 6=70", "large=70"])
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
        writing.enter_scores(server.table, server.runs, ["large=2", text])
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
        writing.enter_scores(server.table, server.runs, ["small: L = 6=70", "large=2"])
    assert path.read_text() == text


def cells(text: str) -> list[list[str]]:
    """Cells of the Markdown table, head first, the rule left out."""
    (block,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = block.splitlines()
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    split = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [split[0], *split[2:]]


@pytest.fixture
def two_rows(tmp_path) -> Made:
    rows = [
        row("shallow", 1, published={"overall": 65.2}),
        row("deep", 6, published={"overall": 66.25}, verified=False),
    ]
    made = make(tmp_path, rows)
    for seed, value in enumerate((65.0, 65.5, 66.0)):
        made.finish("shallow", seed, value, {"yes/no": 80 + value / 10, "number": 1 / 3})
    made.finish("deep", 1, 66.0, {"yes/no": 85.0, "number": 44.0}, {"how many": 200 / 3})
    return made


def test_markdown_beside_the_published_values(two_rows):
    text = writing.markdown(two_rows.summary)
    assert text.startswith("# Table 1: depth\n\n| row ")
    assert text.endswith("\n\n![results](table.png)\n")
    assert cells(text) == [
        ["row", "overall", "published", "Δ", "yes/no", "number", "runs"],
        ["shallow", "65.50 ± 0.50", "65.2", "+0.30", "86.55 ± 0.05", "0.33 ± 0.00", "3 of 3"],
        ["deep", "66.00", "66.25†", "−0.25", "85.00", "44.00", "1 of 3"],
    ]
    for note in (
        "- Accuracy in percent on val of vqa_v2 (4,000 questions), metric vqa_pre2021.",
        "- ± is the sample standard deviation (n − 1) over seeds; values without it: one run.",
        "- Source of the published values: a paper, Table 1; vqa_v2, metric vqa_pre2021.",
        "- † from memory, not checked against the source.",
    ):
        assert note in text.splitlines()


def test_what_the_command_changed_is_stated(two_rows):
    options = CommandOptions(Path("other.yaml"), ("train.epochs=3", "data.images=[a.h5]"), (0, 1))
    summary = replace(two_rows.summary, options=options)
    changed = "--base other.yaml --set train.epochs=3 'data.images=\\[a.h5]' --seeds 0 1"
    assert writing.markdown(summary).splitlines()[2] == f"Run with {changed}"
    stated = json.loads(writing.json_text(summary))["options"]
    assert (stated["base"], stated["seeds"]) == ("other.yaml", [0, 1])
    assert stated["overrides"] == list(options.overrides)


def test_markdown_with_many_published_columns(tmp_path):
    published = {"overall": 64.8, "yes/no": 82.5}
    rows = [row("A", 1, published=published), {"name": "B", "runs": False, "published": published}]
    made = make(tmp_path, rows, seeds=[0])
    made.finish("A", 0, 64.796, {"yes/no": 83.0, "number": 40.0})
    text = writing.markdown(made.summary)
    assert cells(text) == [
        ["row", "overall", "published", "Δ", "yes/no", "published", "Δ", "number", "runs"],
        ["A", "64.80", "64.8", "+0.00", "83.00", "82.5", "+0.50", "40.00", "1 of 1"],
        ["B", "–", "64.8", "–", "–", "82.5", "–", "–", "–"],
    ]
    assert "†" not in text
    assert "±" not in text


@pytest.mark.parametrize("other", [{"dataset": "shapes"}, {"metric": "vqa"}])
def test_no_difference_for_another_dataset_or_metric(two_rows, other):
    for name in ("shallow", "deep"):
        for seed in range(3):
            two_rows.finish(name, seed, 90.0, {"yes/no": 90.0, "number": 1.0}, **other)
    text = writing.markdown(two_rows.summary)
    assert cells(text)[0] == ["row", "overall", "published", "yes/no", "number", "runs"]
    assert cells(text)[1][:3] == ["shallow", "90.00 ± 0.00", "65.2"]
    assert "- Runs of another dataset or metric: no difference is given.\n" in text


def test_markdown_before_any_run_and_without_published_values(tmp_path):
    text = writing.markdown(make(tmp_path, [row("A", 1)], columns=["overall"]).summary)
    assert cells(text) == [["row", "overall", "runs"], ["A", "–", "0 of 3"]]
    assert "Source of" not in text


def test_markdown_marks_the_servers_scores(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 2)], seeds=[0], submission=True)
    made.finish("A", 0, None)
    made.finish("B", 0, None)
    made.score("A", overall=70.5)
    text = writing.markdown(made.summary)
    assert [line[:2] for line in cells(text)[1:]] == [["A", "70.50‡"], ["B", "–"]]
    assert "- ‡ the evaluation server's score for one submission, metric unknown." in text


def test_columns_are_any_number_of_metrics_json(tmp_path):
    """Also of a row with a seed missing; what no run has is absent."""
    columns = ["per_question_type.how many", "n", "upper_bound", "overal"]
    made = make(tmp_path, [row("A", 1)], columns=columns)
    for seed in (0, 2):
        made.finish("A", seed, 60.0, None, {"how many": 30.0 + seed})
    assert cells(writing.markdown(made.summary))[1:] == [
        ["A", "31.00 ± 1.41", "4,000 ± 0", "95.00 ± 0.00", "–", "2 of 3"]
    ]


def test_learning_curves_are_shown_and_kept(two_rows):
    two_rows.train("deep", 1, {1: 50.0, 2: 66.0})
    assert writing.markdown(two_rows.summary).endswith("\n\n![learning curves](curves.png)\n")
    _, deep = json.loads(writing.json_text(two_rows.summary))["rows"]
    assert [run.get("curve") for run in deep["runs"]] == [None, {"1": 50.0, "2": 66.0}, None]


def test_several_evaluations_name_their_rows(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 2, split="test")], seeds=[0])
    made.finish("A", 0, 60.0)
    made.finish("B", 0, 61.0)
    text = writing.markdown(made.summary)
    assert "on val of vqa_v2 (4,000 questions), metric vqa_pre2021: A." in text
    assert "on test of vqa_v2 (4,000 questions), metric vqa_pre2021: B." in text


def test_markdown_shows_names_as_they_are(tmp_path):
    shown = {
        "<script>": r"\<script>",
        "a|b": r"a\|b",
        "*bold* `code`": r"\*bold\* \`code\`",
        "GloVe_pt": "GloVe_pt",
        "_x_": r"\_x\_",
        "&amp; & co": r"\&amp; & co",
    }
    made = make(tmp_path, [row(name, n + 1) for n, name in enumerate(shown)])
    assert [line[0] for line in cells(writing.markdown(made.summary))[1:]] == list(shown.values())


def test_runs_of_several_versions_of_the_code_are_noted(two_rows):
    assert "versions of the code" not in writing.markdown(two_rows.summary)
    path = two_rows.run("deep", 1).outcome_path
    two_rows.outcomes[path] = two_rows.outcomes[path].model_copy(update={"code": ("e",)})
    assert "- The runs were made by 2 versions of the code" in writing.markdown(two_rows.summary)
    rows = json.loads(writing.json_text(two_rows.summary))["rows"]
    assert [run.get("code") for run in rows[1]["runs"]] == [None, ["e"], None]


def test_latex(tmp_path):
    """What TeX would take as commands is escaped, and every line has as many cells as columns."""
    rows = [
        row(r"50% & more_$ { x} \y ~^#", 1, published={"overall": 64.0}, verified=False),
        row("[B]*", 2),
    ]
    made = make(tmp_path, rows, seeds=[0, 1], columns=["overall"])
    for seed in range(2):
        made.finish(rows[0]["name"], seed, 63.0 + seed)
    lines = writing.latex(made.summary).splitlines()
    assert lines[:9] == [
        "% Table 1: depth",
        r"\begin{tabular}{lrrrr}",
        r"\hline",
        r"row & overall & published & $\Delta$ & runs \\",
        r"\hline",
        r"50\% \& more\_\$ \{ x\} \textbackslash{}y \textasciitilde{}\textasciicircum{}\# & "
        r"63.50 $\pm$ 0.71 & 64\textsuperscript{\dag} & $-$0.50 & 2 of 2 \\",
        r"{[}B]{*} & -- & -- & -- & 0 of 2 \\",
        r"\hline",
        r"\end{tabular}\par",
    ]
    assert len(lines) > 9
    assert all(re.fullmatch(r"\{\\footnotesize .*\\par\}", line) for line in lines[9:])


def read_csv(made: Made) -> dict[tuple[str, str], dict[str, str]]:
    lines = list(csv.DictReader(io.StringIO(writing.csv_text(made.summary))))
    read = {(line["row"], line["column"]): line for line in lines}
    assert len(read) == len(lines)
    return read


def test_csv_has_every_value_once_with_two_decimals(two_rows):
    read = read_csv(two_rows)
    assert len(read) == 7
    number, overall = read["shallow", "number"], read["deep", "overall"]
    assert list(number.values())[2:] == ["0.33", "0.00", "", "3", "3", "", "", "runs"]
    assert list(overall.values())[2:] == ["66.00", "", "-0.25", "1", "3", "66.25", "false", "runs"]
    assert read["deep", "per_question_type.how many"]["mean"] == "66.67"


def test_csv_leaves_out_values_that_do_not_exist(tmp_path):
    """Nothing measured or published; but each row is there, whatever its name."""
    cited = {"name": 'C, "quoted"\nname', "runs": False, "published": {"yes/no": 82.5}}
    rows = [row("A", 1, published={"overall": 64.8}), row("B", 2), cited]
    made = make(tmp_path, rows, seeds=[0])
    made.finish("A", 0, 64.796, {"number": 40.0})
    read = read_csv(made)
    line = read["A", "overall"]  # the difference is rounded, not its parts
    assert (line["mean"], line["published"], line["difference"]) == ("64.80", "64.8", "0.00")
    assert list(read) == [
        *(("A", "overall"), ("A", "number"), ("B", "overall")),
        *((cited["name"], "overall"), (cited["name"], "yes/no")),
    ]
    assert list(read["B", "overall"].values())[2:] == ["", "", "", "0", "1", "", "", ""]


def test_json_has_seeds_overrides_folders_and_commands(two_rows):
    content = json.loads(writing.json_text(two_rows.summary))
    published = {"source": "a paper, Table 1", "dataset": "vqa_v2", "metric": "vqa_pre2021"}
    assert (content["title"], content["published"]) == ("Table 1: depth", published)
    assert content["footnotes"]
    shallow, deep = content["rows"]
    assert shallow["columns"]["overall"]["seeds"] == {"0": 65.0, "1": 65.5, "2": 66.0}
    assert shallow["overrides"] == ["model.depth=1"]
    assert deep["columns"]["per_question_type.how many"]["mean"] == 200 / 3
    assert [run["finished"] for run in deep["runs"]] == [False, True, False]
    run, written = two_rows.run("deep", 1), deep["runs"][1]
    assert written["folder"] == str(run.folder)
    trained = ["python", "train.py", str(run.base), *run.overrides]
    assert shlex.split(written["train"]) == trained
    assert shlex.split(written["evaluate"])[2:] == [str(run.folder), "--split", "val"]


def test_the_order_in_which_runs_end_changes_nothing(two_rows):
    files = (writing.markdown, writing.latex, writing.csv_text, writing.json_text)
    written = [write(two_rows.summary) for write in files]
    two_rows.outcomes = dict(reversed(two_rows.outcomes.items()))
    assert written == [write(two_rows.summary) for write in files]
