"""Figures that an evaluation server gave for a run's submission, kept in the run's folder.

So tables that share a run share `server_<split>.json`, and a changed config has none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from mcan.errors import ConfigError, RunError
from mcan.files import save_text
from mcan.tables.outcome import read_outcome
from mcan.tables.plan import PlannedRun
from mcan.tables.spec import Table

Figures: TypeAlias = dict[str, float]
"""Column -> percent."""
Filled: TypeAlias = dict[str, Figures]
"""Row name -> its figures."""


def read_filled(runs: Sequence[PlannedRun]) -> Filled:
    """The figures of each row with a finished submission that has some.

    Of several seeds, those of the first that has. Raises `RunError` for a damaged file.
    """
    filled: Filled = {}
    for run in runs:
        if not run.submission or run.row.name in filled:
            continue
        # What a figure is of is known from the outcome alone.
        if (figures := _read(_path(run))) and read_outcome(run) is not None:
            filled[run.row.name] = figures
    return filled


def fill(table: Table, runs: Sequence[PlannedRun], texts: Sequence[str]) -> None:
    """Add `ROW=70.63` (the first column) and `ROW:COLUMN=86.82` to what is kept for the rows' runs.

    Raises `ConfigError` for another form, an unknown row or column, a row that is no submission or
    has several seeds and a figure that is no percentage, and `RunError` for a run that is not done
    or a damaged file; nothing is written then.
    """
    kept: dict[Path, Figures] = {}
    for text in texts:
        run, column, figure = _parse(table, runs, text)
        path = _path(run)
        if path not in kept:
            kept[path] = _read(path)
        kept[path][column] = figure
    for path, figures in kept.items():
        save_text(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def _parse(table: Table, runs: Sequence[PlannedRun], text: str) -> tuple[PlannedRun, str, float]:
    target, equals, figure = text.rpartition("=")
    rows = list(dict.fromkeys(run.row.name for run in runs))
    submitted = {run.row.name: None for run in runs if run.submission}
    there = f"there is {list(submitted)}" if submitted else "no row here is a submission"
    if not equals:
        raise ConfigError(
            f"--fill {text!r}: expected ROW[:COLUMN]=FIGURE with a row to fill of {table.path}; "
            f"{there}"
        )
    # Names may hold colons themselves.
    row, column = (target, table.columns[0]) if target in rows else _split(target)
    if row not in rows:
        raise ConfigError(
            f"--fill {text!r}: {table.path} has no row to fill named {row!r}; {there}"
        )
    if row not in submitted:
        raise ConfigError(
            f"--fill {text!r}: the row {row!r} is evaluated here, not by a server; {there}"
        )
    if column not in table.columns:
        raise ConfigError(
            f"--fill {text!r}: {table.path} has no column {column!r}; there is "
            f"{', '.join(table.columns)}"
        )
    return _only_run(row, runs, text), column, _percentage(figure, text)


def _percentage(figure: str, text: str) -> float:
    try:
        value = float(figure)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ConfigError(f"--fill {text!r}: {figure!r} is no percentage")
    if 0 < value <= 1:
        raise ConfigError(
            f"--fill {text!r}: {figure!r} looks like a fraction; figures are percentages, "
            f"{100 * value:g} say"
        )
    return value


def _only_run(row: str, runs: Sequence[PlannedRun], text: str) -> PlannedRun:
    first, *others = (run for run in runs if run.row.name == row)
    if others:
        seeds = ", ".join(str(run.seed) for run in (first, *others))
        raise ConfigError(
            f"--fill {text!r}: the row {row!r} has a run for each of the seeds {seeds}; tell which "
            "was submitted with --seeds"
        )
    if read_outcome(first) is None:
        raise RunError(
            f"--fill {text!r}: {first.folder} ({first.title}) is not done; give --set, --seeds "
            "and --runs as for the run that was submitted, or run it first, without --fill"
        )
    return first


def _split(target: str) -> tuple[str, str]:
    row, colon, column = target.rpartition(":")
    return (row, column) if colon else (column, "")


def _read(path: Path) -> Figures:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    if not _is_figures(content):
        raise RunError(f"{path}: expected figures by column, as --fill writes them")
    figures: Figures = content
    return figures


def _is_figures(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values())


def _path(run: PlannedRun) -> Path:
    return run.folder / f"server_{run.split}.json"
