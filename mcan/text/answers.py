"""Answers as the VQA organisers normalise and score them.

The rules are the published ones to the letter, oddities included: numbers compare with what others
computed by them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from mcan.text.answer_tables import ARTICLES, CONTRACTIONS, NUMBER_WORDS, PUNCTUATION

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The organisers' code passes a flag whose value is 32 where the number of replacements belongs.
_MOST_PERIODS = 32
# VQA v2 has 6.6 million human answers, nearly all of them repetitions.
_CACHED = 1 << 17


@lru_cache(_CACHED)
def strip_punctuation(text: str) -> str:
    """The first step: punctuation goes, or becomes a space where it joins two words.

    A character is deleted everywhere if it touches a space anywhere in `text`; all are if `text`
    has a comma between two digits. Then periods go unless a digit follows, 32 at most.
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        if mark in text:
            deleted = in_number or f"{mark} " in text or f" {mark}" in text
            stripped = stripped.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


@lru_cache(_CACHED)
def normalise_answer(text: str) -> str:
    """Both steps: punctuation, then lower case, digits for number words, no articles, contractions.

    This form is what vocabularies and targets hold; it is the empty string for an answer like "a".
    """
    words = (NUMBER_WORDS.get(word, word) for word in strip_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_score(count: int, annotators: int = 10) -> float:
    """Accuracy of an answer that `count` of the `annotators` gave.

    The mean of min(1, matches / 3) over all ways to leave one annotator out: 0, .3, .6, .9 and 1
    for 0, 1, 2, 3 and more of ten. With fewer than four annotators, the most matches that can be
    had stand in for the 3, so that an answer that all gave scores 1.
    """
    needed = min(3, annotators - 1)
    if needed == 0:
        return float(count)
    matches = count * min(count - 1, needed) + (annotators - count) * min(count, needed)
    return matches / (needed * annotators)


def soft_targets(
    answers: Sequence[str], answer_index: Mapping[str, int]
) -> list[tuple[int, float]]:
    """(index, score) of each answer given that the vocabulary holds, in the order first given."""
    counts = Counter(map(normalise_answer, answers))
    return [
        (answer_index[answer], soft_score(count, len(answers)))
        for answer, count in counts.items()
        if answer in answer_index
    ]
