"""Runs of a table, each done once whatever else works on the folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mcan.errors import UserError
from mcan.tables.children import Children
from mcan.tables.claims import claim
from mcan.tables.contents import Contents
from mcan.tables.execution import Programs, execute
from mcan.tables.outcome import Outcome, outcome_path, read_outcome
from mcan.tables.plan import PlannedRun, counted_runs

_POLL_SECONDS = 1.0


def distinct(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The first of those that share a run, in their order."""
    first: dict[Path, PlannedRun] = {}
    for run in runs:
        first.setdefault(outcome_path(run), run)
    return list(first.values())


def collect(runs: Iterable[PlannedRun], contents: Contents) -> dict[Path, Outcome]:
    """The outcomes of the finished runs, by `outcome_path`.

    Raises `RunError` where one cannot be read, or is of other data than is prepared now.
    """
    outcomes: dict[Path, Outcome] = {}
    for run in distinct(runs):
        outcome = read_outcome(run)
        if outcome is not None:
            contents.check(run, outcome)
            outcomes[outcome_path(run)] = outcome
    return outcomes


def run_all(runs: Sequence[PlannedRun], children: Children, processes: int = 1) -> list[str]:
    """Do the runs that are not done, and wait for those that other processes do.

    A run whose owner died is taken over. Returns a sentence for each run that failed. Raises
    `Interrupted`.
    """
    waiting, told = distinct(runs), False
    failures: list[str] = []
    while waiting:
        elsewhere = [run for run in waiting if not _attempt(run, children, processes, failures)]
        if elsewhere and not told:
            print(f"\nwaiting for {counted_runs(len(elsewhere))} of other processes", flush=True)
            told = True
        if len(elsewhere) == len(waiting):
            children.sleep(_POLL_SECONDS)
        waiting = elsewhere
    return failures


def _attempt(run: PlannedRun, children: Children, processes: int, failures: list[str]) -> bool:
    """False where another process has the run; else it is done now, or noted in `failures`."""
    if read_outcome(run) is not None:
        return True
    with claim(run.folder) as held:
        if held is None:
            return False
        try:
            # Again: it may have been finished between the look and the claim.
            if read_outcome(run) is None:
                print(f"\n{run.title}", flush=True)
                execute(run, Programs(children, held, processes))
        except (UserError, OSError) as error:
            failures.append(f"{run.title}: {error}")
    return True
