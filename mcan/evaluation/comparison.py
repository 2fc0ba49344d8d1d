"""Two sets of predictions for the same N questions: differences by type, and what changed."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mcan.data.hdf5 import Id
from mcan.data.split import Split
from mcan.evaluation.bootstrap import Bootstrap, Interval
from mcan.evaluation.metrics import summarise

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Accuracies in percent over the questions of a group, and B - A with its interval.

    `kind` is overall, answer type or question type; `name` that of the type.
    """

    kind: str
    name: str
    questions: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: Interval | None

    @property
    def label(self) -> str:
        return "overall" if self.kind == "overall" else f"{self.kind}: {self.name or '(none)'}"


@dataclass(frozen=True)
class Changed:
    """A question of which A and B have different accuracies, in percent."""

    question_id: Id
    question: str
    answer_a: str
    answer_b: str
    human_answers: str
    accuracy_a: float
    accuracy_b: float
    change: float


def differences(
    scores_a: Scores, scores_b: Scores, split: Split, by_image: bool, bootstrap: Bootstrap
) -> list[Difference]:
    """Overall, of each answer type and of each question type of `split`; scores (N,), 0 to 1.

    `by_image` resamples images instead of questions.
    """
    found = []
    for kind, name, rows in _groups(split):
        a, b = scores_a[rows], scores_b[rows]
        accuracy_a, accuracy_b = (summarise(scores)["overall"] for scores in (a, b))
        images = split.image_index[rows] if by_image else None
        interval = bootstrap.interval(100 * (b - a), images)
        found.append(
            Difference(
                kind, name, len(a), accuracy_a, accuracy_b, accuracy_b - accuracy_a, interval
            )
        )
    return found


def _groups(split: Split) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    yield "overall", "", np.ones(len(split), bool)
    for kind, types in (
        ("answer type", split.answer_types),
        ("question type", split.question_types),
    ):
        for code in sorted(np.unique(types.codes), key=lambda code: types.names[code]):
            yield kind, types.names[code], types.codes == code


def outcomes(scores_a: Scores, scores_b: Scores) -> dict[str, int]:
    """How many questions went which way; just better or worse where some answer is half right."""
    if np.isin([scores_a, scores_b], [0, 1]).all():
        right_a, right_b = scores_a == 1, scores_b == 1
        ways = {
            "both right": right_a & right_b,
            "only A right": right_a & ~right_b,
            "only B right": ~right_a & right_b,
            "both wrong": ~right_a & ~right_b,
        }
    else:
        ways = {
            "better with B": scores_b > scores_a,
            "worse with B": scores_b < scores_a,
            "equal": scores_a == scores_b,
        }
    return {way: int(rows.sum()) for way, rows in ways.items()}


def changed(
    answers_a: Sequence[str],
    answers_b: Sequence[str],
    scores_a: Scores,
    scores_b: Scores,
    split: Split,
) -> list[Changed]:
    """The questions whose accuracy differs, in the order of `split`."""
    return [
        Changed(
            split.question_ids[row : row + 1].tolist()[0],
            split.questions[row],
            answers_a[row],
            answers_b[row],
            _tally(split.human_answers.of(row)),
            a := 100 * float(scores_a[row]),
            b := 100 * float(scores_b[row]),
            b - a,
        )
        for row in np.flatnonzero(scores_a != scores_b).tolist()
    ]


def _tally(answers: Sequence[str]) -> str:
    """`yes (7), no (3)`"""
    return ", ".join(f"{answer} ({count})" for answer, count in Counter(answers).most_common())


def table(rows: Sequence[Difference], confidence: float) -> str:
    """The differences as a text table, `*` where the interval excludes zero."""
    width = max(len(row.label) for row in rows)
    title = f"{confidence:g} % interval"
    head = f"{'':{width}}  {'questions':>9}  {'A %':>6}  {'B %':>6}  {'B - A':>7}  {title:>18}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.label:{width}}  {row.questions:>9,}  {row.accuracy_a:>6.2f}  "
            f"{row.accuracy_b:>6.2f}  {_signed(row.difference):>7}  {_shown(row.interval)}"
        )
    return "\n".join(lines)


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return f"{'-':>18}"
    text = f"[{_signed(interval.low)}, {_signed(interval.high)}]"
    return f"{text:>18}  *" if interval.excludes_zero else f"{text:>18}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # adding zero turns -0.0 into 0.0


def listing(questions: Sequence[Changed]) -> str:
    """The questions as text, two lines each."""
    return "\n".join(
        f"{item.question_id}  {_one_line(item.question)}\n"
        f"    A: {_one_line(item.answer_a)} | B: {_one_line(item.answer_b)} | "
        f"people: {_one_line(item.human_answers)} | {_signed(item.change)}"
        for item in questions
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def to_csv(questions: Sequence[Changed]) -> str:
    """The questions as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Changed)])
    writer.writerows(astuple(item) for item in questions)
    return text.getvalue()
