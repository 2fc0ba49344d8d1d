"""Result files, made here or elsewhere, and the scores of a dataset's predictions.

N questions, A answers of the vocabulary, k answers kept per question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ConfigDict, FiniteFloat, ValidationError

from mcan.console import align
from mcan.data.arrays import Id, array_to_ids
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Categories
from mcan.data.records import read_records
from mcan.errors import DataError, RunError, shorten
from mcan.evaluation.metrics import (
    Accuracies,
    accuracies,
    percentage,
    rows_by_type,
    summarise_scores,
    upper_bound,
)
from mcan.evaluation.predict import Predictions
from mcan.section import Section

PREDICTIONS_FILE = "predictions.json"
METRICS_FILE = "metrics.json"


class ResultSummary(Section):
    """Whose result a `metrics.json` of eval.py is, and the accuracy; it holds more."""

    model_config = ConfigDict(extra="ignore")

    dataset: str
    split: str
    limit: int | None
    n: int
    metric: str
    overall: FiniteFloat
    steps: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise RunError(f"{path}: not written by eval.py, or damaged") from error


class Scorer:
    """Scores predictions, which index the `vocabulary_answers` (A,), for one dataset."""

    def __init__(self, dataset: VQADataset, metric: str, vocabulary_answers: Sequence[str]) -> None:
        self._dataset = dataset
        self._metric = metric
        self._vocabulary = vocabulary_answers
        self.possible = all(split.human_answers.complete for split in dataset.splits)

    @cached_property  # read when first needed: a test split has none
    def _human_answers(self) -> list[list[str]]:
        return [answers for split in self._dataset.splits for answers in split.human_answers]

    def scores(self, predictions: Predictions) -> Accuracies:
        """(N,) the accuracy of each prediction, 0 to 1."""
        answers = [self._vocabulary[index] for index in predictions.answers[:, 0].tolist()]
        return accuracies(self._metric, answers, self._human_answers)

    def summarise(self, scores: Accuracies) -> dict[str, Any]:
        """Accuracies in percent: n, overall, per_answer_type, per_question_type."""
        return summarise_scores(scores, self._dataset.answer_types, self._dataset.question_types)

    def upper_bound(self) -> float:
        """The percentage that a model reaches if it always picks the best answer it knows."""
        return percentage(upper_bound(self._metric, self._human_answers, self._vocabulary))


def prediction_entries(
    dataset: VQADataset,
    predictions: Predictions,
    vocabulary_answers: Sequence[str],
    top: bool = False,
) -> list[dict[str, Any]]:
    """[{question_id, answer}]; `top` adds the k best answers with their probabilities."""
    entries: list[dict[str, Any]] = []
    ids = dataset.question_ids()
    for row, indices, probabilities in zip(*(c.tolist() for c in predictions), strict=True):
        names = [vocabulary_answers[index] for index in indices]
        entry: dict[str, Any] = {"question_id": ids[row], "answer": names[0]}
        if top:
            pairs = zip(names, probabilities, strict=True)
            entry["top"] = [{"answer": name, "probability": value} for name, value in pairs]
        entries.append(entry)
    return entries


def question_details(dataset: VQADataset, scores: Accuracies | None) -> list[dict[str, Any]]:
    """[{question, image_id, human_answers, score}] of each question; score from 0 to 1, or None."""
    rows: list[tuple[Any, ...]] = []
    for split in dataset.splits:
        images = array_to_ids(split.image_ids[split.image_index])
        rows += zip(split.questions, images, split.human_answers, strict=True)
    given = [None] * len(rows) if scores is None else scores.tolist()
    keys = ("question", "image_id", "human_answers", "score")
    return [dict(zip(keys, (*row, s), strict=True)) for row, s in zip(rows, given, strict=True)]


def list_mistakes(
    entries: Sequence[Mapping[str, Any]], predictions: Predictions, count: int
) -> str:
    """The `count` answers of score 0 with the highest probability, as text.

    An entry holds what `prediction_entries` and `question_details` say of a question.
    """
    chances = predictions.probabilities[:, 0]
    order = np.argsort(-chances, kind="stable").tolist()
    wrong = [row for row in order if entries[row]["score"] == 0]
    lines = [f"{min(count, len(wrong))} of {len(wrong):,} mistakes, the most probable first"]
    for row in wrong[:count]:
        people = Counter(entries[row]["human_answers"]).most_common()
        lines.append(
            "{question_id}  {question} (image {image_id})\n    {answer}".format_map(entries[row])
            + f" ({chances[row]:.1%}) | people: {', '.join(f'{a} ({n})' for a, n in people)}"
        )
    return "\n".join(lines)


def read_results(path: Path, question_ids: Sequence[Id], where: str) -> list[str]:
    """The answer to each of `question_ids`, in their order; `where` says whose ids they are.

    Raises `DataError` with the ids if questions are missing, unknown or answered twice.
    """
    answers: dict[Id, str] = {}
    twice: list[Id] = []
    for record in read_records(path):
        question_id = record.id("question_id")
        if question_id in answers:
            twice.append(question_id)
        answers[question_id] = record.text("answer")
    expected = set(question_ids)
    if twice:
        raise DataError(f"{path}: {name_ids(twice)} answered more than once")
    if unknown := [i for i in answers if i not in expected]:
        raise DataError(f"{path}: {name_ids(unknown)} not in {where}")
    if missing := [i for i in question_ids if i not in answers]:
        raise DataError(f"{path}: {name_ids(missing)} of {where} without an answer")
    return [answers[question_id] for question_id in question_ids]


def submission(
    entries: Iterable[dict[str, Any]], question_ids: Collection[Id], where: str
) -> list[dict[str, Any]]:
    """The entries of `question_ids` alone, as the server takes them (test-dev is part of test)."""
    answers = {entry["question_id"]: entry["answer"] for entry in entries}
    if missing := [i for i in question_ids if i not in answers]:
        raise DataError(f"{name_ids(missing)} of {where} not predicted; choose its split")
    if texts := [i for i in question_ids if not isinstance(i, int)]:
        raise DataError(f"{where}: {name_ids(texts)}: the server takes integer ids only")
    return [{"question_id": i, "answer": answers[i]} for i in question_ids]


def name_ids(ids: Sequence[Id]) -> str:
    """`questions 1, 2 and 3 more`"""
    return f"question{'s' if len(ids) > 1 else ''} {shorten(map(repr, ids))}"


def accuracy_table(
    metrics: dict[str, Any], answer_types: Categories, question_types: Categories
) -> str:
    """The accuracies as a text table: overall, per answer type, per question type."""
    rows = [["", "questions", "accuracy %"]]
    rows += [["overall", f"{metrics['n']:,}", f"{metrics['overall']:.2f}"]]
    for kind, types in (("answer", answer_types), ("question", question_types)):
        for name, of_type in rows_by_type(types).items():
            label, value = f"{kind} type: {name or '(none)'}", metrics[f"per_{kind}_type"][name]
            rows.append([label, f"{of_type.sum():,}", f"{value:.2f}"])
    return align(rows)
