"""Metrics against a loop over annotators, recorded values of the reference, and brute force."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcan.data.prepared import Categories
from mcan.evaluation.metrics import (
    METRICS,
    accuracies,
    percentage,
    soft_score,
    summarise_scores,
    upper_bound,
)
from mcan.text.answers import normalise_answer, strip_punctuation

RECORDED = Path(__file__).parent.parent / "fixtures" / "text_and_metric.json"


def score(metric: str, prediction: str, answers: list[str]) -> float:
    return float(accuracies(metric, [prediction], [answers])[0])


def brute_force(metric: str, prediction: str, answers: list[str]) -> float:
    """One annotator after the other is left out, by the organisers' description."""
    if metric == "exact":
        return float(normalise_answer(prediction) in map(normalise_answer, answers))

    def tidy(text: str) -> str:
        return text.replace("\n", " ").replace("\t", " ").strip()

    prediction = tidy(prediction)
    if metric in ("vqa", "vqa_normalised"):
        answers = [tidy(answer) for answer in answers]
        if len(set(answers)) > 1 or metric == "vqa_normalised":
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


TEXTS = ["two", "Two ", "2", "the dog", "dog", "dog.", "Dog", "dog\t", "1,000", "1000", "a", ""]
TEXTS += ["yes !"]
texts = st.sampled_from(TEXTS)


@settings(deadline=None)
@given(texts, st.lists(texts, min_size=4, max_size=10) | texts.map(lambda text: [text] * 10))
@pytest.mark.parametrize("metric", METRICS)
def test_brute_force(metric: str, prediction: str, answers: list[str]) -> None:
    assert score(metric, prediction, answers) == brute_force(metric, prediction, answers)


@pytest.mark.parametrize("metric", ["vqa", "vqa_pre2021"])
def test_recorded_values_of_the_reference(metric: str) -> None:
    for case in json.loads(RECORDED.read_text(encoding="utf-8"))["vqa_accuracy"]:
        found = score(metric, case["prediction"], case["answers"])
        assert found == pytest.approx(case[metric], abs=1e-12), case


SEA, YES = ["the sea"] * 9 + ["water"], ["yes !"] * 9 + ["yes"]


@pytest.mark.parametrize(
    ("prediction", "answers", "vqa", "vqa_pre2021", "vqa_normalised"),
    [
        # Unanimous answers are compared as they are; predictions always lost articles before 2021.
        ("two", ["two"] * 10, 1, 0, 1),
        ("2", ["two"] * 10, 0, 0, 1),
        ("two", ["2"] * 10, 0, 1, 1),
        (" two\n", ["two"] * 10, 1, 0, 1),
        # Human articles, and the space that punctuation leaves, never matched before 2021.
        ("the sea", SEA, 1, 0, 1),
        ("yes", YES, 1, 0.3, 1),
        # Fewer than ten annotators.
        *(("cat", ["cat"] * count, 1, 1, 1) for count in (1, 2, 3)),
        ("cat", ["dog"], 0, 0, 0),
        ("cat", ["cat", "dog"], 0.5, 0.5, 0.5),
        ("CAT", ["cat", "Cat"], 1, 0.5, 1),
    ],
)
def test_by_hand(
    prediction: str, answers: list[str], vqa: float, vqa_pre2021: float, vqa_normalised: float
) -> None:
    assert score("vqa", prediction, answers) == vqa
    assert score("vqa_pre2021", prediction, answers) == vqa_pre2021
    assert score("vqa_normalised", prediction, answers) == vqa_normalised
    assert score("exact", prediction, answers) == (vqa_normalised > 0)


@settings(deadline=None)
@given(
    st.lists(st.lists(texts, min_size=1, max_size=10), max_size=4),
    st.lists(texts, max_size=5, unique=True),
)
@pytest.mark.parametrize("metric", METRICS)
def test_upper_bound_tries_the_whole_vocabulary(
    metric: str, answers: list[list[str]], vocabulary: list[str]
) -> None:
    best = [
        max((score(metric, text, given) for text in vocabulary), default=0) for given in answers
    ]
    assert upper_bound(metric, answers, vocabulary).tolist() == best


def test_summary() -> None:
    scores = np.array([1.0, 0.3, 0.0, 0.9])
    answer_types = Categories(np.array([1, 1, 0, 1]), ("yes/no", "other", "number"))
    question_types = Categories(np.array([0, 1, 1, 2]), ("what is", "how many", "are"))
    summary = summarise_scores(scores, answer_types, question_types)
    assert summary == {
        "n": 4,
        "overall": pytest.approx(55, abs=1e-12),
        "per_answer_type": {"other": pytest.approx(220 / 3, abs=1e-12), "yes/no": 0.0},
        "per_question_type": {"are": 90.0, "how many": 15.0, "what is": 100.0},
    }
    for key in ("per_answer_type", "per_question_type"):
        assert list(summary[key]) == sorted(summary[key])
    assert json.loads(json.dumps(summary)) == summary


def test_percentages_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.choice([0, 0.3, 0.6, 0.9, 1], 10_001)
    assert len({percentage(rng.permutation(scores)) for _ in range(20)}) == 1


def test_soft_score_of_ten_is_the_published_table() -> None:
    assert [soft_score(count) for count in range(11)] == [0, 0.3, 0.6, 0.9] + [1.0] * 7


@pytest.mark.parametrize("annotators", range(1, 12))
def test_soft_score_is_the_leave_one_out_mean(annotators: int) -> None:
    scores = [soft_score(count, annotators) for count in range(annotators + 1)]
    assert (scores[0], scores[-1], scores) == (0, 1, sorted(scores))
    for count in range(annotators + 1) if annotators > 3 else ():
        given = [1] * count + [0] * (annotators - count)
        matches = [min(Fraction(1), Fraction(count - one, 3)) for one in given]
        assert scores[count] == float(sum(matches) / annotators)
