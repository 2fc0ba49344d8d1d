"""Result files and submissions."""

import json

import pytest

from mcan.errors import DataError
from mcan.evaluation.results import name_ids, read_results, submission


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"

    def write(entries):
        path.write_text(json.dumps(entries))
        return path

    return write


def entries(*ids):
    return [{"question_id": i, "answer": f"a{i}"} for i in ids]


def test_answers_come_in_the_order_asked_for(results):
    assert read_results(results(entries(3, 1, 2)), [1, 2, 3], "q") == ["a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entries(1, 2), "question 3 of q.json without an answer"),
        (entries(1, 2, 3, 4, 5), "questions 4, 5 not in q.json"),
        (entries(1, 2, 3, 2), "question 2 answered more than once"),
        ([*entries(1, 2), {"question_id": 3, "answer": 7}], "entry 2 (question 3): 'answer' is 7"),
        ([*entries(1, 2), {"question_id": 3}], "entry 2 (question 3): 'answer' is missing"),
        ([*entries(1, 2), {"answer": "x"}], "entry 2: 'question_id' is missing"),
        ([*entries(1, 2), "x"], "entry 2 is 'x'"),
        ([], "is empty"),
        ({"results": 1}, "expected"),
    ],
)
def test_a_wrong_result_file_is_told_by_its_entries(results, content, message):
    with pytest.raises(DataError) as caught:
        read_results(results(content), [1, 2, 3], "q.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_submission_holds_the_questions_of_its_file_once():
    everything = [{**entry, "top": []} for entry in entries(1, 2, 3, 4)]
    assert submission(everything, [4, 2], "test-dev") == entries(4, 2)
    with pytest.raises(DataError, match="question 9 of test-dev"):
        submission(everything, [9], "test-dev")
    with pytest.raises(DataError, match=r"'x'.*integer ids"):
        submission([{"question_id": "x", "answer": "y"}], ["x"], "f")


def test_many_ids_are_not_all_named():
    assert name_ids([1]) == "question 1"
    assert name_ids(list(range(1008))) == "questions 0, 1, 2, 3, 4 and 1,003 more"
