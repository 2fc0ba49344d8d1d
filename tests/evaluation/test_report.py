"""Scores of predictions, the files, and the table on the screen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.split import Types
from mcan.data.store import open_store
from mcan.data.synthetic import make_synthetic
from mcan.errors import RunError
from mcan.evaluation.predict import Predictions
from mcan.evaluation.report import Scorer, predictions_json, refuse_existing, table, write_report
from mcan.text.vocabulary import Vocabulary, build_tokens

VOCABULARY = Vocabulary(build_tokens(["what is it"]), ("red", "blue", "two"))
EXAMPLES = [
    Example("a", 0, "What is it?", ["red"] * 10, "other", "what is"),
    Example("b", 1, "What?", ["blue"] * 2 + ["red"] * 8, "other", "what"),
    Example("c", 0, "How many?", ["two"] * 10, "number", ""),
    Example("d", 1, "How many?", ["three"] * 10, "number", ""),
]
PREDICTED = Predictions(
    np.arange(4),
    np.array([[0, 1], [1, 0], [0, 2], [2, 0]]),
    np.array([[0.5, 0.25], [0.75, 0.125], [1, 0], [0.5, 0.5]], np.float32),
)


def dataset_of(folder: Path, examples: list[Example]) -> VQADataset:
    images = make_synthetic(folder / "images", questions=4, images=2).images
    write_prepared(
        folder / "prepared",
        {"val": examples},
        VOCABULARY,
        lambda _: [],
        dataset="toy",
        metric="vqa",
        sources={},
    )
    return VQADataset([Prepared.open(folder / "prepared").split("val")], [open_store(images)])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VQADataset:
    return dataset_of(tmp_path_factory.mktemp("data"), EXAMPLES)


def test_metrics_by_hand(dataset):
    scorer = Scorer(dataset, "vqa", VOCABULARY.answers)
    assert scorer.possible
    # Two of ten said blue: leaving one out, 8 times 2/3 and twice 1/3.
    blue = 100 * (8 * 2 / 3 + 2 * 1 / 3) / 10
    metrics = scorer.metrics(PREDICTED)
    assert metrics == {
        "n": 4,
        "overall": pytest.approx((100 + blue) / 4),
        "per_answer_type": {"number": 0.0, "other": pytest.approx((100 + blue) / 2)},
        "per_question_type": {"": 0.0, "what": pytest.approx(blue), "what is": 100.0},
    }
    assert scorer.upper_bound() == 75.0


def test_other_metric(dataset):
    assert Scorer(dataset, "exact", VOCABULARY.answers).metrics(PREDICTED)["overall"] == 50.0


def test_not_possible_without_answers(tmp_path):
    held_back = [*EXAMPLES[:2], Example("x", 0, "What?")]
    assert not Scorer(dataset_of(tmp_path, held_back), "vqa", VOCABULARY.answers).possible


def test_entries(dataset):
    plain = predictions_json(dataset, PREDICTED, VOCABULARY.answers)
    assert plain[0] == {"question_id": "a", "answer": "red"}
    assert [entry["answer"] for entry in plain] == ["red", "blue", "red", "two"]
    top = predictions_json(dataset, PREDICTED, VOCABULARY.answers, top=5)
    assert top[1] == {
        "question_id": "b",
        "answer": "blue",
        "top": [{"answer": "blue", "probability": 0.75}, {"answer": "red", "probability": 0.125}],
    }
    assert json.loads(json.dumps(top)) == top


def test_files(tmp_path):
    folder = tmp_path / "a" / "b"
    refuse_existing(folder)
    write_report(folder, [{"question_id": 1, "answer": "é"}], {"overall": 100 / 3})
    assert json.loads((folder / "predictions.json").read_text()) == [
        {"question_id": 1, "answer": "é"}
    ]
    assert json.loads((folder / "metrics.json").read_text()) == {"overall": 100 / 3}
    for name in ("predictions.json", "metrics.json"):
        with pytest.raises(RunError, match=f"{name}: exists; choose another --output"):
            refuse_existing(folder)
        (folder / name).unlink()
    refuse_existing(folder)
    write_report(folder, [], None)
    assert [path.name for path in folder.iterdir()] == ["predictions.json"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"file/x: cannot be written \(Not a directory\)"):
        write_report(tmp_path / "file" / "x", [], None)
    assert (tmp_path / "file").read_text() == "mine"


def test_table():
    metrics = {
        "n": 1234,
        "overall": 66.666,
        "per_answer_type": {"number": 0.0, "yes/no": 100.0},
        "per_question_type": {"": 12.345, "is it": 50.0},
    }
    numbers = Types(np.repeat([0, 1], [1000, 234]).astype(np.int32), ("yes/no", "number"))
    questions = Types(np.repeat([0, 1], [1, 1233]).astype(np.int32), ("", "is it"))
    lines = table(metrics, numbers, questions).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["overall", "1,234", "66.67"],
        ["answer", "type:", "number", "234", "0.00"],
        ["answer", "type:", "yes/no", "1,000", "100.00"],
        ["question", "type:", "(none)", "1", "12.35"],
        ["question", "type:", "is", "it", "1,233", "50.00"],
    ]
    assert len({len(line) for line in lines}) == 1
