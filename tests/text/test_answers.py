"""Answer normalisation, against the reference."""

import json
from pathlib import Path

import pytest

from mcan.text.answers import normalise_answer, strip_punctuation

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
