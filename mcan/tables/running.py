"""Running the runs of a table, each once, whatever else works on the same folder."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from subprocess import Popen
from typing import Any

from mcan.engine.checkpoint import Position, find_checkpoint, load_checkpoint
from mcan.engine.run_folder import ROOT, code_digest
from mcan.engine.trainer import finished
from mcan.errors import RunError, UserError
from mcan.files import lock_file, save_text
from mcan.tables.outcomes import (
    DataCache,
    Outcome,
    RunMetrics,
    made_by_other_code,
    read_outcome,
    training_codes,
)
from mcan.tables.planning import PlannedRun


class RunnerStopped(Exception):  # noqa: N818 (not an error: someone asked)
    """SIGINT or SIGTERM arrived, and the program that was running has ended."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of stopping at once."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_if_stopped(received: Sequence[int]) -> None:
    if received:
        raise RunnerStopped(received[-1])


def run_program(command: Sequence[str], received: Sequence[int]) -> int:
    """Run a program to its end, passing on the signals `received`; its exit status.

    Raises `RunnerStopped` after its end if there was a signal.
    """
    raise_if_stopped(received)
    # A session of its own: otherwise Ctrl-C would reach the program twice, which training takes as
    # an order to stop at once.
    with Popen(command, start_new_session=True) as child:
        passed_on = 0
        while (status := child.poll()) is None:
            for number in received[passed_on:]:
                child.send_signal(number)
                passed_on += 1
            time.sleep(0.1)
    raise_if_stopped(received)
    return status


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on the file `path`; False if another process has it, unless `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_file(path, wait=wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def claim(run: PlannedRun) -> Iterator[bool]:
    """Whether this process has the run to itself, without waiting.

    A claim is a lock of the runner. If the runner is killed, its training may live on, so the lock
    that train.py holds on the run's folder counts too.
    """
    with locked(run.folder.parent / ".claims" / run.folder.name) as mine:
        lock = run.folder / ".lock"
        if mine and lock.exists():
            with locked(lock) as mine:
                pass  # released again, for the training that this process starts
        yield mine


def run_all(runs: Sequence[PlannedRun], processes: int = 1) -> list[str]:
    """Do the runs that are not done, and wait for those that other processes do.

    A run whose owner died is taken over. Returns one line for each run that failed.
    """
    waiting, announced = list(runs), False
    failures: list[str] = []
    with stop_signals() as received:
        while waiting:
            elsewhere = [run for run in waiting if not _attempt(run, received, processes, failures)]
            if elsewhere and not announced:
                titles = "; ".join(run.title for run in elsewhere)
                print(f"\nwaiting for other processes: {titles}", flush=True)
                announced = True
            if len(elsewhere) == len(waiting):
                raise_if_stopped(received)
                time.sleep(1)
            waiting = elsewhere
    return failures


def _attempt(run: PlannedRun, received: Sequence[int], processes: int, failures: list[str]) -> bool:
    """False if another process has the run; otherwise it is done now, or added to `failures`."""
    try:
        with claim(run) as free:
            if not free:
                return False
            if read_outcome(run) is None:
                print(f"\n{run.title}", flush=True)
                _execute(run, received, processes)
    except (UserError, OSError) as error:
        failures.append(f"{run.title}: {error}")
    return True


def _execute(run: PlannedRun, received: Sequence[int], processes: int) -> None:
    """Train `run`, or resume it, evaluate it and write its outcome."""

    def call(script: str, *arguments: str) -> None:
        shown, launcher = ["python"], [sys.executable]
        if processes > 1:
            options = ["--standalone", f"--nproc-per-node={processes}"]
            shown = ["torchrun", *options]
            launcher = [sys.executable, "-m", "torch.distributed.run", *options]
        print(shlex.join([*shown, script, *arguments]), flush=True)
        status = run_program([*launcher, str(ROOT / script), *arguments], received)
        if status:
            ending = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise RunError(f"{run.folder}: {script} ended with {ending}; see its error above")

    code = code_digest()
    call(*run.training, "--resume")
    checkpoint = load_checkpoint(find_checkpoint(run.folder))
    done, epochs = checkpoint.position["epoch"], run.config.train.epochs
    if not finished(Position(**checkpoint.position), run.config.train):
        raise RunError(f"{run.folder}: training was stopped after {done} of {epochs} epochs")
    if run.submission:  # eval.py refuses a file that exists, and one of a killed runner may
        run.submission_path.unlink(missing_ok=True)
    call(*run.evaluation)
    metrics = None
    if not run.submission:
        name = f"{run.split}_step_{checkpoint.position['step']:08d}"
        path = run.folder / "predictions" / name / "metrics.json"
        if not path.exists():
            raise RunError(
                f"{run.folder}: the split '{run.split}' has no answers; with `submission: true` in "
                "the table, a file for the evaluation server is written"
            )
        metrics = RunMetrics.model_validate_json(path.read_bytes())
    data = DataCache()
    digests = dict.fromkeys(read() for read in data.inputs(run).values())
    for each in checkpoint.trained_on:
        if not digests.keys() >= {each["content"], *each["stores"].values()}:
            raise RunError(f"{run.folder}: the training data has changed since the run was trained")
    outcome = Outcome(
        split=run.split,
        metrics=metrics,
        dataset=data.prepared(run.config.data.prepared).dataset,
        data=tuple(digests),
        code=tuple(dict.fromkeys([*training_codes(run), code])),
    )
    save_text(run.outcome_path, outcome.model_dump_json(indent=2) + "\n")


def set_aside(runs: Sequence[PlannedRun]) -> list[Path]:
    """Move the folders of runs that other code made to `superseded/`; returns where they are.

    Raises `RunError` if a run is being worked on.
    """
    moved, now = [], time.strftime("%Y%m%d-%H%M%S")
    for run in runs:
        with claim(run) as free:
            # Asked for each run: another command or a row with another split may have moved it.
            if not made_by_other_code([run]):
                continue
            if not free:
                raise RunError(f"{run.folder}: another process works on this run; stop it first")
            moved.append(run.folder.parent / "superseded" / f"{run.folder.name}-{now}")
            moved[-1].parent.mkdir(exist_ok=True)
            run.folder.rename(moved[-1])
    return moved


def submit(
    runs: Sequence[PlannedRun], logs: Path, parameters: Mapping[str, Any], processes: int = 1
) -> list[str]:
    """Submit an array of Slurm jobs with submitit, one for each run; their ids.

    `parameters` are sbatch's (partition, gpus_per_node, ...) or submitit's (timeout_min, ...);
    `logs` receives what jobs print. A job does what `run_all` does, claims included.
    """
    try:
        submitit = import_module("submitit")
    except ImportError:
        raise RunError("--launcher slurm needs submitit: pip install submitit") from None
    try:
        # Its AutoExecutor would want a prefix on sbatch's own parameters.
        executor = submitit.SlurmExecutor(folder=logs)
        sbatch = executor._convert_parameters({"name": "reproduce", **parameters})
        executor.update_parameters(**sbatch)
        jobs = executor.map_array(job, runs, [processes] * len(runs))
    except Exception as error:  # submitit has no exception of its own for what it refuses
        reason = " ".join(str(error).split())
        raise RunError(f"submitit does not take the jobs ({reason})") from error
    return [str(each.job_id) for each in jobs]


def job(run: PlannedRun, processes: int) -> None:
    """What a job does."""
    for failure in run_all([run], processes):
        raise RunError(failure)
