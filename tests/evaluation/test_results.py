"""Scores of predictions, the files made here and elsewhere, and the table on the screen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mcan.data.dataset import VQADataset
from mcan.data.prepared import Categories, Prepared
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.evaluation.predict import Predictions
from mcan.evaluation.results import (
    Scorer,
    accuracy_table,
    name_ids,
    prediction_entries,
    read_results,
    submission,
)
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.preparation.synthetic import make_synthetic
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
    toy = {"dataset": "toy", "metric": "vqa", "sources": {}}
    write_prepared(folder / "prepared", {"val": examples}, VOCABULARY, **toy)
    return VQADataset([Prepared.open(folder / "prepared").split("val")], [open_store(images)])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VQADataset:
    return dataset_of(tmp_path_factory.mktemp("data"), EXAMPLES)


def test_metrics_by_hand(dataset):
    scorer = Scorer(dataset, "vqa", VOCABULARY.answers)
    assert scorer.possible
    # Two of ten said blue: leaving one out, 8 times 2/3 and twice 1/3.
    blue = 100 * (8 * 2 / 3 + 2 * 1 / 3) / 10
    assert scorer.summarise(scorer.scores(PREDICTED)) == {
        "n": 4,
        "overall": pytest.approx((100 + blue) / 4),
        "per_answer_type": {"number": 0.0, "other": pytest.approx((100 + blue) / 2)},
        "per_question_type": {"": 0.0, "what": pytest.approx(blue), "what is": 100.0},
    }
    assert scorer.upper_bound() == 75.0
    assert Scorer(dataset, "exact", VOCABULARY.answers).scores(PREDICTED).mean() == 0.5


def test_not_possible_without_answers(tmp_path):
    held_back = [*EXAMPLES[:2], Example("x", 0, "What?")]
    assert not Scorer(dataset_of(tmp_path, held_back), "vqa", VOCABULARY.answers).possible


def test_entries(dataset):
    plain = prediction_entries(dataset, PREDICTED, VOCABULARY.answers)
    assert plain == [
        {"question_id": i, "answer": a}
        for i, a in zip("abcd", ["red", "blue", "red", "two"], strict=True)
    ]
    top = [{"answer": "blue", "probability": 0.75}, {"answer": "red", "probability": 0.125}]
    found = prediction_entries(dataset, PREDICTED, VOCABULARY.answers, top=True)
    assert found[1] == {"question_id": "b", "answer": "blue", "top": top}


def test_table():
    metrics = {
        "n": 1234,
        "overall": 66.666,
        "per_answer_type": {"number": 0.0, "yes/no": 100.0},
        "per_question_type": {"": 12.345, "is it": 50.0},
    }
    numbers = Categories(np.repeat([0, 1], [1000, 234]).astype(np.int32), ("yes/no", "number"))
    questions = Categories(np.repeat([0, 1], [1, 1233]).astype(np.int32), ("", "is it"))
    assert accuracy_table(metrics, numbers, questions).splitlines() == [
        "                       questions  accuracy %",
        "overall                    1,234       66.67",
        "answer type: number          234        0.00",
        "answer type: yes/no        1,000      100.00",
        "question type: (none)          1       12.35",
        "question type: is it       1,233       50.00",
    ]


def entries(*ids):
    return [{"question_id": i, "answer": f"a{i}"} for i in ids]


def write(folder, content):
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_answers_come_in_the_order_asked_for(tmp_path):
    path = write(tmp_path, entries(3, 1, 2))
    assert read_results(path, [1, 2, 3], "q") == ["a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entries(1, 2), "question 3 of q.json without an answer"),
        (entries(1, 2, 3, 4, 5), "questions 4, 5 not in q.json"),
        (entries(1, 2, 3, 2), "question 2 answered more than once"),
        ([*entries(1, 2), {"question_id": 3, "answer": 7}], "entry 2 (question 3): 'answer' is 7"),
        ([*entries(1, 2), {"answer": "x"}], "entry 2: 'question_id' is missing"),
        ([], "no entries"),
    ],
)
def test_errors_name_the_entries_of_a_wrong_result_file(tmp_path, content, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_results(write(tmp_path, content), [1, 2, 3], "q.json")


def test_submission_has_each_question_of_its_file_once():
    everything = [{**entry, "top": []} for entry in entries(1, 2, 3, 4)]
    assert submission(everything, [4, 2], "test-dev") == entries(4, 2)
    with pytest.raises(DataError, match="question 9 of test-dev"):
        submission(everything, [9], "test-dev")
    with pytest.raises(DataError, match=r"'x'.*integer ids"):
        submission(entries("x"), ["x"], "f")


def test_many_ids_are_not_all_named():
    assert name_ids(list(range(1008))) == ("questions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 998 more")
