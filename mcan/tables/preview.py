"""What running a table would do, as text: its runs, their state and cost, the published figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mcan.engine.run_folder import RunFolder
from mcan.tables.cost import data_sizes, seconds_per_flop, training_flops
from mcan.tables.outcome import outcome_path, read_outcome
from mcan.tables.plan import PlannedRun
from mcan.tables.runner import distinct
from mcan.tables.spec import Assumed, Row, Table

_PETA = 1e15


def preview(
    table: Table, runs: Sequence[PlannedRun], runs_folder: Path, assumed: Assumed | None
) -> str:
    """A text for the terminal. `assumed` sizes are used for data that is not prepared."""
    return "\n".join(_Preview(runs, runs_folder, assumed).lines(table))


class _Preview:
    def __init__(
        self, runs: Sequence[PlannedRun], runs_folder: Path, assumed: Assumed | None
    ) -> None:
        self._runs = runs
        self._pace = seconds_per_flop(runs_folder, assumed)
        self._sizes = {id(run): data_sizes(run.config, assumed) for run in runs}
        self._first = {outcome_path(run): run for run in distinct(runs)}

    def lines(self, table: Table) -> Iterator[str]:
        yield f"{table.title} ({table.path})"
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
        first, own = runs[0], row.overrides
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
        hours = "" if self._pace is None else f", about {flops * self._pace / 3600:.3g} h"
        return f"{flops / _PETA:.3g} PFLOP{hours}"

    def _totals(self) -> Iterator[str]:
        runs = list(self._first.values())
        states = [self._state(run) for run in runs]
        counts = [f"{states.count(s)} {s}" for s in ("done", "partly", "new") if s in states]
        yield f"{len(runs)} runs: {', '.join(counts)}"
        left = [run for run, state in zip(runs, states, strict=True) if state != "done"]
        known = [(run.config, size) for run in left if (size := self._sizes[id(run)])]
        if known:
            flops = sum(training_flops(config, sizes) for config, sizes in known)
            yield f"left to train: {self._told(flops)} (partly done runs counted in full)"
        if len(known) < len(left):
            yield "where the cost is unknown, the data is not prepared here"

    def _notes(self, table: Table) -> Iterator[str]:
        if any(sizes and sizes.assumed for sizes in self._sizes.values()):
            yield "sizes of data that is not prepared here are assumed, as the table file states"
        if any(row.published and not row.verified for row in table.rows):
            yield f"† not confirmed at the source ({table.source})"
