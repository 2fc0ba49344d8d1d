"""scripts/score.py on files made by hand."""

import gzip
import json

import pytest
from runs import Lab

from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.text.vocabulary import Vocabulary, build_tokens


@pytest.fixture
def files(tmp_path):
    humans = {1: ["yes"] * 10, 2: ["2"] * 3 + ["3"] * 7, 3: ["red"] * 2 + ["Blue."] * 8}
    annotations = [
        {
            "question_id": number,
            "image_id": 1,
            "question_type": "how many" if number == 2 else "is",
            "answer_type": "number" if number == 2 else "other",
            "multiple_choice_answer": answers[-1],
            "answers": [{"answer": answer} for answer in answers],
        }
        for number, answers in humans.items()
    ]
    with gzip.open(tmp_path / "annotations.json.gz", "wt") as file:
        json.dump({"annotations": annotations}, file)
    results = {1: "yes", 2: "2", 3: "blue"}
    (tmp_path / "results.json").write_text(
        json.dumps([{"question_id": i, "answer": a} for i, a in results.items()])
    )
    return tmp_path


def score(folder, *args):
    """What scripts/score.py printed, and the metrics that it wrote."""
    files = ["results.json", "--annotations", "annotations.json.gz", "--output", "metrics.json"]
    done = Lab(folder).execute("scripts/score", [*files, *args])
    assert done.status == 0, done.err
    return done.out, json.loads((folder / "metrics.json").read_text())


def test_scores_by_hand(files):
    # Question 2: three of ten said 2, so leaving one out gives (3 · 2/3 + 7 · 1) / 10 = 0.9.
    printed, metrics = score(files)
    assert metrics["overall"] == pytest.approx(100 * (1 + 0.9 + 1) / 3)
    assert metrics["per_answer_type"] == {"number": pytest.approx(90), "other": 100}
    assert metrics["per_question_type"] == {"how many": pytest.approx(90), "is": 100}
    assert metrics["n"] == 3
    assert "96.67" in printed


def test_several_files(files):
    """One table each, and no file for them all."""
    (files / "more.json").write_text((files / "results.json").read_text())
    arguments = ["results.json", "more.json", "--annotations", "annotations.json.gz"]
    printed = Lab(files).execute("scripts/score", arguments).out
    first, second = printed.rstrip("\n").split("\n\nmore.json, metric vqa\n")
    assert first == f"results.json, metric vqa\n{second}"
    (line,) = Lab(files).execute("scripts/score", [*arguments, "--output", "x.json"]).errors()
    assert line == "error: --output takes the metrics of one file, not of 2"
    assert not (files / "x.json").exists()


def test_metric_before_2021_keeps_the_case_of_human_answers(files):
    # "Blue." loses its full stop but not its capital there, so "blue" matches nobody.
    assert score(files, "--metric", "vqa_pre2021")[1]["overall"] == pytest.approx(190 / 3)


def test_existing_output_stays(files):
    (files / "metrics.json").write_text("mine")
    with pytest.raises(AssertionError, match=r"^error: metrics\.json: exists"):
        score(files)
    assert (files / "metrics.json").read_text() == "mine"


def test_questions_of_a_prepared_split_only(files):
    examples = [Example(number, 1, "what", ["x"]) for number in (3, 1)]
    vocabulary = Vocabulary(build_tokens(["what"]), ("x",))
    custom = {"dataset": "custom", "metric": "vqa", "sources": {}}
    write_prepared(files / "prepared", {"val": examples}, vocabulary, **custom)
    results = [{"question_id": i, "answer": a} for i, a in ((1, "yes"), (3, "red"))]
    (files / "results.json").write_text(json.dumps(results))
    metrics = score(files, "--split", "prepared", "val")[1]
    assert (metrics["n"], metrics["overall"]) == (2, pytest.approx(100 * (1 + 0.6) / 2))
