"""Answer normalisation and soft scores, against the reference."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from mcan.text.answers import (
    normalise_answer,
    soft_score,
    strip_punctuation,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "text_and_metric.json"
RECORDED = json.loads(FIXTURE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "expected"), RECORDED["answer_normalisation"])
def test_normalisation_is_that_of_the_reference(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A mark beside a space is deleted wherever it stands, ...
        ("red, green,blue", "red greenblue"),
        ("left-hand side - far", "lefthand side far"),
        # ... and a comma between two digits deletes every mark.
        ("it's 5,000 (or_so)!", "it's 5000 orso"),
        ("٣,٤ x-y", "٣٤ xy"),
        ("1, 2-3", "1 2 3"),
        ("None of the above", "0 of above"),
        ("Twas", "'twas"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_the_punctuation_step_alone() -> None:
    assert strip_punctuation("The (old) Dog. ") == "The old Dog "
    assert strip_punctuation("." * 40 + "x") == "." * 8 + "x"  # at most 32 periods


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
