"""One run: trained to its end, evaluated, its outcome written."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcan.engine.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from mcan.errors import RunError
from mcan.files import saving
from mcan.tables.children import Children
from mcan.tables.contents import Contents
from mcan.tables.outcome import Outcome, write_outcome
from mcan.tables.plan import PlannedRun

ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


@dataclass(frozen=True)
class Programs:
    """Starts entry points, under torchrun where they are for several `processes`.

    `held` is the claim of the run that they are for.
    """

    children: Children
    held: int
    processes: int

    def call(self, script: str, arguments: Sequence[str], folder: Path) -> None:
        """Run `script` to its end; raises `RunError`, which names the run's `folder`."""
        launcher = ["python"]
        if self.processes > 1:
            launcher = ["torchrun", "--standalone", f"--nproc-per-node={self.processes}"]
        print(shlex.join([*launcher, script, *arguments]), flush=True)
        found = [*_PROGRAMS[launcher[0]], *launcher[1:], str(ROOT / script), *arguments]
        status = self.children.run(found, self.held)
        if status:
            ending = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise RunError(f"{folder}: {script} ended with {ending}; it says above why")


def execute(run: PlannedRun, programs: Programs) -> None:
    """Train `run`, or go on with it, evaluate it and write its outcome.

    Raises `RunError` where a program fails or training stops before its end.
    """
    start = time.monotonic()
    programs.call("train.py", [str(run.base), *run.overrides, "--resume"], run.folder)
    checkpoint = load_checkpoint(find_checkpoint(run.folder, "last"))
    done, epochs = checkpoint.position["epoch"], run.config.train.epochs
    if done < epochs:
        raise RunError(f"{run.folder}: training was stopped after {done} of {epochs} epochs")
    arguments = [str(run.folder), "--split", run.split]
    submission = run.folder / f"submission_{run.split}.json"
    written = submission.with_name(f".{submission.name}.tmp")
    if run.submission:
        written.unlink(missing_ok=True)
        arguments += ["--submission", str(written)]
    programs.call("eval.py", arguments, run.folder)
    if run.submission:
        with saving(submission):
            written.replace(submission)
    metrics = None if run.submission else _metrics(run, checkpoint)
    _write(run, checkpoint, metrics, submission, time.monotonic() - start)


def _metrics(run: PlannedRun, checkpoint: Checkpoint) -> dict[str, Any]:
    name = f"{run.split}_step_{checkpoint.position['step']:08d}"
    path = run.folder / "predictions" / name / "metrics.json"
    if not path.exists():
        raise RunError(
            f"{run.folder}: the split '{run.split}' has no answers; with `submission: true` in the "
            "table, a file for the evaluation server is written"
        )
    metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metrics


def _write(
    run: PlannedRun,
    checkpoint: Checkpoint,
    metrics: dict[str, Any] | None,
    submission: Path,
    seconds: float,
) -> None:
    contents, folder = Contents(), run.config.data.prepared
    prepared, digest = contents.prepared(folder), contents.digest(folder, run.split)
    if prepared is None or digest is None:
        raise RunError(f"{run.folder}: {folder} has gone while the run was evaluated")
    outcome = Outcome(
        split=run.split,
        metrics=metrics,
        submission=submission.name if run.submission else None,
        dataset=prepared.dataset,
        digest=digest,
        trained_on=checkpoint.trained_on,
        seconds=round(seconds, 1),
    )
    contents.check(run, outcome)
    write_outcome(run, outcome)
