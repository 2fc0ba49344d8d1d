"""Signals, claims and cluster jobs: each signal reaches the child once, each run has one owner."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from runs import entry_point
from table_lab import REPRODUCE, Forked, make_table_lab

import mcan.tables.running
import mcan.tables.writing
from mcan.errors import RunError
from mcan.tables.planning import CommandOptions, plan
from mcan.tables.running import (
    RunnerStopped,
    claim,
    job,
    run_program,
    set_aside,
    stop_signals,
    submit,
)
from mcan.tables.spec import load_table

INT, TERM = signal.SIGINT, signal.SIGTERM


class Recorder:
    """A program that notes the signals sent to it; `early` and `late` reach the runner while it
    starts the program and while it waits for it.
    """

    def __init__(self, early: list[int], late: list[int]) -> None:
        self.received: list[int] = []
        self._late = list(late)
        for number in early:
            signal.raise_signal(number)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send_signal(self, number: int) -> None:
        self.received.append(number)

    def poll(self) -> int | None:
        if self._late:
            signal.raise_signal(self._late.pop(0))
            return None
        return 0


@pytest.mark.parametrize(
    ("early", "late"),
    [([], [INT]), ([INT], [INT]), ([INT, TERM], [TERM]), ([], [TERM, INT]), ([TERM], [INT, INT])],
)
def test_each_signal_reaches_the_child_once(monkeypatch, early, late):
    """A second one is an order to stop at once: one that is lost or doubled does harm."""
    program = []

    def start(*_: object, **options: object) -> Recorder:
        assert options == {"start_new_session": True}
        program.append(Recorder(early, late))
        return program[0]

    monkeypatch.setattr(mcan.tables.running, "Popen", start)
    before = signal.getsignal(INT)
    with stop_signals() as received:
        with pytest.raises(RunnerStopped) as stop:
            run_program(["program"], received)
        with pytest.raises(RunnerStopped):
            run_program(["another"], received)
    assert len(program) == 1
    assert program[0].received == [*early, *late]
    assert stop.value.exit_status == 128 + late[-1]
    assert signal.getsignal(INT) is before


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Two rows with two seeds; programs run in forks."""
    lab = make_table_lab(tmp_path)
    monkeypatch.chdir(lab.folder)
    for script in ("train", "eval"):
        entry_point(script)
    monkeypatch.setattr(mcan.tables.running, "Popen", Forked)
    monkeypatch.setattr(mcan.tables.writing, "write_figures", lambda *_: None)
    return lab


def test_one_claim_at_a_time(lab):
    run, other, *_ = plan(load_table("table.yaml"), CommandOptions())
    with claim(run) as first, claim(run) as second, claim(other) as third:
        assert (first, second, third) == (True, False, True)
    assert not run.folder.exists()
    # A training whose runner was killed keeps its run, as train.py holds this lock.
    run.folder.mkdir(parents=True)
    with FileLock(run.folder / ".lock"), claim(run) as free:
        assert not free
    with claim(run) as free:
        assert free


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(lab, monkeypatch, capsys, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with claim(plan(load_table("table.yaml"), CommandOptions())[0]) as free:
        assert free
    assert "this file system has no locks" in capsys.readouterr().err


class Executor:
    """Of a fake submitit: jobs are pickled, as submitit does, and run at once."""

    made: list = []  # noqa: RUF012

    def __init__(self, folder):
        self.folder = folder
        self.made.append(self)

    def _convert_parameters(self, parameters):
        names = {"name": "job_name", "timeout_min": "time"}
        return {names.get(key, key): value for key, value in parameters.items()}

    def update_parameters(self, **parameters):
        if "partitoin" in parameters:
            raise ValueError("Unavailable parameter(s): ['partitoin']\nValid parameters are:")
        self.parameters = parameters

    def map_array(self, function, *arguments):
        calls = [pickle.dumps((function, each)) for each in zip(*arguments, strict=True)]
        for call in calls:
            run, each = pickle.loads(call)
            run(*each)
        return [SimpleNamespace(job_id=f"17_{number}") for number in range(len(calls))]


@pytest.fixture
def submitit(monkeypatch):
    Executor.made.clear()
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Executor))
    return Executor


def test_the_table_as_jobs(lab, submitit, capfd):
    main = entry_point(REPRODUCE).main
    args = ["table.yaml", "--rows", "narrow", "--launcher", "slurm"]
    assert main([*args, "--slurm", "partition=gpu", "gpus_per_node=1", "timeout_min=600"]) == 0
    (executor,) = submitit.made
    assert executor.folder == Path("runs/reproduce/.slurm")
    own = {"partition": "gpu", "gpus_per_node": 1, "time": 600}
    assert executor.parameters == {"job_name": "reproduce", **own}
    assert "submitted: 17_0, 17_1;" in capfd.readouterr().out
    assert lab.starts() == [1, 1]
    assert main(args[:3]) == 0
    printed = capfd.readouterr().out
    assert "train.py" not in printed
    assert "2 of 2" in printed
    assert main(args) == 0
    assert len(submitit.made) == 1


def test_a_job_fails_if_its_run_does(lab):
    run, *_ = plan(load_table("table.yaml"), CommandOptions(overrides=("data.prepared=no",)))
    with pytest.raises(RunError, match=r"wide, seed 0: .* train\.py ended with exit status 2"):
        job(run, 1)


def test_errors_of_submitit(lab, submitit, monkeypatch):
    with pytest.raises(RunError, match=r"\(Unavailable parameter.*'partitoin'\] Valid"):
        submit([], lab.folder, {"partitoin": "gpu"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match="needs submitit: pip install submitit"):
        submit([], lab.folder, {})


def test_runs_of_other_code_are_moved_and_never_lost(lab):
    run, *_ = plan(load_table("table.yaml"), CommandOptions())
    run.folder.mkdir(parents=True)
    (run.folder / "environment.jsonl").write_text('{"code": "other"}')
    with claim(run), pytest.raises(RunError, match="another process works on this run"):
        set_aside([run])
    (moved,) = set_aside([run, run])
    assert not run.folder.exists()
    assert moved.parent == run.folder.parent / "superseded"
    assert moved.name.startswith(f"{run.folder.name}-")
    assert (moved / "environment.jsonl").exists()
    with claim(run):  # another process does it again by now
        assert set_aside([run]) == []
