"""Runs -> rows: mean and spread over seeds, beside the published values and a server's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from mcan.config import flatten
from mcan.errors import ConfigError, RunError
from mcan.files import save_text
from mcan.tables.outcomes import Outcome, RunMetrics, learning_curve, read_outcome
from mcan.tables.planning import CommandOptions, PlannedRun
from mcan.tables.spec import OVERALL, Row, Table

QUESTION = "per_question_type."
_SCORES = TypeAdapter(dict[str, FiniteFloat])
"""Column -> percent, as an evaluation server gave it."""


@dataclass(frozen=True)
class Cell:
    """One row in one column; percent for accuracies."""

    mean: float | None
    """Over the runs that have a value."""
    std: float | None
    """Sample standard deviation (n - 1) over seeds; None for fewer than two runs."""
    published: float | None
    difference: float | None
    """Mean minus published value, if the two are of one dataset and metric."""
    seeds: Mapping[int, float]
    """Seed -> value of its run; a mean without any is the evaluation server's score."""

    @property
    def from_server(self) -> bool:
        return self.mean is not None and not self.seeds


@dataclass(frozen=True)
class RowSummary:
    """A row of the table with the results of its runs."""

    row: Row
    runs: tuple[PlannedRun, ...]
    outcomes: Mapping[int, Outcome]
    """Seed -> outcome, of the finished runs."""
    cells: Mapping[str, Cell]
    """The table's columns, `overall`, and every answer type and question type measured."""
    curves: Mapping[int, Mapping[int, float]]
    """Seed -> epoch -> accuracy in percent during training, of finished runs that have some."""


@dataclass(frozen=True)
class TableSummary:
    """A table with the results of its runs."""

    table: Table
    columns: tuple[str, ...]
    """Columns shown: the table's, or `overall` and the answer types of another dataset."""
    rows: tuple[RowSummary, ...]
    comparable: bool
    """The published values are of the dataset and the metric of all finished runs."""
    options: CommandOptions

    @property
    def has_curves(self) -> bool:
        return any(row.curves for row in self.rows)


def summarise(
    table: Table,
    runs: Sequence[PlannedRun],
    outcomes: Mapping[Path, Outcome],
    options: CommandOptions,
) -> TableSummary:
    """The rows that were planned and those that are only cited, in the table's order.

    `outcomes` are those of finished runs, by `outcome_path`.
    """
    scored = [outcome.metrics for outcome in outcomes.values() if outcome.metrics is not None]
    same_dataset = all(outcome.dataset == table.dataset for outcome in outcomes.values())
    same_metric = all(table.metric in (None, each.metric) for each in scored)
    # Questions without an answer type have the type "", which is not a column.
    types = sorted({name for each in scored for name in each.per_answer_type} - {""})
    columns = table.columns
    if not same_dataset and not {*types} <= {*columns}:
        columns = (OVERALL, *types)
    comparable = same_dataset and same_metric
    rows = []
    for row in table.rows:
        planned = tuple(run for run in runs if run.row.name == row.name)
        if not planned and row.runs:
            continue
        done = {r.seed: outcomes[r.outcome_path] for r in planned if r.outcome_path in outcomes}
        found = {seed: numbers(o.metrics) for seed, o in done.items() if o.metrics is not None}
        questions = {name for each in found.values() for name in each if name.startswith(QUESTION)}
        server, cells = read_scores(planned), {}
        for name in dict.fromkeys([*table.columns, OVERALL, *types, *sorted(questions)]):
            values = {seed: each[name] for seed, each in found.items() if name in each}
            # The metric of a server is unknown here.
            same = comparable and (bool(values) or table.metric is None)
            mean = fmean(values.values()) if values else server.get(name)
            std = stdev(values.values()) if len(values) > 1 else None
            published, difference = row.published.get(name), None
            if same and mean is not None and published is not None:
                difference = mean - published
            cells[name] = Cell(mean, std, published, difference, values)
        curves = {r.seed: learning_curve(r) for r in planned if r.seed in done}
        curves = {seed: curve for seed, curve in curves.items() if curve}
        rows.append(RowSummary(row, planned, done, cells, curves))
    return TableSummary(table, columns, tuple(rows), comparable, options)


def numbers(metrics: RunMetrics) -> dict[str, float]:
    """Every number of metrics.json by its dotted key, those of answer types also by type."""
    flat = {**flatten(metrics.model_dump()), **metrics.per_answer_type}
    return {key: float(value) for key, value in flat.items() if type(value) in (int, float)}


# Scores of an evaluation server are entered by hand and kept in the run's folder, in
# `server_<split>.json`: tables that share a run share them, and a changed config has none.


def read_scores(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """The scores of the first of a row's runs that has a finished submission and some scores."""
    for run in runs:
        if run.submission and (scores := _read(_path(run))) and read_outcome(run) is not None:
            return scores
    return {}


def enter_scores(table: Table, runs: Sequence[PlannedRun], texts: Sequence[str]) -> None:
    """Add `ROW=70.63` (the first column) and `ROW:COLUMN=86.82` to the scores of the rows' runs.

    If one of the `texts` is refused, nothing is written.
    """
    submitted = [run for run in runs if run.submission]
    names = list(dict.fromkeys(run.row.name for run in submitted))
    targets = {f"{name}:{column}": (name, column) for name in names for column in table.columns}
    targets |= {name: (name, table.columns[0]) for name in names}
    kept: dict[Path, dict[str, float]] = {}
    for text in texts:
        target, _, score = text.rpartition("=")
        try:
            name, column = targets[target]
            value = float(score)
            if not 0 <= value <= 100:
                raise ValueError
        except (KeyError, ValueError):
            raise ConfigError(
                f"--fill {text!r}: expected ROW[:COLUMN]=SCORE in percent; the rows of "
                f"{table.path} with a submission: {names or 'none'}, columns: "
                f"{', '.join(table.columns)}"
            ) from None
        run, *others = (run for run in submitted if run.row.name == name)
        if others:
            reason = f"the row {name!r} has several seeds; choose the submitted run with --seeds"
            raise ConfigError(f"--fill {text!r}: {reason}")
        if read_outcome(run) is None:
            raise RunError(
                f"--fill {text!r}: {run.folder} ({run.title}) is not finished; give --set, --seeds "
                "and --runs as for the run that was submitted, or run it first, without --fill"
            )
        kept.setdefault(_path(run), _read(_path(run)))[column] = value
    for path, scores in kept.items():
        save_text(path, _SCORES.dump_json(scores, indent=2).decode() + "\n")


def _path(run: PlannedRun) -> Path:
    return run.folder / f"server_{run.split}.json"


def _read(path: Path) -> dict[str, float]:
    try:
        return _SCORES.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise RunError(f"{path}: expected numbers by column, as --fill writes them") from error
