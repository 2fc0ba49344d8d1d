"""Runs -> rows: mean and spread over seeds, beside the published figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from mcan.tables.call import AS_STATED, Call
from mcan.tables.outcome import Outcome, outcome_path
from mcan.tables.plan import PlannedRun
from mcan.tables.spec import OVERALL, Row, Table

Filled = Mapping[str, Mapping[str, float]]
"""Figures of the evaluation server, in percent: row name -> column -> value."""


@dataclass(frozen=True)
class Cell:
    """Accuracies of one row in one column, in percent."""

    values: Mapping[int, float]
    """Seed -> accuracy of its run; empty where no run has one."""
    filled: float | None
    """The evaluation server's figure, which counts only where there are no values."""
    published: float | None
    comparable: bool
    """The published figure is of the dataset of the runs."""

    @property
    def mean(self) -> float | None:
        return fmean(self.values.values()) if self.values else self.filled

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for fewer than two runs."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def from_server(self) -> bool:
        return not self.values and self.filled is not None

    @property
    def difference(self) -> float | None:
        """Mean minus published figure, where the two are of one dataset."""
        if self.mean is None or self.published is None or not self.comparable:
            return None
        return self.mean - self.published


class Evaluation(NamedTuple):
    """What accuracies are of."""

    dataset: str
    split: str
    metric: str
    questions: int


@dataclass(frozen=True)
class RowSummary:
    """A row of the table with what its runs left."""

    row: Row
    runs: tuple[PlannedRun, ...]
    outcomes: Mapping[int, Outcome]
    """Seed -> outcome, of the finished runs."""
    cells: Mapping[str, Cell]
    """The table's columns, `overall`, and every answer type that was measured."""
    question_types: Mapping[str, Cell]
    comparable: bool
    """The published figures are of the dataset of the runs."""

    @property
    def missing(self) -> list[int]:
        """Seeds whose run is not finished."""
        return [run.seed for run in self.runs if run.seed not in self.outcomes]

    @property
    def submitted(self) -> bool:
        """Finished without accuracies, and none of the server's is filled in yet."""
        scored = any(cell.mean is not None for cell in self.cells.values())
        return bool(self.outcomes) and not scored

    @property
    def evaluations(self) -> list[Evaluation]:
        """What the accuracies of the runs are of: one entry, unless data changed between runs."""
        return _distinct(
            Evaluation(each.dataset, each.split, str(each.metrics["metric"]), each.metrics["n"])
            for each in self.outcomes.values()
            if each.metrics is not None
        )


@dataclass(frozen=True)
class Summary:
    """A table with its runs."""

    table: Table
    columns: tuple[str, ...]
    """Columns shown: the table's, or `overall` and the answer types of another dataset."""
    rows: tuple[RowSummary, ...]
    datasets: tuple[str, ...]
    """Datasets of the finished runs."""
    call: Call = AS_STATED
    """What the command changed."""

    @property
    def comparable(self) -> bool:
        """Some runs are on the dataset of the published figures, or there are none yet."""
        return not self.datasets or self.table.dataset in self.datasets


def summarise_rows(
    table: Table,
    runs: Sequence[PlannedRun],
    outcomes: Mapping[Path, Outcome],
    filled: Filled,
) -> Summary:
    """The rows that were planned and the published-only ones, in the table's order.

    `outcomes` are those of finished runs, by `outcome_path` (a run may be evaluated on two splits).
    """
    datasets = tuple(_distinct(outcome.dataset for outcome in outcomes.values()))
    types = _answer_types(outcomes.values())
    rows = []
    for row in table.rows:
        planned = tuple(run for run in runs if run.row.name == row.name)
        if planned or not row.runs:
            found = {run.seed: outcomes.get(outcome_path(run)) for run in planned}
            done = {seed: outcome for seed, outcome in found.items() if outcome is not None}
            entered = filled.get(row.name, {})
            rows.append(_summarise(table, row, planned, done, datasets, types, entered))
    return Summary(table, _columns(table, types, datasets), tuple(rows), datasets)


def _summarise(
    table: Table,
    row: Row,
    runs: tuple[PlannedRun, ...],
    outcomes: Mapping[int, Outcome],
    datasets: Sequence[str],
    types: Sequence[str],
    filled: Mapping[str, float],
) -> RowSummary:
    own = _distinct(outcome.dataset for outcome in outcomes.values()) or datasets
    comparable = set(own) <= {table.dataset}
    metrics = {seed: each.metrics for seed, each in outcomes.items() if each.metrics is not None}
    accuracies = {
        seed: {OVERALL: each[OVERALL], **each["per_answer_type"]} for seed, each in metrics.items()
    }
    questions = {seed: each["per_question_type"] for seed, each in metrics.items()}
    published = row.published or {}
    return RowSummary(
        row,
        runs,
        outcomes,
        {
            name: Cell(_values(accuracies, name), filled.get(name), published.get(name), comparable)
            for name in _distinct([*table.columns, OVERALL, *types])
        },
        {
            name: Cell(_values(questions, name), None, None, comparable)
            for name in _names(questions)
        },
        comparable,
    )


def _answer_types(outcomes: Iterable[Outcome]) -> list[str]:
    """Every answer type that was measured; questions without a type have none."""
    reports = (outcome.metrics or {} for outcome in outcomes)
    return sorted({name for each in reports for name in each.get("per_answer_type", {}) if name})


def _columns(table: Table, types: Sequence[str], datasets: Sequence[str]) -> tuple[str, ...]:
    """The table's, unless the runs are on another dataset with answer types of its own."""
    if set(datasets) <= {table.dataset} or set(types) <= set(table.columns):
        return tuple(table.columns)
    return (OVERALL, *types)


def _values(reports: Mapping[int, Mapping[str, float | None]], name: str) -> dict[int, float]:
    """Seed -> accuracy, of the runs that have one for `name`."""
    found = {seed: report.get(name) for seed, report in reports.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _names(reports: Mapping[int, Mapping[str, Any]]) -> list[str]:
    return sorted({name for report in reports.values() for name in report})


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
