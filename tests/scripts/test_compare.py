"""scripts/compare.py: numbers by hand, by enumeration, and eval.py's; and what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import Lab, Result, contents, make_lab

from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.synthetic import SyntheticPaths
from mcan.text.vocabulary import Vocabulary, build_tokens

STEP = "val_step_00000018"
EXAMPLES = [
    Example(1, "x", "Is it red?", ["yes"] * 10, "yes/no", "is"),
    Example(2, "x", "Is it\nblue?", ["no"] * 10, "yes/no", "is"),
    Example(3, "y", "How many?", ["2"] * 3 + ["3"] * 7, "number", "how many"),
    Example(4, "y", "Which colour?", ["red"] * 2 + ["blue"] * 8, "other", ""),
    Example(5, "z", "Which, then?", ["red"] * 10, "other", ""),
    Example(6, "z", "Which now?", ["blue"] * 10, "other", ""),
]
ANSWERS_A = {1: "yes", 2: "yes", 3: "2", 4: "blue", 5: "green", 6: "none"}
ANSWERS_B = {1: "yes", 2: "no", 3: "3", 4: "red", 5: "red", 6: "black"}
# Three of ten: (3 · 2/3 + 7 · 1) / 10 = 90 %. Two of ten: (2 · 1/3 + 8 · 2/3) / 10 = 60 %.
ACCURACIES_A = [100, 0, 90, 100, 0, 0]
ACCURACIES_B = [100, 100, 100, 60, 100, 0]
CHANGES = [0, 100, 10, -40, 100, 0]


def prepare(folder: Path, splits: dict[str, list[Example]], metric: str = "vqa") -> None:
    vocabulary = Vocabulary(build_tokens(["which"]), ("red",))
    options: dict[str, Any] = {"dataset": "custom", "metric": metric, "sources": {}}
    write_prepared(folder, splits, vocabulary, lambda answers: [(0, 1.0)], **options)


def predict(folder: Path, answers: dict[int, str], split: str | None = None) -> None:
    """A folder as eval.py writes it."""
    folder.mkdir(parents=True)
    entries = [{"question_id": i, "answer": answer} for i, answer in answers.items()]
    (folder / "predictions.json").write_text(json.dumps(entries))
    if split is not None:
        (folder / "metrics.json").write_text(json.dumps({"split": split}))


def make_run(folder: Path, answers: dict[int, str], **data: Any) -> None:
    predict(folder / "predictions" / STEP, answers, "val")
    config = {"name": folder.name, "data": {"prepared": "prepared", "images": ["no.h5"], **data}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two runs whose evaluations are written by hand."""
    silent = [Example(7, "x", "Which?"), Example(8, "x", "Which?", ["red"])]
    prepare(tmp_path / "prepared", {"val": EXAMPLES, "test": silent})
    make_run(tmp_path / "runs" / "a", ANSWERS_A)
    make_run(tmp_path / "runs" / "b", ANSWERS_B)
    return Lab(tmp_path, SyntheticPaths(tmp_path / "prepared", tmp_path / "no.h5", None))


def compare(lab: Lab, *args: str) -> Result:
    return lab.execute("scripts/compare", args)


def compared(lab: Lab, *args: str) -> dict[str, Any]:
    """What --json holds."""
    result = compare(lab, *args, "--json", "out/compared.json")
    assert result.status == 0, result.err
    path = lab.folder / "out" / "compared.json"
    record: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return record


def test_accuracies_by_hand(lab):
    rows = compared(lab, "runs/a", "runs/b")["differences"]
    expected = [
        ("overall", "", range(6)),
        ("answer type", "number", [2]),
        ("answer type", "other", [3, 4, 5]),
        ("answer type", "yes/no", [0, 1]),
        ("question type", "", [3, 4, 5]),
        ("question type", "how many", [2]),
        ("question type", "is", [0, 1]),
    ]
    assert [(row["kind"], row["name"]) for row in rows] == [e[:2] for e in expected]
    for row, (_, _, questions) in zip(rows, expected, strict=True):
        assert row["questions"] == len(questions)
        assert row["accuracy_a"] == pytest.approx(np.mean([ACCURACIES_A[i] for i in questions]))
        assert row["accuracy_b"] == pytest.approx(np.mean([ACCURACIES_B[i] for i in questions]))
        assert row["difference"] == pytest.approx(np.mean([CHANGES[i] for i in questions]))
        assert (row["interval"] is None) == (len(questions) == 1)


