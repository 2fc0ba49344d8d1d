from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcan.text.answer_tables import CONTRACTIONS, NUMBER_WORDS, PUNCTUATION
from mcan.text.answers import normalise_answer, soft_score, soft_targets, strip_punctuation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A mark between two letters becomes a space, ...
        ("red,green", "red green"),
        ("left-hand side", "left hand side"),
        ("x+y=z", "x y z"),
        # ... a mark beside a space is deleted wherever it stands, ...
        ("red, green,blue", "red greenblue"),
        ("left-hand side - far", "lefthand side far"),
        ("x + y", "x y"),
        # ... and a comma between two digits deletes every mark.
        ("1,2-3", "123"),
        ("it's 5,000 (or_so)!", "it's 5000 orso"),
        ("٣,٤ x-y", "٣٤ xy"),
        ("1, 2-3", "1 2 3"),
        # Periods stay before a digit only.
        ("Mr. Smith", "mr smith"),
        ("mt.5", "mt.5"),
        ("..5", ".5"),
        ("7.", "7"),
        ("e.g.", "eg"),
        # Words.
        ("The", ""),
        ("an-a", ""),
        ("None of the above", "0 of above"),
        ("two-a-day", "2 day"),
        ("TEN", "10"),
        ("tens", "tens"),
        ("wont!", "won't"),
        ("Twas", "'twas"),
        ("some'one", "some'one"),
        ("A&W", "a&w"),
        ("", ""),
        (" \t\n", ""),
        ("a  an\tthe x", "x"),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_at_most_32_periods_are_deleted() -> None:
    assert strip_punctuation("." * 32) == ""
    assert strip_punctuation("." * 40 + "x") == "." * 8 + "x"


def test_the_punctuation_step_keeps_case_space_and_words() -> None:
    assert strip_punctuation("The (old) Dog. ") == "The old Dog "
    assert strip_punctuation("Yes !") == "Yes "


def _characterwise(text: str) -> str:
    """The punctuation step, told character by character."""
    numbers = any(
        a.isdecimal() and comma == "," and b.isdecimal()
        for a, comma, b in zip(text, text[1:], text[2:], strict=False)
    )
    pairs = set(pairwise(text))
    kept = ""
    for character in text:
        if character not in PUNCTUATION:
            kept += character
        elif not numbers and (character, " ") not in pairs and (" ", character) not in pairs:
            kept += " "
    result, deleted = "", 0
    for here, following in pairwise(kept + " "):
        if here == "." and not following.isdecimal() and deleted < 32:
            deleted += 1
        else:
            result += here
    return result


@given(st.text(alphabet=" .,;-?/aA19٣", max_size=20) | st.text(alphabet=". 1", max_size=80))
def test_punctuation_step_characterwise(text: str) -> None:
    assert strip_punctuation(text) == _characterwise(text)


def test_tables() -> None:
    assert len(PUNCTUATION) == len(set(PUNCTUATION)) == 21
    assert len(NUMBER_WORDS) == 12
    assert all(short == short.lower() != full for short, full in CONTRACTIONS.items())


def _leave_one_out(count: int, annotators: int) -> Fraction:
    given = [True] * count + [False] * (annotators - count)
    left_out = (sum(given) - one for one in given)
    total = sum((min(Fraction(1), Fraction(others, 3)) for others in left_out), Fraction(0))
    return total / annotators


def test_soft_score_of_ten_is_the_published_table() -> None:
    assert [soft_score(count) for count in range(11)] == [0, 0.3, 0.6, 0.9] + [1.0] * 7


@pytest.mark.parametrize("annotators", [4, 5, 9, 10, 11])
def test_soft_score_is_the_leave_one_out_mean(annotators: int) -> None:
    for count in range(annotators + 1):
        assert soft_score(count, annotators) == float(_leave_one_out(count, annotators))


@pytest.mark.parametrize("annotators", range(1, 12))
def test_soft_score_rises_from_none_to_all(annotators: int) -> None:
    scores = [soft_score(count, annotators) for count in range(annotators + 1)]
    assert scores[0] == 0
    assert scores[-1] == 1
    assert scores == sorted(scores)


def test_soft_targets() -> None:
    index = {"2": 0, "dog": 1, "": 2, "cat": 3}
    answers = ["Two", "2", "a dog", "dog.", "the dog", "dogs", "a", "two!", "bird", "2."]
    assert soft_targets(answers, index) == [(0, 1.0), (1, 0.9), (2, 0.3)]
    assert soft_targets(["Cat"], index) == [(3, 1.0)]
    assert soft_targets(["bird"] * 10, index) == []
    assert soft_targets([], index) == []
