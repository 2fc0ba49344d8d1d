"""What would make runs of a table fail, told before the first of them starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mcan.config import Config
from mcan.config.messages import show
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.tables.contents import Contents
from mcan.tables.outcome import read_outcome
from mcan.tables.plan import PlannedRun
from mcan.tables.spec import OVERALL, Table


def check_ready(
    table: Table, runs: Sequence[PlannedRun], chosen: Sequence[PlannedRun], contents: Contents
) -> None:
    """Raise `DataError`, one sentence, for all that keeps the `chosen` of a table's `runs` from
    being done: data that is not there, and what `check_known` checks.
    """
    left = [run for run in chosen if read_outcome(run) is None]
    _refuse([*_missing(left, contents), *_unknown(table, runs, left, contents)])


def check_known(
    table: Table, runs: Sequence[PlannedRun], chosen: Sequence[PlannedRun], contents: Contents
) -> None:
    """Raise `DataError` for splits and columns that the data does not have, where it is there."""
    left = [run for run in chosen if read_outcome(run) is None]
    _refuse(_unknown(table, runs, left, contents))


def unchecked(table: Table, runs: Sequence[PlannedRun], contents: Contents) -> list[str]:
    """A sentence on what `check_known` cannot tell; none where all data is there."""
    folders = dict.fromkeys(run.config.data.prepared for run in runs)
    absent = [folder for folder in folders if contents.prepared(folder) is None]
    if not absent:
        return []
    columns = _from_data(table, runs)
    what = ["splits", *([f"the columns {', '.join(columns)}"] if columns else [])]
    return [f"not checked, since {', '.join(absent)} is not prepared here: {' and '.join(what)}"]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise DataError("; ".join(problems))


def _missing(runs: Sequence[PlannedRun], contents: Contents) -> list[str]:
    known: dict[tuple[object, ...], list[str]] = {}

    def of(config: Config) -> list[str]:
        vectors = config.model.question.word_vectors
        key = (config.data, vectors)
        if key not in known:
            known[key] = list(_absent(config, contents))
        return known[key]

    return _grouped(((problem, run) for run in runs for problem in of(run.config)), runs)


def _absent(config: Config, contents: Contents) -> Iterator[str]:
    """A sentence for each file or folder of a config's data that cannot be read."""
    try:
        contents.open(config.data.prepared)
    except DataError as error:
        yield str(error)
    for path in (*config.data.images, *config.data.grid):
        try:
            open_store(path)
        except DataError as error:
            yield str(error)
    vectors = config.model.question.word_vectors
    if vectors is not None and not Path(vectors.path).is_file():
        yield f"{vectors.path}: there is no such file of word vectors"


def _unknown(
    table: Table, runs: Sequence[PlannedRun], left: Sequence[PlannedRun], contents: Contents
) -> list[str]:
    splits = ((problem, run) for run in left for problem in _unknown_splits(run, contents))
    return [*_grouped(splits, left), *_unknown_columns(table, runs, contents)]


def _unknown_splits(run: PlannedRun, contents: Contents) -> Iterator[str]:
    data = run.config.data
    prepared = contents.prepared(data.prepared)
    if prepared is None:
        return
    for split in dict.fromkeys((*data.train, data.evaluate or run.split, run.split)):
        if split not in prepared.splits:
            known = ", ".join(prepared.splits)
            yield f"{prepared.folder}: there is no split '{split}'; there is {known}"


def _unknown_columns(table: Table, runs: Sequence[PlannedRun], contents: Contents) -> Iterator[str]:
    """None where `--base` chose another dataset: its answer types take the columns' place."""
    wanted = _from_data(table, runs)
    if not wanted:
        return
    datasets: dict[str, Prepared] = {}
    for run in runs:
        prepared = contents.prepared(run.config.data.prepared)
        if prepared is None:
            return
        if str(run.base) != run.row.base and prepared.dataset != table.dataset:
            return
        datasets[run.config.data.prepared] = prepared
    types = {name for prepared in datasets.values() for name in prepared.answer_types() if name}
    if unknown := [name for name in wanted if name not in types]:
        yield (
            f"{table.path}: columns has {', '.join(map(show, unknown))}; a column is {OVERALL}, "
            f"one that is published, or an answer type of {', '.join(datasets)} "
            f"({', '.join(sorted(types)) or 'there are none'})"
        )


def _from_data(table: Table, runs: Sequence[PlannedRun]) -> list[str]:
    """Columns that only the data can tell; a server's figures may be of any column."""
    if any(run.submission for run in runs):
        return []
    published = {column for row in table.rows for column in row.published}
    return [name for name in table.columns if name != OVERALL and name not in published]


def _grouped(problems: Iterable[tuple[str, PlannedRun]], runs: Sequence[PlannedRun]) -> list[str]:
    """Each problem once, with the rows that have it unless all do."""
    rows: dict[str, dict[str, None]] = {}
    for problem, run in problems:
        rows.setdefault(problem, {})[run.row.name] = None
    every = {run.row.name for run in runs}
    return [
        problem if found.keys() == every else f"{problem} (rows: {', '.join(found)})"
        for problem, found in rows.items()
    ]
