"""scripts/score.py on files made by hand."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcan.data.prepared_writer import Example, write_prepared
from mcan.text.vocabulary import Vocabulary, build_tokens

ROOT = Path(__file__).parents[2]


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
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts/score.py"), "results.json"),
            *("--annotations", "annotations.json.gz", *args),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_scores_by_hand(files):
    # Question 2: three of ten said 2, so leaving one out gives (3 · 2/3 + 7 · 1) / 10 = 0.9.
    done = score(files, "--output", "metrics.json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((files / "metrics.json").read_text())
    assert metrics["overall"] == pytest.approx(100 * (1 + 0.9 + 1) / 3)
    assert metrics["per_answer_type"] == {"number": pytest.approx(90), "other": 100}
    assert metrics["per_question_type"] == {"how many": pytest.approx(90), "is": 100}
    assert metrics["n"] == 3
    assert "96.67" in done.stdout


def test_the_vocabulary_bounds_the_score(files):
    (files / "vocabulary.json").write_text(
        json.dumps({"tokens": ["PAD", "UNK"], "answers": ["yes", "2", "red"]})
    )
    done = score(files, "--vocabulary", "vocabulary.json")
    # Best: yes 1, 2 scores 0.9, red was given twice: (2 · 1/3 + 8 · 2/3) / 10 = 0.6.
    assert "best possible with 3 answers: 83.33 %" in done.stdout


def test_metric_before_2021_keeps_the_case_of_human_answers(files):
    done = score(files, "--metric", "vqa_pre2021", "--output", "m.json")
    assert done.returncode == 0, done.stderr
    # "Blue." loses its full stop but not its capital there, so "blue" matches nobody.
    assert json.loads((files / "m.json").read_text())["overall"] == pytest.approx(190 / 3)


def test_existing_output_stays(files):
    (files / "m.json").write_text("mine")
    done = score(files, "--output", "m.json")
    assert done.returncode == 2
    assert done.stderr == "error: m.json: exists; choose another --output\n"
    assert (files / "m.json").read_text() == "mine"


def test_questions_of_a_prepared_split_only(files):
    examples = [Example(number, 1, "what", ["x"]) for number in (3, 1)]
    vocabulary = Vocabulary(build_tokens(["what"]), ("x",))
    write_prepared(
        files / "prepared",
        {"val": examples},
        vocabulary,
        lambda answers: [(0, 1.0)],
        dataset="custom",
        metric="vqa",
        sources={},
    )
    results = [{"question_id": i, "answer": a} for i, a in ((1, "yes"), (3, "red"))]
    (files / "results.json").write_text(json.dumps(results))
    done = score(files, "--split", "prepared", "val", "--output", "m.json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((files / "m.json").read_text())
    assert metrics["n"] == 2
    assert metrics["overall"] == pytest.approx(100 * (1 + 0.6) / 2)
