"""What to type to get a run of the table, from the repository's root."""

from __future__ import annotations

import shlex

from mcan.tables.plan import PlannedRun


def training_command(run: PlannedRun) -> str:
    return shlex.join(["python", "train.py", str(run.base), *run.overrides])


def evaluation_command(run: PlannedRun) -> str:
    file = run.folder / f"submission_{run.split}.json"
    submission = ["--submission", str(file)] if run.submission else []
    return shlex.join(["python", "eval.py", str(run.folder), "--split", run.split, *submission])
