"""Scores of a dataset's predictions, the files they are written to, and the table on the screen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mcan.data.dataset import VQADataset
from mcan.data.split import Types
from mcan.errors import RunError
from mcan.evaluation.metrics import Metric, accuracies, summarise, upper_bound
from mcan.evaluation.predict import Predictions
from mcan.files import write_text

PREDICTIONS = "predictions.json"
METRICS = "metrics.json"


class Scorer:
    """Scores predictions for one dataset; the human answers are read once, when first needed.

    `vocabulary_answers` (A,) are the answers that predictions index.
    """

    def __init__(
        self, dataset: VQADataset, metric: Metric, vocabulary_answers: Sequence[str]
    ) -> None:
        self._dataset = dataset
        self._metric = metric
        self._vocabulary = vocabulary_answers

    @property
    def possible(self) -> bool:
        """Every question has a human answer; a test split's may be held back."""
        offsets = (split.human_answers.codes.offsets for split in self._dataset.splits)
        return all(bool((np.diff(each) > 0).all()) for each in offsets)

    @cached_property
    def _human_answers(self) -> list[list[str]]:
        return self._dataset.human_answers(range(len(self._dataset)))

    def metrics(self, predictions: Predictions) -> dict[str, Any]:
        """Accuracies in percent: n, overall, per_answer_type, per_question_type."""
        answers = [self._vocabulary[index] for index in predictions.answers[:, 0].tolist()]
        scores = accuracies(self._metric, answers, self._human_answers)
        return summarise(scores, self._dataset.answer_types, self._dataset.question_types)

    def upper_bound(self) -> float:
        """Percent that a model could reach which always picks the best answer it knows."""
        scores = upper_bound(self._metric, self._human_answers, self._vocabulary)
        return 100 * float(scores.mean())


def predictions_json(
    dataset: VQADataset,
    predictions: Predictions,
    vocabulary_answers: Sequence[str],
    top: int | None = None,
) -> list[dict[str, Any]]:
    """[{question_id, answer}], with `top` also the first answers and their probabilities."""
    entries: list[dict[str, Any]] = []
    ids = dataset.question_ids(predictions.rows.tolist())
    for number, question_id in enumerate(ids):
        names = [vocabulary_answers[index] for index in predictions.answers[number].tolist()]
        entry: dict[str, Any] = {"question_id": question_id, "answer": names[0]}
        if top is not None:
            values = predictions.probabilities[number].tolist()
            entry["top"] = [
                {"answer": name, "probability": value}
                for name, value in list(zip(names, values, strict=True))[:top]
            ]
        entries.append(entry)
    return entries


def refuse_existing(folder: Path) -> None:
    """Raise `RunError` where `folder` already holds what `write_report` writes."""
    for name in (PREDICTIONS, METRICS):
        if (folder / name).exists():
            raise RunError(f"{folder / name}: exists; choose another --output")


def write_report(
    folder: Path,
    entries: list[dict[str, Any]],
    metrics: dict[str, Any] | None,
) -> None:
    """Write predictions.json and, where there are scores, metrics.json."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PREDICTIONS, json.dumps(entries) + "\n")
        if metrics is not None:
            write_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from error


def table(metrics: dict[str, Any], answer_types: Types, question_types: Types) -> str:
    """The accuracies as a text table: overall, per answer type, per question type."""
    rows = [("overall", metrics["n"], metrics["overall"])]
    for kind, types in (("answer", answer_types), ("question", question_types)):
        counts = _counts(types)
        rows += [
            (f"{kind} type: {name or '(none)'}", counts[name], value)
            for name, value in metrics[f"per_{kind}_type"].items()
        ]
    width = max(len(name) for name, _, _ in rows)
    head = f"{'':{width}}  {'questions':>9}  {'accuracy %':>10}"
    lines = [f"{name:{width}}  {count:>9,}  {value:>10.2f}" for name, count, value in rows]
    return "\n".join([head, "-" * len(head), *lines])


def _counts(types: Types) -> dict[str, int]:
    counts = np.bincount(types.codes, minlength=len(types.names)).tolist()
    return dict(zip(types.names, counts, strict=True))
