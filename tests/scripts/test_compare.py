"""scripts/compare.py: numbers by hand, by enumeration, and eval.py's; and what it refuses."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import Lab, Result, make_lab
from test_train import refused

from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
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


def prepare(folder: Path, splits: dict[str, list[Example]]) -> None:
    vocabulary = Vocabulary(build_tokens(["which"]), ("red",))
    options: dict[str, Any] = {"dataset": "custom", "metric": "vqa", "sources": {}}
    write_prepared(folder, splits, vocabulary, **options)


def predict(folder: Path, answers: dict[Any, str]) -> None:
    """A folder as eval.py writes it."""
    folder.mkdir(parents=True)
    entries = [{"question_id": i, "answer": answer} for i, answer in answers.items()]
    (folder / "predictions.json").write_text(json.dumps(entries))


def make_run(folder: Path, answers: dict[int, str], seed: int = 0, **data: Any) -> None:
    predict(folder / "predictions" / STEP, answers)
    stated = {"prepared": "prepared", "images": ["no.h5"], **data}
    config = {"name": folder.name, "seed": seed, "data": stated}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two runs whose evaluations are written by hand."""
    silent = [Example(7, "x", "Which?"), Example(8, "x", "Which?", ["red"])]
    prepare(tmp_path / "prepared", {"val": EXAMPLES, "test": silent})
    make_run(tmp_path / "runs" / "a", ANSWERS_A)
    make_run(tmp_path / "runs" / "b", ANSWERS_B)
    for name, answers in (("a", ANSWERS_B), ("b", ANSWERS_A)):
        make_run(tmp_path / "runs" / f"{name}_5", answers | {6: "blue"}, seed=5)
    return Lab(tmp_path)


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
    """All 3^3 resamples of images, each of which has two questions."""
    means = [np.mean(drawn) for drawn in itertools.product([50, -15, 50], repeat=3)]
    row = compared(lab, "runs/a", "runs/b", "--by", "image")["differences"][0]
    expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert row["interval"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_groups_are_paired_by_seed(lab):
    """Seed 5 changes the other way, and both of its runs answer the last question."""
    groups = ("--a", "runs/a_5", "runs/a", "--b", "runs/b", "runs/b_5")
    record = compared(lab, *groups)
    steps = [f"runs/{name}/predictions/{STEP}" for name in ("a", "a_5", "b", "b_5")]
    assert record["a"] + record["b"] == steps
    change = np.mean(CHANGES)
    assert record["by_seed"] == pytest.approx([change, -change])
    overall = record["differences"][0]
    accuracy = np.mean([*ACCURACIES_A, *ACCURACIES_B]) + 100 / 12
    assert [overall["accuracy_a"], overall["accuracy_b"]] == pytest.approx([accuracy, accuracy])
    assert overall["difference"] == pytest.approx(0)
    low, high = overall["interval"]
    assert low < -change < change < high
    assert record["outcomes"] == {"better with B": 0, "worse with B": 0, "equal": 6}
    printed = compare(lab, *groups).out.splitlines()
    assert printed[:2] == [f"A: {steps[0]}, {steps[1]}", f"B: {steps[2]}, {steps[3]}"]
    assert "split val, metric vqa; 2,000 resamples of questions and 2 seeds" in printed
    assert "B - A by seed: +28.33, -28.33" in printed
    changed = compared(lab, *groups[:4], "runs/b", "runs/a_5")["changed"]
    assert [item["change"] for item in changed] == pytest.approx([50, 5, -20, 50])
    assert (changed[0]["answer_a"], changed[0]["answer_b"]) == ("yes, no", "no, no")


def test_what_is_printed(lab):
    result = compare(lab, "runs/a", "runs/b", "--confidence", "90")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == f"A: runs/a/predictions/{STEP}"
    assert lines[1] == f"B: runs/b/predictions/{STEP}"
    assert lines[2] == "split val, metric vqa; 10,000 resamples of questions"
    assert " ".join(lines[4].split()) == "questions differ A % B % B - A 90 % interval"
    assert lines[5].split()[:6] == ["overall", "6", "4", "48.33", "76.67", "+28.33"]
    assert lines[5].endswith("few")
    assert " ".join(lines[6].split()) == "answer type: number 1 1 90.00 100.00 +10.00 - few"
    assert "few: fewer than 5 questions differ, too few for an interval" in result.out
    assert any(line.startswith("one seed: the intervals do not cover") for line in lines)
    assert "better with B: 3, worse with B: 1, equal: 2" in lines
    assert result.out.endswith(
        "changed, 4 of 4:\n"
        "2  Is it blue?\n    A: yes | B: no | people: no (10) | +100.00\n"
        "3  How many?\n    A: 2 | B: 3 | people: 3 (7), 2 (3) | +10.00\n"
        "4  Which colour?\n    A: blue | B: red | people: blue (8), red (2) | -40.00\n"
        "5  Which, then?\n    A: green | B: red | people: red (10) | +100.00\n"
    )


def test_ten_questions_are_printed_and_all_are_written(lab):
    many = [Example(f"q{i}", "x", f"Is it {i}?", ["yes"] * 10) for i in range(13)]
    prepare(lab.folder / "many", {"val": many})
    for name, answer in (("no", "no"), ("yes", "yes")):
        predict(lab.folder / name, {f"q{i}": answer for i in range(13)})
    result = compare(lab, "no", "yes", "data.prepared=many", "--json", "all.json")
    assert result.status == 0, result.err
    assert "changed, 10 of 13:" in result.out
    assert "q9  Is it 9?" in result.out
    assert "q10" not in result.out
    assert re.search(
        r"overall +13 +13 +0.00 +100.00 +\+100.00 +\[\+100.00, \+100.00\]  \*", result.out
    )
    changed = json.loads((lab.folder / "all.json").read_text())["changed"]
    assert len(changed) == 13
    assert changed[12] == {
        **{"question_id": "q12", "question": "Is it 12?", "answer_a": "no", "answer_b": "yes"},
        **{"human_answers": "yes (10)", "accuracy_a": 0, "accuracy_b": 100, "change": 100},
    }


def test_the_metric_is_chosen_by_option_or_override(lab):
    record = compared(lab, "runs/a", "runs/b", "--metric", "exact")
    assert record["metric"] == "exact"
    assert record["outcomes"] == {"better with B": 2, "worse with B": 0, "equal": 4}
    assert compared(lab, "runs/a", "runs/b", "evaluation.metric=exact") == record


def test_the_latest_step_of_the_split_counts(lab):
    predictions = lab.folder / "runs" / "b" / "predictions"
    predict(predictions / "val_step_00000009", ANSWERS_A)
    predict(predictions / "val_step_100000000", ANSWERS_A)
    predict(predictions / "other_val_step_200000000", ANSWERS_B)
    (predictions / "val_step_300000000").mkdir()
    record = compared(lab, "runs/a", "runs/b")
    assert record["b"] == ["runs/b/predictions/val_step_100000000"]
    assert record["changed"] == []
    assert record["differences"][0]["interval"] == [0, 0]


def test_folders_of_predictions(lab):
    """In a run, which has the config; elsewhere, where the other's run has it, or nobody."""
    whole = compared(lab, "runs/a", "runs/b")
    assert compared(lab, "runs/a", f"runs/b/predictions/{STEP}") == whole
    predict(lab.folder / "apart", ANSWERS_B)
    assert compared(lab, "runs/a", "apart") == {**whole, "b": ["apart"]}
    predict(lab.folder / "lone", ANSWERS_A)
    found = compared(lab, "lone", "apart", "data.prepared=prepared")
    assert found == {**whole, "a": ["lone"], "b": ["apart"]}
    shutil.copy(lab.folder / "apart" / "predictions.json", lab.folder / "runs" / "b")
    assert compared(lab, "runs/a", "runs/b") == {**whole, "b": ["runs/b"]}


def test_results_say_what_they_answer(lab):
    """In metrics.json: the first questions only, or other data with the same ids."""

    def result(name: str, answers: dict[int, str], **metrics: Any) -> str:
        folder = lab.folder / "runs" / name[0] / "predictions" / f"data_{name}_{STEP}"
        predict(folder, answers)
        (folder / "metrics.json").write_text(json.dumps({"limit": None, **metrics}))
        return str(folder.relative_to(lab.folder))

    five = [dict(list(answers.items())[:5]) for answers in (ANSWERS_A, ANSWERS_B)]
    a, b = (result(f"{name}5", given, limit=5) for name, given in zip("ab", five, strict=True))
    found = compare(lab, a, b)
    answers = "answer only the first 5 (data.limit) of the 6 questions of prepared/val.h5"
    assert f"A and B {answers}\n" in found.out
    (line,) = compare(lab, a, "runs/b").errors()
    assert f"val_step_00000018 answers all of the 6 questions of prepared/val.h5, {a} " in line
    reworded = [example._replace(question=f"{example.question}?") for example in EXAMPLES]
    prepare(lab.folder / "other", {"val": reworded})
    other = [
        result(f"{name}0", answers, prepared="other")
        for name, answers in (("a", ANSWERS_A), ("b", ANSWERS_B))
    ]
    whole = compared(lab, "runs/a", "runs/b")
    assert compared(lab, *other)["differences"] == whole["differences"]
    assert compared(lab, *other)["prepared"] == "other"
    assert compared(lab, *other, "data.prepared=prepared")["prepared"] == "prepared"
    assert "of other/val.h5" in compare(lab, "runs/a", other[1]).err
    shutil.rmtree(lab.folder / "runs" / "a" / "predictions" / STEP)
    (line,) = compare(lab, "runs/a", "runs/b").errors()
    assert f"or name a result on other data or with data.limit: {other[0]}, {a}" in line


def test_data_moved_and_prepared_twice(lab):
    whole = compared(lab, "runs/a", "runs/b")["differences"]
    prepare(lab.folder / "twice", {"val": EXAMPLES})
    make_run(lab.folder / "runs" / "c", ANSWERS_B, prepared="twice")
    assert compared(lab, "runs/a", "runs/c")["differences"] == whole
    (lab.folder / "prepared").rename(lab.folder / "moved")
    assert compare(lab, "runs/a", "runs/b").status == 2
    assert compared(lab, "runs/a", "runs/b", "data.prepared=moved")["differences"] == whole


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
        # The files of another split say what they answer, without a run around them.
        split = ("--split", "train", "--output", name)
        assert lab.eval(f"runs/{name}", *split, "evaluation.metric=exact").status == 0
    record = compared(lab, "one", "two")
    assert (record["split"], record["metric"]) == ("train", "exact")
    overall = json.loads((lab.folder / "two" / "metrics.json").read_text())["overall"]
    assert record["differences"][0]["accuracy_b"] == overall


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Runs `c_...` that cannot be compared with run a."""
    folder = tmp_path_factory.mktemp("broken")
    runs = folder / "runs"
    prepare(folder / "prepared", {"val": EXAMPLES, "test": [Example(7, "x", "Which?")]})
    reworded = [*EXAMPLES[:5], Example(6, "z", "Which one?", ["blue"])]
    prepare(folder / "reworded", {"val": reworded})
    make_run(runs / "a", ANSWERS_A)
    make_run(runs / "b", ANSWERS_B)
    make_run(runs / "c_missing", {1: "yes"})
    make_run(runs / "c_unevaluated", ANSWERS_B)
    shutil.rmtree(runs / "c_unevaluated" / "predictions")
    make_run(runs / "c_no_split", ANSWERS_B, evaluate=None)
    make_run(runs / "c_reworded", ANSWERS_B, prepared="reworded")
    make_run(runs / "b_1", ANSWERS_B, seed=1)
    make_run(runs / "c_1", ANSWERS_A, seed=1)
    make_run(runs / "c_limited", ANSWERS_B, limit=5)
    predict(folder / "lone", ANSWERS_B)
    predict(folder / "other", ANSWERS_B)
    (folder / "other" / "metrics.json").write_text("[]")
    (folder / "there.json").write_text("mine")
    return Lab(folder)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("runs/a runs/c_missing", r"predictions.json: questions 2, 3, 4, 5, 6 of split val of pre"),
        ("runs/a runs/c_unevaluated", r"c_unevaluated: no evaluation of val in predictions/"),
        ("runs/a runs/b --split tset", r"no split 'tset'; there is val, test"),
        ("runs/c_no_split runs/a", r"c_no_split: the config has no data.evaluate; use"),
        ("runs/a runs/c_reworded", r"c_reworded/.* answers all of the 6 .* of reworded/val.h5, ru"),
        ("runs/a runs/b --split test", r"test.h5: some questions have no human answers"),
        ("runs/a runs", r"runs: neither a run folder nor one with a predictions.json of eval.py$"),
        ("none runs/a", r"none: neither a run .* of eval.py; there is no such folder$"),
        ("runs/a runs/b runs/b", r"name two runs, RUN RUN, or two groups, --a RUN"),
        ("runs/a runs/b --json there.json", r"there.json: exists; choose another --json"),
        ("runs/a runs/c_limited", r"c_limited/.* answers only the first 5 \(data.limit\) of "),
        ("--a runs/a", r"name two runs, RUN RUN, or two groups"),
        ("runs/a runs/b --a runs/a --b runs/b", r"name two runs, RUN RUN, or two groups"),
        ("--a runs/a runs/c_1 --b runs/b", r"the seeds of A are 0, 1, those of B 0; runs are p"),
        ("--a runs/a runs/b --b runs/b_1 runs/c_1", r"the seeds of A are 0, 0, those of B 1, 1"),
        ("--a runs/a runs/a --b runs/b runs/b", r"the seeds of A are 0, 0, those of B 0, 0"),
        ("--a runs/a lone --b runs/b runs/b_1", r"lone: not in a run folder, so its seed is"),
        ("--a runs/a runs/c_1 --b runs/c_reworded runs/b_1", r"c_reworded/.* of reworded/val.h5"),
        ("runs/a other", r"other/metrics.json: not written by eval.py, or damaged"),
        (
            "lone lone",
            r"lone: not in a run folder, and no metrics.json names its dataset: data.prep",
        ),
        ("lone lone data.prepared=prepared --split x", r"prepared: there is no split 'x'"),
    ],
)
def test_refused(broken, args, sentence):
    refused(broken, broken.folder, args.split(), sentence, "scripts/compare")
