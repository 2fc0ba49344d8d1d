"""What running a table would do, as text: its runs, their state and cost, the published figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mcan.engine.run_folder import RunFolder
from mcan.tables.call import Call, in_force
from mcan.tables.cost import data_sizes, pace, training_flops
from mcan.tables.outcome import outcome_path, read_outcome
from mcan.tables.plan import PlannedRun, counted_runs
from mcan.tables.runner import distinct
from mcan.tables.spec import Assumed, Row, Table

_PETA = 1e15


def preview(
    table: Table,
    call: Call,
    runs: Sequence[PlannedRun],
    runs_folder: Path,
    assumed: Assumed | None,
) -> str:
    """A text for the terminal. `assumed` sizes are used for data that is not prepared."""
    return "\n".join(_Preview(call, runs, runs_folder, assumed).lines(table))


def equal_rows(runs: Sequence[PlannedRun]) -> list[str]:
    """A sentence on the rows that are one run, since their configs are equal; none without."""
    rows: dict[Path, dict[str, None]] = {}
    for run in runs:
        rows.setdefault(outcome_path(run), {})[run.row.name] = None
    groups = dict.fromkeys(" = ".join(names) for names in rows.values() if len(names) > 1)
    if not groups:
        return []
    return [f"rows that are one run, since their configs are equal: {'; '.join(groups)}"]


class _Preview:
    def __init__(
        self,
        call: Call,
        runs: Sequence[PlannedRun],
        runs_folder: Path,
        assumed: Assumed | None,
    ) -> None:
        self._call = call
        self._runs = runs
        self._pace = pace(runs_folder, assumed)
        self._sizes = {id(run): data_sizes(run.config, assumed) for run in runs}
        self._first = {outcome_path(run): run for run in distinct(runs)}

    def lines(self, table: Table) -> Iterator[str]:
        called = f", {self._call.told}" if self._call.told else ""
        yield f"{table.title} ({table.path}{called})"
        for row in table.rows:
            runs = [run for run in self._runs if run.row.name == row.name]
            if runs or not row.runs:
                yield ""
                yield from self._row(row, table.columns, runs)
        yield ""
        yield from self._totals()
        yield from self._notes(table)

    def _row(self, row: Row, columns: Sequence[str], runs: Sequence[PlannedRun]) -> Iterator[str]:
        yield row.name
        if row.published:
            dagger = "" if row.verified else "†"
            figures = [f"{c} {row.published[c]:.2f}" for c in columns if c in row.published]
            yield f"  published  {', '.join(figures)}{dagger}"
        if not runs:
            yield "  not run here"
            return
        first, own = runs[0], in_force([*row.overrides, *self._call.overrides])
        where = f"submission for {first.split}" if first.submission else first.split
        yield f"  config     {first.base}{''.join(f' {text}' for text in own)} -> {where}"
        for run in runs:
            yield f"  seed {run.seed:<5} {self._state(run):6}  {self._cost(run)}  {run.folder}"

    def _state(self, run: PlannedRun) -> str:
        if self._first[outcome_path(run)] is not run:
            return "shared"
        if read_outcome(run) is not None:
            return "done"
        return "partly" if RunFolder(run.folder).exists else "new"

    def _cost(self, run: PlannedRun) -> str:
        sizes = self._sizes[id(run)]
        return "cost unknown" if sizes is None else self._told(training_flops(run.config, sizes))

    def _told(self, flops: float) -> str:
        told = f"{flops / _PETA:.3g} PFLOP"
        if self._pace is None:
            return told
        return f"{told}, about {flops * self._pace.seconds_per_flop / 3600:.3g} h"

    def _totals(self) -> Iterator[str]:
        runs = list(self._first.values())
        states = [self._state(run) for run in runs]
        counts = [f"{states.count(s)} {s}" for s in ("done", "partly", "new") if s in states]
        yield f"{counted_runs(len(runs))}: {', '.join(counts) or 'none'}"
        left = [run for run, state in zip(runs, states, strict=True) if state != "done"]
        known = [(run.config, size) for run in left if (size := self._sizes[id(run)])]
        if known:
            flops = sum(training_flops(config, sizes) for config, sizes in known)
            yield f"left to train: {self._told(flops)} (partly done runs counted in full)"
        if len(known) < len(left):
            yield "where the cost is unknown, the data is not prepared here"

    def _notes(self, table: Table) -> Iterator[str]:
        if self._pace is not None and any(self._sizes.values()):
            among = f"the median of {counted_runs(self._pace.finished)} done without interruption"
            yield f"hours assume the pace of {self._pace.run}, {among}"
        if any(sizes and sizes.assumed for sizes in self._sizes.values()):
            yield "sizes of data that is not prepared here are assumed, as the table file states"
        if any(row.published and not row.verified for row in table.rows):
            yield f"† not confirmed at the source ({table.source})"