def test_intervals_by_enumeration(lab):
    """All 6^6 resamples of questions, and all 3^3 of images, each of which has two questions."""
    questions = [np.mean(drawn) for drawn in itertools.product(CHANGES, repeat=6)]
    images = [np.mean(drawn) for drawn in itertools.product([50, -15, 50], repeat=3)]
    for by, means, tolerance in (("question", questions, 2), ("image", images, 1e-6)):
        row = compared(lab, "runs/a", "runs/b", "--by", by)["differences"][0]
        expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
        assert row["interval"] == pytest.approx(expected.tolist(), abs=tolerance)


def test_what_is_printed(lab):
    result = compare(lab, "runs/a", "runs/b", "--resamples", "2000", "--confidence", "90")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == f"A: runs/a/predictions/{STEP}"
    assert lines[1] == f"B: runs/b/predictions/{STEP}"
    assert lines[2] == "split val, metric vqa; 2,000 resamples of questions, seed 0"
    assert "90 % interval" in lines[4]
    overall, number = lines[6].split(), lines[7].split()
    assert overall[:5] == ["overall", "6", "48.33", "76.67", "+28.33"]
    assert number == ["answer", "type:", "number", "1", "90.00", "100.00", "+10.00", "-"]
    assert "better with B: 3, worse with B: 1, equal: 2" in lines
    assert result.out.endswith(
        "changed, 4 of 4:\n"
        "2  Is it blue?\n    A: yes | B: no | people: no (10) | +100.00\n"
        "3  How many?\n    A: 2 | B: 3 | people: 3 (7), 2 (3) | +10.00\n"
        "4  Which colour?\n    A: blue | B: red | people: blue (8), red (2) | -40.00\n"
        "5  Which, then?\n    A: green | B: red | people: red (10) | +100.00\n"
    )
    assert compare(lab, "runs/a", "runs/b", "--resamples", "2000").out != result.out
    again = compare(lab, "runs/a", "runs/b", "--resamples", "2000", "--confidence", "90")
    assert again.out == result.out


