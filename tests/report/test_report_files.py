"""table.md, table.csv and table.json, read back by other means than wrote them."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from made import Made, make, row

from mcan.report.files import csv_text, json_text, markdown
from mcan.tables.call import Call


def cells(text: str, table: int = 0) -> list[list[str]]:
    """Cells of a Markdown table, head first, the rule left out."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = blocks[table].splitlines()
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


def test_markdown_beside_the_published_figures(two_rows):
    text = markdown(two_rows.summary)
    assert text.startswith("# Table 1: depth\n\n| row ")
    assert cells(text) == [
        ["row", "overall", "published", "difference", "yes/no", "number", "runs"],
        ["shallow", "65.50 ± 0.50", "65.20", "+0.30", "86.55 ± 0.05", "0.33 ± 0.00", "3 of 3"],
        ["deep", "66.00", "66.25†", "−0.25", "85.00", "44.00", "1 of 3"],
    ]
    for note in (
        "- Accuracy in percent on val of vqa\\_v2 (4,000 questions), metric vqa.".replace("\\", ""),
        "- ± is the sample standard deviation (n − 1) over seeds; a figure without it is one run.",
        "- Source of the published figures: a paper, Table 1.",
        "- † recalled from the paper, not confirmed against its PDF.",
        "- Not finished: deep (seeds 0, 2).",
    ):
        assert note in text.splitlines()


def test_what_the_command_changed_is_stated(two_rows):
    plain = two_rows.summary
    assert markdown(plain).startswith("# Table 1: depth\n\n| row ")
    assert json.loads(json_text(plain))["call"] == {
        "table": str(plain.table.path),
        "base": None,
        "set": [],
        "seeds": None,
    }
    overrides = ["train.epochs=3", "optimizer.lr=5e-4", "data.images=[a_b.h5]"]
    summary = replace(plain, call=Call.of(Path("other.yaml"), overrides, [1, 0]))
    line = markdown(summary).splitlines()[2]
    stated = "data.images=[a_b.h5] optimizer.lr=5e-4 train.epochs=3"
    assert line == f"Run on other.yaml with {stated} and seeds 0, 1.".replace("[", "\\[")
    call = json.loads(json_text(summary))["call"]
    assert (call["base"], call["set"], call["seeds"]) == ("other.yaml", sorted(overrides), [0, 1])


def test_markdown_with_many_published_columns(tmp_path):
    published = {"overall": 64.8, "yes/no": 82.5}
    rows = [row("A", 1, published=published), {"name": "B", "runs": False, "published": published}]
    made = make(tmp_path, rows, seeds=[0])
    made.finish("A", 0, 64.796, {"yes/no": 83.0, "number": 40.0})
    text = markdown(made.summary)
    assert cells(text) == [
        ["row", "overall", "yes/no", "number", "runs"],
        ["A", "64.80", "83.00", "40.00", "1 of 1"],
    ]
    assert cells(text, 1) == [
        ["row", "overall", "Δ overall", "yes/no", "Δ yes/no"],
        ["A", "64.8", "0.00", "82.5", "+0.50"],  # not −0.00
        ["B", "64.8", "–", "82.5", "–"],
    ]
    assert "†" not in text
    assert "Each accuracy is that of one run." in text


def test_markdown_of_another_dataset(two_rows):
    for name in ("shallow", "deep"):
        for seed in range(3):
            two_rows.finish(name, seed, 90.0, {"kind": 90.0}, dataset="shapes")
    text = markdown(two_rows.summary)
    assert cells(text)[0] == ["row", "overall", "published (vqa_v2)", "kind", "runs"]
    assert cells(text)[1] == ["shallow", "90.00 ± 0.00", "65.20", "90.00 ± 0.00", "3 of 3"]
    assert "for vqa_v2 and the runs on shapes, so no differences are given." in text


def test_markdown_before_any_run_and_without_published_figures(tmp_path):
    text = markdown(make(tmp_path, [row("A", 1)], columns=["overall"]).summary)
    assert cells(text) == [["row", "overall", "runs"], ["A", "–", "0 of 3"]]
    assert "Source of" not in text
    assert "±" not in text


def test_markdown_marks_the_servers_figures(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 2)], seeds=[0], submission=True)
    made.finish("A", 0, None)
    made.finish("B", 0, None)
    made.filled = {"A": {"overall": 70.5}}
    text = markdown(made.summary)
    assert cells(text)[1:] == [
        ["A", "70.50‡", "–", "–", "1 of 1"],
        ["B", "–", "–", "–", "1 of 1"],
    ]
    assert "- ‡ the evaluation server's figure for one submission." in text
    assert "- Submitted, the evaluation server's figures not filled in: B." in text


