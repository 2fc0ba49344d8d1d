import json
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcan.data.split import Types
from mcan.errors import DataError
from mcan.evaluation.metrics import Metric, accuracies, summarise, upper_bound
from mcan.text.answers import normalise_answer, strip_punctuation

METRICS: tuple[Metric, ...] = get_args(Metric)


def score(metric: Metric, prediction: str, answers: list[str]) -> float:
    return float(accuracies(metric, [prediction], [answers])[0])


def brute_force(metric: Metric, prediction: str, answers: list[str]) -> float:
    """One annotator after the other is left out, by the organisers' description."""
    if metric == "exact":
        return float(prediction in answers)

    def tidy(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    prediction = tidy(prediction)
    if metric == "vqa":
        answers = [tidy(answer) for answer in answers]
        if len(set(answers)) > 1:
            answers = [normalise_answer(answer) for answer in answers]
            prediction = normalise_answer(prediction)
    else:
        prediction = normalise_answer(prediction)
        if len(set(answers)) > 1:
            answers = [strip_punctuation(answer) for answer in answers]
    total = Fraction(0)
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        total += min(Fraction(1), Fraction(others.count(prediction), 3))
    return float(total / len(answers))


TEXTS = [
    "two",
    "Two ",
    "2",
    "the dog",
    "dog",
    "dog.",
    "Dog",
    "dog\t",
    "1,000",
    "1000",
    "a",
    "",
    "yes !",
]
texts = st.sampled_from(TEXTS)


@settings(deadline=None)
@given(texts, st.lists(texts, min_size=4, max_size=10) | texts.map(lambda text: [text] * 10))
@pytest.mark.parametrize("metric", METRICS)
def test_brute_force(metric: Metric, prediction: str, answers: list[str]) -> None:
    assert score(metric, prediction, answers) == brute_force(metric, prediction, answers)


def test_unanimous_answers_compare_as_they_are() -> None:
    assert score("vqa", "two", ["two"] * 10) == 1
    assert score("vqa", "2", ["two"] * 10) == 0
    assert score("vqa", " two\n", ["two"] * 10) == 1
    assert score("vqa_pre2021", "two", ["two"] * 10) == 0
    assert score("vqa_pre2021", "two", ["2"] * 10) == 1


def test_human_articles_never_matched_before_2021() -> None:
    answers = ["the sea"] * 9 + ["water"]
    assert score("vqa", "the sea", answers) == 1
    assert score("vqa_pre2021", "the sea", answers) == 0


def test_space_left_by_punctuation_counted_before_2021() -> None:
    answers = ["yes !"] * 9 + ["yes"]
    assert score("vqa", "yes", answers) == 1
    assert score("vqa_pre2021", "yes", answers) == 0.3


@pytest.mark.parametrize("count", range(11))
def test_ten_annotators(count: int) -> None:
    answers = ["cat"] * count + [f"dog{n}" for n in range(10 - count)]
    expected = [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1][count]
    assert score("vqa", "cat", answers) == expected
    assert score("vqa_pre2021", "cat", answers) == expected
    assert score("exact", "cat", answers) == (count > 0)


@pytest.mark.parametrize("metric", METRICS)
def test_few_annotators(metric: Metric) -> None:
    assert score(metric, "cat", ["cat"]) == 1
    assert score(metric, "cat", ["dog"]) == 0
    assert score(metric, "cat", ["cat", "cat"]) == 1
    assert score(metric, "cat", ["cat", "cat", "cat"]) == 1


def test_two_annotators_who_differ() -> None:
    assert score("vqa", "cat", ["cat", "dog"]) == 0.5
    assert score("exact", "Cat", ["cat", "Cat"]) == 1
    assert score("exact", "CAT", ["cat", "Cat"]) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_no_questions(metric: Metric) -> None:
    assert accuracies(metric, [], []).shape == (0,)
    assert upper_bound(metric, [], ["yes"]).shape == (0,)


@pytest.mark.parametrize("metric", METRICS)
def test_question_without_answers(metric: Metric) -> None:
    with pytest.raises(DataError, match="question 1 "):
        accuracies(metric, ["yes", "no"], [["yes"], []])
    with pytest.raises(DataError, match="question 0 "):
        upper_bound(metric, [[]], ["yes"])


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="zip"):
        accuracies("vqa", ["yes"], [["yes"], ["no"]])


@settings(deadline=None)
@given(
    st.lists(st.lists(texts, min_size=1, max_size=10), max_size=4),
    st.lists(texts, max_size=5, unique=True),
)
@pytest.mark.parametrize("metric", METRICS)
def test_upper_bound_tries_the_whole_vocabulary(
    metric: Metric, answers: list[list[str]], vocabulary: list[str]
) -> None:
    best = [
        max((score(metric, text, given) for text in vocabulary), default=0) for given in answers
    ]
    assert upper_bound(metric, answers, vocabulary).tolist() == best


def test_summary() -> None:
    scores = np.array([1.0, 0.3, 0.0, 0.9])
    answer_types = Types(np.array([1, 1, 0, 1]), ("yes/no", "other", "number"))
    question_types = Types(np.array([0, 1, 1, 2]), ("what is", "how many", "are"))
    summary = summarise(scores, answer_types, question_types)
    assert summary == {
        "n": 4,
        "overall": pytest.approx(55, abs=1e-12),
        "per_answer_type": {
            "other": pytest.approx(220 / 3, abs=1e-12),
            "yes/no": 0.0,
        },
        "per_question_type": {"are": 90.0, "how many": 15.0, "what is": 100.0},
    }
    for key in ("per_answer_type", "per_question_type"):
        assert list(summary[key]) == sorted(summary[key])
    assert json.loads(json.dumps(summary)) == summary


def test_summary_of_nothing() -> None:
    nothing = Types(np.array([], np.int64), ("other",))
    empty = {"n": 0, "overall": None, "per_answer_type": {}, "per_question_type": {}}
    assert summarise(np.array([]), nothing, nothing) == empty
    assert summarise(np.array([])) == empty


def test_summary_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.choice([0, 0.3, 0.6, 0.9, 1], 10_001)
    overall = summarise(scores)["overall"]
    assert all(summarise(rng.permutation(scores))["overall"] == overall for _ in range(20))
