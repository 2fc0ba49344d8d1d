"""Two groups of predictions for the same questions: differences with intervals, what changed.

Intervals are bootstrap percentiles of a mean (Efron & Tibshirani 1993, chapter 13). How often each
distinct unit occurs in a resample is drawn from a multinomial distribution. Differences of
accuracies take few distinct values, so no array has M x resamples entries. All seeds answer the
same questions, so questions and seeds are drawn independently (Owen 2007, "The pigeonhole
bootstrap").

N questions, M units that are resampled, K distinct units, S seeds: pairs of runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcan.console import align
from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Split
from mcan.evaluation.metrics import Accuracies, percentage, rows_by_type

RESAMPLES = 10_000
RESAMPLES_OF_SEEDS = 2_000
"""Of several seeds, which have many distinct units: five seeds of VQA v2 take 8 ms a resample."""
_DECIMALS = 9  # sums that differ by rounding errors only are one value
_DRAWN_AT_ONCE = 1 << 20

Clusters: TypeAlias = NDArray[np.integer] | None


def bootstrap_interval(
    values: Accuracies,
    clusters: Clusters = None,
    confidence: float = 95.0,
    resamples: int = RESAMPLES,
) -> list[float] | None:
    """Both ends of the interval of the mean of `values` (S, N) or (N,), paired differences.

    Seeds are resampled, and questions, or whole clusters (Field & Welsh 2007) if `clusters` (N,)
    gives the index of each question's cluster. None for fewer than two units, which have no spread.
    Percentile intervals of few units are too narrow: for 20 normal values, 93 % instead of 95 %
    contain the true mean.
    """
    values = np.atleast_2d(values)
    seeds = len(values)
    clusters = np.arange(values.shape[1]) if clusters is None else clusters
    _, cluster, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    drawn = len(sizes)
    if drawn < 2:
        return None
    sums = [np.bincount(cluster, weights=of_seed).round(_DECIMALS) for of_seed in values]
    # (K, S + 1) distinct sums and sizes, and how many clusters have them.
    units, counts = np.unique(np.column_stack([*sums, sizes]), axis=0, return_counts=True)
    random, means = np.random.default_rng(0), []
    step = max(1, _DRAWN_AT_ONCE // len(units))
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        totals = random.multinomial(drawn, counts / drawn, size) @ units  # (size, S + 1)
        of_seeds = random.multinomial(seeds, [1 / seeds] * seeds, size) * totals[:, :-1]
        means.append(of_seeds.sum(1) / (seeds * totals[:, -1]))
    tail = (100 - confidence) / 200
    ends: list[float] = np.quantile(np.concatenate(means), [tail, 1 - tail]).tolist()
    return ends


class Difference(NamedTuple):
    """Accuracies in percent over some questions and all seeds, and B - A with its interval."""

    kind: str  # overall, answer type or question type
    name: str  # of the type
    questions: int
    differ: int  # questions that A and B answer better or worse, with any seed
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: list[float] | None


def differences(
    scores: Sequence[Accuracies],
    split: Split,
    clusters: Clusters,
    confidence: float,
    resamples: int,
) -> list[Difference]:
    """Overall, per answer type and per question type of `split`; scores (S, N) of A and B, 0 to 1.

    The other arguments are those of `bootstrap_interval`.
    """
    groups = [("overall", "", np.ones(len(split), bool))]
    kinds = {"answer type": split.answer_types, "question type": split.question_types}
    for kind, types in kinds.items():
        groups += [(kind, name, rows) for name, rows in rows_by_type(types).items()]
    found = []
    for kind, name, rows in groups:
        a, b = (each[:, rows] for each in scores)
        of_a, of_b = fmean(map(percentage, a)), fmean(map(percentage, b))
        drawn = None if clusters is None else clusters[rows]
        interval = bootstrap_interval(100 * (b - a), drawn, confidence, resamples)
        counts = int(rows.sum()), int((b - a).round(_DECIMALS).any(0).sum())
        found.append(Difference(kind, name, *counts, of_a, of_b, of_b - of_a, interval))
    return found


def changed_questions(
    answers: Sequence[Sequence[Sequence[str]]], scores: Sequence[Accuracies], split: Split
) -> list[dict[str, Any]]:
    """The questions whose mean accuracy differs, in the order of `split`; accuracies in percent.

    Answers S x N and scores (S, N), 0 to 1, of A and B.
    """
    rows = np.flatnonzero((scores[1] - scores[0]).mean(0).round(_DECIMALS))
    found = []
    for row, question_id in zip(rows.tolist(), array_to_ids(split.question_ids[rows]), strict=True):
        a, b = (100 * float(each[:, row].mean()) for each in scores)
        given_a, given_b = (", ".join(of_seed[row] for of_seed in each) for each in answers)
        counts = Counter(split.human_answers[row]).most_common()
        humans = ", ".join(f"{answer} ({count})" for answer, count in counts)
        entry = {"question_id": question_id, "question": split.questions[row]}
        entry |= {"answer_a": given_a, "answer_b": given_b, "human_answers": humans}
        found.append({**entry, "accuracy_a": a, "accuracy_b": b, "change": b - a})
    return found


def difference_table(rows: Sequence[Difference], confidence: float) -> str:
    """The differences as a text table with a legend.

    `few` marks intervals that rest on so few questions that an exact sign test could not exclude
    zero, even if all of them changed the same way; they get no `*`.
    """
    needed = math.ceil(1 - math.log2(1 - confidence / 100))  # 2 · 0.5^n at most 1 - confidence
    lines = [["", "questions", "differ", "A %", "B %", "B - A", f"{confidence:g} % interval", ""]]
    for row in rows:
        label = row.kind if row.kind == "overall" else f"{row.kind}: {row.name or '(none)'}"
        values = [f"{row.accuracy_a:.2f}", f"{row.accuracy_b:.2f}", signed(row.difference)]
        ends, mark = "-", ""
        if row.interval is not None:
            low, high = row.interval
            ends, mark = f"[{signed(low)}, {signed(high)}]", "*" if low > 0 or high < 0 else ""
        mark = mark if row.differ >= needed else "few"
        lines.append([label, f"{row.questions:,}", f"{row.differ:,}", *values, ends, mark])
    legend = f"few: fewer than {needed} questions differ, too few for an interval"
    return f"{align(lines)}\n* the interval excludes zero; {legend}"


def signed(value: float) -> str:
    """Two decimals and a sign, also of zero."""
    return f"{round(value, 2) + 0.0:+.2f}"  # adding zero turns -0.0 into 0.0


def list_changed(questions: Sequence[dict[str, Any]]) -> str:
    """The questions as text, two lines each."""
    lines = []
    for item in questions:
        answers = "A: {answer_a} | B: {answer_b} | people: {human_answers}".format_map(item)
        lines.append(f"{item['question_id']}  {' '.join(item['question'].split())}")
        lines.append(f"    {' '.join(answers.split())} | {signed(item['change'])}")
    return "\n".join(lines)