def test_ten_questions_are_printed_and_all_are_written(lab):
    many = [Example(f"q{i}", "x", f"Is it {i}?", ["yes"] * 10) for i in range(13)]
    prepare(lab.folder / "many", {"val": many})
    for name, answer in (("no", "no"), ("yes", "yes")):
        predict(lab.folder / name, {f"q{i}": answer for i in range(13)}, "val")
    result = compare(lab, "no", "yes", "data.prepared=many", "--changed", "changed.csv")
    assert result.status == 0, result.err
    assert "changed, 10 of 13:" in result.out
    assert "q9  Is it 9?" in result.out
    assert "q10" not in result.out
    assert re.search(r"overall +13 +0.00 +100.00 +\+100.00 +\[\+100.00, \+100.00\]  \*", result.out)
    with (lab.folder / "changed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(13)]
    assert rows[12] == {
        "question_id": "q12",
        "question": "Is it 12?",
        "answer_a": "no",
        "answer_b": "yes",
        "human_answers": "yes (10)",
        "accuracy_a": "0.0",
        "accuracy_b": "100.0",
        "change": "100.0",
    }


def test_metric_and_its_outcomes(lab):
    record = compared(lab, "runs/a", "runs/b", "--metric", "exact")
    assert record["metric"] == "exact"
    assert record["outcomes"] == {
        "both right": 3,
        "only A right": 0,
        "only B right": 2,
        "both wrong": 1,
    }
    assert compared(lab, "runs/a", "runs/b", "evaluation.metric=exact") == record
    soft = compared(lab, "runs/a", "runs/b")
    assert soft["metric"] == "vqa"
    assert soft["outcomes"] == {"better with B": 3, "worse with B": 1, "equal": 2}


def test_a_run_with_itself(lab):
    result = compare(lab, "runs/a", "runs/a")
    assert re.search(r"overall .* \+0.00 +\[\+0.00, \+0.00\]\n", result.out)
    assert "changed" not in result.out
    record = compared(lab, "runs/a", "runs/a")
    assert record["changed"] == []
    several = [row for row in record["differences"] if row["questions"] > 1]
    assert all((row["difference"], row["interval"]) == (0, [0, 0]) for row in several)


def test_the_latest_step_of_the_split_counts(lab):
    predictions = lab.folder / "runs" / "b" / "predictions"
    predict(predictions / "val_step_00000009", ANSWERS_A)
    predict(predictions / "val_step_100000000", ANSWERS_A)
    predict(predictions / "other_val_step_200000000", ANSWERS_B)
    (predictions / "val_step_300000000").mkdir()
    record = compared(lab, "runs/a", "runs/b")
    assert record["b"] == "runs/b/predictions/val_step_100000000"
    assert record["changed"] == []


def test_folders_of_predictions(lab):
    """In a run, which has the config; elsewhere, where the other's run has it, or nobody."""
    whole = compared(lab, "runs/a", "runs/b")
    assert compared(lab, "runs/a", f"runs/b/predictions/{STEP}") == whole
    predict(lab.folder / "apart", ANSWERS_B)
    assert compared(lab, "runs/a", "apart") == {**whole, "b": "apart"}
    predict(lab.folder / "lone", ANSWERS_A, "val")
    found = compared(lab, "lone", "apart", "data.prepared=prepared", "--split", "val")
    assert found == {**whole, "a": "lone", "b": "apart"}
    shutil.copy(lab.folder / "apart" / "predictions.json", lab.folder / "runs" / "b")
    assert compared(lab, "runs/a", "runs/b") == {**whole, "b": "runs/b"}


def test_moved_data(lab):
    (lab.folder / "prepared").rename(lab.folder / "moved")
    assert compare(lab, "runs/a", "runs/b").status == 2
    found = compared(lab, "runs/a", "runs/b", "data.prepared=moved")
    assert found["differences"][0]["questions"] == 6


def test_same_questions_prepared_twice(lab):
    prepare(lab.folder / "twice", {"val": EXAMPLES})
    make_run(lab.folder / "runs" / "c", ANSWERS_B, prepared="twice")
    found, whole = compared(lab, "runs/a", "runs/c"), compared(lab, "runs/a", "runs/b")
    assert found["differences"] == whole["differences"]


def test_agrees_with_eval(tmp_path):
    lab = make_lab(tmp_path, splits=("train", "val"))
    for name, seed in (("one", 1), ("two", 2)):
        assert lab.train(name, f"seed={seed}").status == 0
        assert lab.eval(f"runs/{name}").status == 0
    rows = compared(lab, "runs/one", "runs/two")["differences"]
    for side, name in (("accuracy_a", "one"), ("accuracy_b", "two")):
        metrics = json.loads((lab.run(name) / "predictions" / STEP / "metrics.json").read_text())
        assert rows[0][side] == metrics["overall"]
        for kind in ("answer type", "question type"):
            found = {row["name"]: row[side] for row in rows if row["kind"] == kind}
            assert found == metrics[f"per_{kind.replace(' ', '_')}"]


def _without(number: int) -> dict[int, str]:
    return {i: answer for i, answer in ANSWERS_B.items() if i != number}


def _damage(lab: Lab) -> None:
    """Runs `c_...` and folders that cannot be compared with run a."""
    folder, runs = lab.folder, lab.folder / "runs"
    make_run(runs / "c_missing", _without(2))
    make_run(runs / "c_more", {**ANSWERS_B, 9: "red"})
    make_run(runs / "c_not_json", ANSWERS_B)
    (runs / "c_not_json" / "predictions" / STEP / "predictions.json").write_text('[{"question')
    make_run(runs / "c_number", {**ANSWERS_B, 3: 4})  # type: ignore[dict-item]
    make_run(runs / "c_empty", {})
    make_run(runs / "c_unevaluated", ANSWERS_B)
    shutil.rmtree(runs / "c_unevaluated" / "predictions")
    make_run(runs / "c_no_split", ANSWERS_B, evaluate=None)
    make_run(runs / "c_test", ANSWERS_B, evaluate="test")
    reworded = [*EXAMPLES[:5], Example(6, "z", "Which one?", ["blue"])]
    prepare(folder / "reworded", {"val": reworded})
    make_run(runs / "c_reworded", ANSWERS_B, prepared="reworded")
    prepare(folder / "exact", {"val": EXAMPLES}, metric="exact")
    make_run(runs / "c_exact", ANSWERS_B, prepared="exact")
    predict(folder / "lone", ANSWERS_B)
    predict(folder / "unreadable", ANSWERS_B)
    (folder / "unreadable" / "metrics.json").write_text("{")
    (folder / "there.csv").write_text("mine")
    (folder / "there.json").write_text("mine")


CASES: dict[str, tuple[list[str], str]] = {
    "question_missing": (
        ["runs/c_missing"],
        rf"c_missing/predictions/{STEP}/predictions.json: question 2 of split val of prepared with",
    ),
    "question_more": (
        ["runs/c_more"],
        r"predictions.json: question 9 not in split val of prepared",
    ),
    "not_json": (["runs/c_not_json"], r"predictions.json: not the JSON expected"),
    "answer_a_number": (["runs/c_number"], r"entry 2 \(question 3\): 'answer' is 4, expected text"),
    "no_entry": (["runs/c_empty"], r"predictions.json: the list is empty"),
    "unevaluated": (
        ["runs/c_unevaluated"],
        r"runs/c_unevaluated: holds no evaluation of val in predictions/; make one with eval.py",
    ),
    "unknown_split": (["runs/b", "--split", "tset"], r"no split 'tset'; there is val, test"),
    "no_split": (["runs/c_no_split"], r"runs/c_no_split: the config has no data.evaluate; name a"),
    "other_split": (
        ["runs/c_test"],
        r"runs/a has the split val and runs/c_test test; give --split",
    ),
    "other_metric": (["runs/c_exact"], r"metric vqa and runs/c_exact exact; give --metric"),
    "other_questions": (
        ["runs/c_reworded"],
        r"reworded/val.h5: question 6 of prepared/val.h5 missing or worded otherwise",
    ),
    "answers_held_back": (
        ["runs/b", "--split", "test"],
        r"test.h5: question 7 without human answers to score against",
    ),
    "metrics_json": (["unreadable"], r"unreadable/metrics.json: not the JSON that eval.py wrote"),
    "no_run": (["runs"], r"runs: neither a run folder nor a folder with predictions.json"),
    "nothing": (["nowhere"], r"nowhere: neither a run folder nor a folder with predictions.json"),
    "no_data": (["runs/b", "data.prepared=gone"], r"gone: there is no such prepared dataset"),
    "third_run": (["runs/b", "runs/b"], r'command line: "runs/b" is not an override'),
    "unknown_key": (["runs/b", "data.prepard=x"], r"command line: data.prepard is not a key"),
    "csv_there": (["runs/b", "--changed", "there.csv"], r"there.csv: exists; choose another --ch"),
    "json_there": (
        ["runs/b", "--json", "there.json"],
        r"there.json: exists; choose another --json",
    ),
    "one_file": (["runs/b", "--json", "x", "--changed", "x"], r"x: given for both --changed and -"),
    "unwritable": (["runs/b", "--json", "there.csv/x"], r"there.csv/x: could not be written"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("broken")
    prepare(folder / "prepared", {"val": EXAMPLES, "test": [Example(7, "x", "Which?")]})
    make_run(folder / "runs" / "a", ANSWERS_A)
    make_run(folder / "runs" / "b", ANSWERS_B)
    lab = Lab(folder, SyntheticPaths(folder / "prepared", folder / "no.h5", None))
    _damage(lab)
    return lab


def refused(lab: Lab, args: list[str], sentence: str) -> None:
    """One sentence, nothing printed, nothing written."""
    before = contents(lab.folder)
    result = compare(lab, *args)
    assert result.status == 2, result.err
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    assert re.match("error: ", result.err)
    assert re.search(sentence, result.err), result.err
    after = contents(lab.folder)
    assert {k: v for k, v in after.items() if not k.startswith("printed")} == {
        k: v for k, v in before.items() if not k.startswith("printed")
    }


@pytest.mark.parametrize("case", CASES)
def test_refused(broken, case):
    args, sentence = CASES[case]
    refused(broken, ["runs/a", *args], sentence)


def test_refused_outside_of_runs(broken):
    sentence = r"lone and lone are not in run folders: data.prepared is missing"
    refused(broken, ["lone", "lone"], sentence)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--resamples", "0"),
        ("--seed", "-1"),
        *(("--confidence", text) for text in ("100", "nan", "0.95", "1", "0")),
    ],
)
def test_numbers_out_of_range(broken, option, value):
    result = compare(broken, "runs/a", "runs/b", option, value)
    assert result.status == 2
    assert f"argument {option}: {value} is " in result.err.splitlines()[-1]
    assert option != "--confidence" or result.err.endswith("; 95 % is written 95\n")