def test_several_evaluations_name_their_rows(tmp_path):
    made = make(tmp_path, [row("A", 1), row("B", 2, split="test")], seeds=[0])
    made.finish("A", 0, 60.0)
    made.finish("B", 0, 61.0)
    text = markdown(made.summary)
    assert "on val of vqa_v2 (4,000 questions), metric vqa: A." in text
    assert "on test of vqa_v2 (4,000 questions), metric vqa: B." in text


def test_markdown_shows_names_as_they_are(tmp_path):
    names = ["<script>", "a|b", "*bold* `code`", "GloVe_pt", "_x_", "&amp; & co"]
    made = make(tmp_path, [row(name, n + 1) for n, name in enumerate(names)])
    shown = [line[0] for line in cells(markdown(made.summary))[1:]]
    assert shown == [
        r"\<script>",
        r"a\|b",
        r"\*bold\* \`code\`",
        "GloVe_pt",
        r"\_x\_",
        r"\&amp; & co",
    ]


def read_csv(made: Made) -> dict[tuple[str, str, str], dict[str, str]]:
    lines = list(csv.DictReader(io.StringIO(csv_text(made.summary))))
    read = {(line["row"], line["kind"], line["column"]): line for line in lines}
    assert len(read) == len(lines)
    return read


def test_csv_has_every_figure_once_with_two_decimals(two_rows):
    read = read_csv(two_rows)
    assert len(read) == 7
    number = read["shallow", "answer type", "number"]
    assert (number["mean"], number["std"]) == ("0.33", "0.00")
    assert (number["n"], number["planned"], number["published"]) == ("3", "3", "")
    overall = read["deep", "overall", "overall"]
    assert (overall["published"], overall["difference"], overall["std"]) == ("66.25", "-0.25", "")
    assert (overall["verified"], overall["origin"]) == ("false", "runs")
    assert read["deep", "question type", "how many"]["mean"] == "66.67"


def test_csv_rounds_the_difference_and_not_its_parts(tmp_path):
    made = make(tmp_path, [row("A", 1, published={"overall": 64.8})], seeds=[0])
    made.finish("A", 0, 64.796)
    (line,) = read_csv(made).values()
    assert (line["mean"], line["published"], line["difference"]) == ("64.80", "64.8", "0.00")


def test_csv_leaves_out_figures_that_do_not_exist(tmp_path):
    """Nothing measured or published; published of another dataset's type; but each row is there."""
    published = {"overall": 64.8, "yes/no": 82.5}
    cited = {"name": "C", "runs": False, "published": published}
    made = make(tmp_path, [row("A", 1, published=published), row("B", 2), cited], seeds=[0])
    made.finish("A", 0, 64.0, {"number": 40.0})
    columns = [(name, column) for name, _, column in read_csv(made)]
    assert columns == [
        ("A", "overall"),
        ("A", "yes/no"),
        ("A", "number"),
        ("B", "overall"),
        ("C", "overall"),
        ("C", "yes/no"),
    ]
    made.finish("A", 0, 64.0, {"kind": 90.0}, dataset="shapes")
    columns = [(name, column) for name, _, column in read_csv(made)]
    assert columns == [("A", "overall"), ("A", "kind"), ("B", "overall"), ("C", "overall")]


def test_csv_keeps_awkward_names_and_empty_figures(tmp_path):
    name = 'a, "quoted"\nname'
    made = make(tmp_path, [row(name, 1)], columns=["overall"])
    (line,) = csv.DictReader(io.StringIO(csv_text(made.summary)))
    assert line["row"] == name
    assert (line["mean"], line["origin"], line["n"]) == ("", "", "0")


def test_json_has_seeds_overrides_and_commands(two_rows):
    content = json.loads(json_text(two_rows.summary))
    assert (content["title"], content["dataset_of_published_figures"]) == (
        "Table 1: depth",
        "vqa_v2",
    )
    shallow, deep = content["rows"]
    assert shallow["columns"]["overall"]["seeds"] == {"0": 65.0, "1": 65.5, "2": 66.0}
    assert shallow["overrides"] == ["model.depth=1"]
    assert deep["missing_seeds"] == [0, 2]
    assert deep["question_types"]["how many"]["mean"] == 200 / 3
    assert [run["finished"] for run in deep["runs"]] == [False, True, False]
    run = two_rows.run("deep", 1)
    command = shlex.split(deep["runs"][1]["train"])
    assert command == ["python", "train.py", str(run.base), *run.overrides]
    assert shlex.split(deep["runs"][1]["evaluate"])[2:] == [str(run.folder), "--split", "val"]
    assert content["footnotes"]


def test_the_order_in_which_runs_end_changes_nothing(two_rows):
    written = [write(two_rows.summary) for write in (markdown, csv_text, json_text)]
    two_rows.outcomes = dict(reversed(two_rows.outcomes.items()))
    assert written == [write(two_rows.summary) for write in (markdown, csv_text, json_text)]
