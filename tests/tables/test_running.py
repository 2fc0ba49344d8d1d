"""Signals, claims and cluster jobs: each signal reaches the child once, each run has one owner.

Outcomes, and what runs need: damage and changes are reported in one line.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from made import Made, make, outcome, row
from runs import entry_point
from table_lab import REPRODUCE, Forked, make_table_lab

import mcan.tables.writing
from mcan.engine.processes import on_signals
from mcan.engine.run_folder import code_digest
from mcan.errors import DataError, RunError
from mcan.preparation.synthetic import make_synthetic
from mcan.tables import running
from mcan.tables.planning import CommandOptions, PlannedRun, load_table, plan

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

    monkeypatch.setattr(running, "Popen", start)
    before = signal.getsignal(INT)
    received: list[int] = []
    with on_signals((INT, TERM), lambda number, _: received.append(number)):
        with pytest.raises(running.RunnerStopped) as stop:
            running.run_program(["program"], received)
        with pytest.raises(running.RunnerStopped):
            running.run_program(["another"], received)
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
    monkeypatch.setattr(running, "Popen", Forked)
    monkeypatch.setattr(mcan.tables.writing, "write_figures", lambda *_: None)
    return lab


def test_one_claim_at_a_time(lab):
    run, other, *_ = plan(load_table("table.yaml"), CommandOptions())
    with running.claim(run) as first, running.claim(run) as second, running.claim(other) as third:
        assert (first, second, third) == (True, False, True)
    assert not run.folder.exists()
    # A training whose runner was killed keeps its run, as train.py holds this lock.
    run.folder.mkdir(parents=True)
    with FileLock(run.folder / ".lock"), running.claim(run) as free:
        assert not free
    with running.claim(run) as free:
        assert free


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks(lab, monkeypatch, capsys, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with running.claim(plan(load_table("table.yaml"), CommandOptions())[0]) as free:
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
        running.job(run, 1)


def test_errors_of_submitit(lab, submitit, monkeypatch):
    with pytest.raises(RunError, match=r"\(Unavailable parameter.*'partitoin'\] Valid"):
        running.submit([], lab.folder, {"partitoin": "gpu"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match="needs submitit: pip install submitit"):
        running.submit([], lab.folder, {})


def test_runs_of_other_code_are_moved_and_never_lost(lab):
    run, *_ = plan(load_table("table.yaml"), CommandOptions())
    run.folder.mkdir(parents=True)
    (run.folder / "environment.jsonl").write_text('{"code": "other"}')
    with running.claim(run), pytest.raises(RunError, match="another process works on this run"):
        running.set_aside([run])
    (moved,) = running.set_aside([run, run])
    assert not run.folder.exists()
    assert moved.parent == run.folder.parent / "superseded"
    assert moved.name.startswith(f"{run.folder.name}-")
    assert (moved / "environment.jsonl").exists()
    with running.claim(run):  # another process does it again by now
        assert running.set_aside([run]) == []


@pytest.fixture
def run(tmp_path) -> PlannedRun:
    made = make(tmp_path, [row("a", 1)], seeds=[0])
    made.finish("a", 0, 60.0, {"yes/no": 80.5, "": 3.0})
    return made.run("a")


def test_runs_of_other_code(run):
    """Finished runs, and those that were only started."""
    assert running.made_by_other_code([run, run]) == []
    other = outcome(60.0).model_copy(update={"code": (code_digest(), "other")})
    run.outcome_path.write_text(other.model_dump_json())
    assert running.made_by_other_code([run, run]) == [run]
    run.outcome_path.unlink()
    assert running.made_by_other_code([run]) == []
    for code, found in ((code_digest(), []), ("other", [run])):
        (run.folder / "environment.jsonl").write_text(json.dumps({"code": code}))
        assert running.made_by_other_code([run]) == found


@pytest.mark.parametrize(
    "text", ["[]", "", "{", "[" * 100_000, '{"split": "val"}', '{"metrics": {"overall": "60"}}']
)
def test_damage_is_reported(run, text):
    run.outcome_path.write_text(text)
    with pytest.raises(RunError) as caught:
        running.read_outcome(run)
    reason = "not as reproduce.py wrote it; remove the file to evaluate again"
    assert str(caught.value) == f"{run.outcome_path}: {reason}"


@pytest.fixture
def data(tmp_path, monkeypatch) -> Made:
    """Two rows on synthetic data."""
    monkeypatch.chdir(tmp_path)
    make_synthetic(tmp_path / "made", questions=12, images=4)
    made = make(Path(), [row("a", 1), row("b", 2)], seeds=[0])
    data = {"prepared": "made/prepared", "images": ["made/images.h5"]}
    Path("base.yaml").write_text(yaml.safe_dump({"name": "base", "data": data}))
    return made


def problems(made: Made, *overrides: str) -> str:
    runs = plan(made.table, CommandOptions(overrides=overrides))
    try:
        running.refuse_problems(runs, running.DataCache())
    except DataError as error:
        return str(error)
    return ""


def test_everything_that_is_missing_is_reported_once(data):
    assert problems(data) == ""
    absent = ["data.prepared=no", "data.images=[no.h5]", "model.question.word_vectors.path=no.txt"]
    found = problems(data, *absent)
    for name in ("no: no prepared", "no.h5", "'no.txt'"):
        assert found.count(name) == 1
    known = "; there is train, val"
    assert problems(data, "data.train=[train, vg]", "data.evaluate=tset") == (
        f"made/prepared: there is no split 'vg'{known}; "
        f"made/prepared: there is no split 'tset'{known}"
    )


def test_the_preview_has_states_and_costs(data):
    data.finish("a", 0, 60.0)
    runs = plan(data.table, CommandOptions(seeds=(0, 1), runs=Path("runs")))
    runs[1].folder.mkdir()
    (runs[1].folder / "config.yaml").touch()
    runs.append(replace(runs[2]))  # a row of an equal config
    lines = "\n".join(running.preview(runs, running.DataCache())).splitlines()
    assert lines[1:3] == ["a", "  base.yaml model.depth=1 -> val"]
    states = [line.split(maxsplit=3)[2] for line in lines if line.startswith("  seed")]
    assert states == ["done", "partly", "new", "new", "shared"]
    assert all("13 x 12 questions" in line for line in lines if line.startswith("  seed"))
    assert lines[-1] == "runs: 1 done, 1 partly, 2 new"
    absent = plan(data.table, CommandOptions(overrides=("data.prepared=no",)))
    assert sum("cost unknown" in line for line in running.preview(absent, running.DataCache())) == 2
