"""Accuracy of predicted answers, and the best that an answer vocabulary allows.

- `exact`: 1 where the prediction is, as written, one of the human answers;
- `vqa`: the VQA organisers' evaluator since March 2021. White space is tidied in both. Where the
  human answers differ, they and the prediction are normalised (`normalise_answer`);
- `vqa_pre2021`: the evaluator before, by which earlier papers report. The prediction is always
  normalised; human answers lose punctuation only, and only where they differ.

The two of VQA credit agreement with n annotators by `soft_score`: the mean of min(1, matches / 3)
over the ways to leave one out. One annotator: 1 for a match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from mcan.data.split import Types
from mcan.errors import DataError
from mcan.text.answers import normalise_answer, soft_score, strip_punctuation

Metric = Literal["exact", "vqa", "vqa_pre2021"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Form = Callable[[str], str]


def _as_written(text: str) -> str:
    return text


def _tidied(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalised(text: str) -> str:
    return normalise_answer(_tidied(text))


def _differ(answers: Sequence[str]) -> bool:
    return any(answer != answers[0] for answer in answers)


# What is compared: the human answers of one question, and the form that a prediction takes.
def _compared_exact(answers: Sequence[str]) -> tuple[Sequence[str], Form]:
    return answers, _as_written


def _compared_vqa(answers: Sequence[str]) -> tuple[Sequence[str], Form]:
    tidied = [_tidied(answer) for answer in answers]
    if _differ(tidied):
        return [normalise_answer(answer) for answer in tidied], _normalised
    return tidied, _tidied


def _compared_vqa_pre2021(answers: Sequence[str]) -> tuple[Sequence[str], Form]:
    if _differ(answers):
        return [strip_punctuation(answer) for answer in answers], _normalised
    return answers, _normalised


def _any_match(count: int, annotators: int) -> float:
    return float(count > 0)


class _Rule(NamedTuple):
    compared: Callable[[Sequence[str]], tuple[Sequence[str], Form]]
    credit: Callable[[int, int], float]


_RULES: dict[Metric, _Rule] = {
    "exact": _Rule(_compared_exact, _any_match),
    "vqa": _Rule(_compared_vqa, soft_score),
    "vqa_pre2021": _Rule(_compared_vqa_pre2021, soft_score),
}


def _questions(
    rule: _Rule, answers: Sequence[Sequence[str]]
) -> Iterator[tuple[Sequence[str], Form]]:
    for row, given in enumerate(answers):
        if not given:
            raise DataError(f"question {row} (counted from 0) has no human answer to score against")
        yield rule.compared(given)


def accuracies(
    metric: Metric, predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """(N,) the accuracy of each prediction, 0 to 1, given the human answers of its question.

    Raises `DataError` where a question has no human answer.
    """
    rule = _RULES[metric]
    scores = np.empty(len(answers))
    questions = zip(predictions, _questions(rule, answers), strict=True)
    for row, (prediction, (given, form)) in enumerate(questions):
        scores[row] = rule.credit(given.count(form(prediction)), len(given))
    return scores


def upper_bound(
    metric: Metric, answers: Sequence[Sequence[str]], vocabulary_answers: Collection[str]
) -> NDArray[np.float64]:
    """(N,) the highest accuracy, 0 to 1, that any of `vocabulary_answers` reaches on each question.

    Raises `DataError` where a question has no human answer.
    """
    rule = _RULES[metric]
    scores = np.empty(len(answers))
    reachable: dict[Form, set[str]] = {}
    for row, (given, form) in enumerate(_questions(rule, answers)):
        if form not in reachable:
            reachable[form] = {form(answer) for answer in vocabulary_answers}
        candidates = reachable[form].intersection(given)
        credits = (rule.credit(given.count(answer), len(given)) for answer in candidates)
        scores[row] = max(credits, default=0.0)
    return scores


def summarise(
    scores: NDArray[np.float64],
    answer_types: Types | None = None,
    question_types: Types | None = None,
) -> dict[str, Any]:
    """The report of `scores` (N,), 0 to 1: percentages, not rounded, overall and per type.

    Keys: `n`, `overall` (None where there is no question), `per_answer_type` and
    `per_question_type`, which name only the types that occur, in alphabetical order.
    """
    return {
        "n": len(scores),
        "overall": _percentage(scores) if len(scores) else None,
        "per_answer_type": _percentages(scores, answer_types),
        "per_question_type": _percentages(scores, question_types),
    }


def _percentage(scores: NDArray[np.float64]) -> float:
    # An exact sum: the same to the last digit, whatever order the questions come in.
    return 100 * math.fsum(scores.tolist()) / len(scores)


def _percentages(scores: NDArray[np.float64], grouping: Types | None) -> dict[str, float]:
    if grouping is None:
        return {}
    return {
        grouping.names[code]: _percentage(scores[grouping.codes == code])
        for code in sorted(np.unique(grouping.codes), key=lambda code: grouping.names[code])
    }
