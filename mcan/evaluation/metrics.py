"""Metrics: the accuracy of predicted answers, and the best that an answer vocabulary allows.

To add one, put it into `METRICS`. N questions, each with at least one human answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcan.data.prepared import Categories
from mcan.text.answers import normalise_answer, strip_punctuation, strip_space

Accuracies = NDArray[np.float64]
Compared = tuple[Sequence[str], Callable[[str], str]]


@dataclass(frozen=True)
class Metric:
    """How a prediction is scored against the human answers of its question.

    `compare` takes the human answers and returns them as they are compared, with the function that
    brings a prediction into the same form. `credit` maps the number of annotators who gave the
    predicted answer, and of all annotators, to an accuracy from 0 to 1. Training's soft targets are
    the credit of the normalised human answers.
    """

    compare: Callable[[Sequence[str]], Compared]
    credit: Callable[[int, int], float]
    meaning: str


def _compare_normalised(answers: Sequence[str]) -> Compared:
    return [normalise_answer(answer) for answer in answers], normalise_answer


def _compare_vqa(answers: Sequence[str]) -> Compared:
    """White space is stripped on both sides; both are normalised if the annotators disagree."""
    stripped = [strip_space(answer) for answer in answers]
    return (stripped, strip_space) if len(set(stripped)) == 1 else _compare_normalised(answers)


def _compare_vqa_pre2021(answers: Sequence[str]) -> Compared:
    """Predictions are normalised; human answers only lose punctuation, if annotators disagree."""
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    return answers, normalise_answer


def soft_score(count: int, annotators: int = 10) -> float:
    """Accuracy, 0 to 1, of an answer that `count` of the `annotators` gave.

    The mean of min(1, matches / 3) over all ways to leave one annotator out: 0, .3, .6, .9 and 1
    for 0, 1, 2, 3 and more of ten. With fewer than four annotators the 3 is replaced by the largest
    possible number of matches, so that an answer given by all scores 1.
    """
    needed = min(3, annotators - 1)
    if needed == 0:
        return float(count)
    matches = count * min(count - 1, needed) + (annotators - count) * min(count, needed)
    return matches / (needed * annotators)


METRICS = {
    "exact": Metric(
        _compare_normalised,
        lambda matches, _: float(matches > 0),
        "share of right answers, normalised on both sides",
    ),
    "vqa": Metric(_compare_vqa, soft_score, "the VQA organisers' accuracy since March 2021"),
    "vqa_normalised": Metric(
        _compare_normalised, soft_score, "`vqa`, but always normalised, also if all people agree"
    ),
    "vqa_pre2021": Metric(
        _compare_vqa_pre2021, soft_score, "the VQA organisers' accuracy before, as in older papers"
    ),
}


def accuracies(
    metric: str, predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> Accuracies:
    """(N,) the accuracy of each prediction, 0 to 1, given the human answers of its question."""
    rule = METRICS[metric]
    scores = np.empty(len(answers))
    for row, (prediction, given) in enumerate(zip(predictions, answers, strict=True)):
        compared, prepare = rule.compare(given)
        scores[row] = rule.credit(compared.count(prepare(prediction)), len(given))
    return scores


def upper_bound(
    metric: str, answers: Sequence[Sequence[str]], vocabulary_answers: Collection[str]
) -> Accuracies:
    """(N,) the highest accuracy, 0 to 1, that any of `vocabulary_answers` has on each question."""
    rule = METRICS[metric]
    scores = np.empty(len(answers))
    reachable = cache(lambda prepare: set(map(prepare, vocabulary_answers)))
    for row, given in enumerate(answers):
        compared, prepare = rule.compare(given)
        candidates = reachable(prepare).intersection(compared)
        credits = (rule.credit(compared.count(answer), len(given)) for answer in candidates)
        scores[row] = max(credits, default=0.0)
    return scores


def percentage(scores: Accuracies) -> float:
    """The mean of `scores` (N,) times 100, whatever order they come in; nan without any."""
    return 100 * math.fsum(scores.tolist()) / len(scores) if len(scores) else math.nan


def rows_by_type(types: Categories) -> dict[str, NDArray[np.bool_]]:
    """The questions (N,) of each type that occurs, in alphabetical order."""
    codes = sorted(np.unique(types.codes), key=lambda code: str(types.names[code]))
    return {types.names[code]: types.codes == code for code in codes}


def summarise_scores(
    scores: Accuracies, answer_types: Categories, question_types: Categories
) -> dict[str, Any]:
    """`n`, and percentages of `scores` (N,): `overall`, `per_answer_type`, `per_question_type`."""
    summary: dict[str, Any] = {"n": len(scores), "overall": percentage(scores)}
    for kind, types in (("answer", answer_types), ("question", question_types)):
        rows = rows_by_type(types).items()
        summary[f"per_{kind}_type"] = {name: percentage(scores[of_type]) for name, of_type in rows}
    return summary
