"""scripts/reproduce.py: tables run to their end through anything that happens on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from runs import FORK, ROOT, Result, at_call, contents, die, make_lab, program, send
from table_lab import TABLE, TableLab, make_table_lab, until

import mcan.tables.running
import mcan.tables.writing
from mcan.engine.run_folder import code_digest
from mcan.engine.trainer import Trainer
from mcan.files import lock_file
from mcan.preparation.synthetic import make_synthetic


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> TableLab:
    """With the table done, uninterrupted, in `runs/reproduce`."""
    lab = make_table_lab(tmp_path_factory.mktemp("tables"))
    result = lab.reproduce()
    assert result.status == 0, result.err
    return lab


def test_the_table_is_done_and_skipped_then(lab):
    assert lab.starts() == [1, 1, 1, 1]
    names = [f"table.{kind}" for kind in ("csv", "json", "md", "tex")]
    assert sorted(lab.results()) == names
    outcomes = [json.loads((run / "outcome_val.json").read_text()) for run in lab.folders()]
    for run, outcome in zip(lab.folders(), outcomes, strict=True):
        (predicted,) = (run / "predictions").iterdir()
        assert outcome["metrics"] == json.loads((predicted / "metrics.json").read_text())
        assert outcome["dataset"] == "synthetic"
        assert outcome["code"] == [code_digest()]
        assert len(outcome["data"]) == 3  # train, val and the image store
    before = contents(lab.folder / "runs")
    again = lab.reproduce()
    assert again.status == 0
    assert "train.py" not in again.out
    assert "nothing to run: all are done" in again.out.splitlines()
    assert contents(lab.folder / "runs") == before


def test_another_call_leaves_the_table_as_it_is(lab):
    """It has a folder of its own, which it names before it runs, and says what it changed."""
    before = lab.results()
    changes = ("--set", "model.hidden_size=4", "--seeds", "0")
    dry = lab.reproduce(*changes, "--dry-run", "--shard", "1/2").out.splitlines()
    assert dry[0] == "Tiny: table.yaml --set model.hidden_size=4 --seeds 0"
    assert "runs: 1 done, 0 partly, 0 new" in dry
    result = lab.reproduce(*changes)
    assert result.status == 0, result.err
    assert lab.results() == before
    (folder,) = (lab.folder / "runs/reproduce/tables").glob("table-*")
    assert result.out.splitlines()[0] == f"table: {folder.relative_to(lab.folder)}" == dry[-1]
    assert "train.py" not in result.out  # that of the narrow row is done
    text = (folder / "table.md").read_text()
    assert text.splitlines()[2] == "Run with --set model.hidden_size=4 --seeds 0"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["the runner", "the training", "both"])
def test_killed_and_started_again(lab, victim):
    """Killed in the third run: it ends with the same bytes as if it had not been."""
    runs = f"killed_{victim.split()[-1]}"

    def kill() -> None:
        if len(list((lab.folder / runs).glob("*/outcome_val.json"))) != 2:
            return
        if victim != "the training":
            os.kill(os.getppid(), signal.SIGKILL)
        if victim != "the runner":
            die()

    killed = lab.reproduce("--runs", runs, patch=at_call(Trainer, "update", 8, kill))
    assert killed.status == (1 if victim == "the training" else -signal.SIGKILL)
    assert lab.reproduce("--runs", runs).status == 0
    assert len(lab.folders(runs)) == 4
    assert lab.results(runs) == lab.results()


def test_a_run_that_another_process_has_just_started_is_waited_for(lab):
    """As the training of a killed runner may do, which had no lock when the run was claimed."""

    def hold(lock: Path) -> None:
        held = lock_file(lock)
        time.sleep(1)
        assert held is not None

    def start() -> None:
        (claimed,) = (lab.folder / "just/.claims").iterdir()
        lock = lab.folder / "just" / claimed.name / ".lock"
        lock.parent.mkdir()
        FORK.Process(target=hold, args=(lock,)).start()
        until(lock.exists)

    patch = at_call(mcan.tables.running, "run_program", 1, start)
    result = lab.reproduce("--runs", "just", "--rows", "wide", "--seeds", "0", patch=patch)
    assert result.status == 0, result.err
    assert result.err.count("another process is training this run") == 1
    assert "waiting for other processes: wide, seed 0" in result.out


def test_two_runners_on_one_folder(lab):
    """Each run is done once, by one of them; both write the same table."""
    waits = [
        lab.start("--runs", "shared", "--output", f"by_{number}", number=number)
        for number in range(2)
    ]
    results = [wait() for wait in waits]
    assert [result.status for result in results] == [0, 0]
    assert lab.starts("shared") == [1, 1, 1, 1]
    trained = [result.out.count("python train.py") for result in results]
    assert sum(trained) == 4
    assert min(trained) >= 1
    first, second = (contents(lab.folder / f"by_{number}") for number in range(2))
    assert first == second


def test_shards_that_end_together(lab):
    """One that collected before the other's last run was done does not write after it."""
    outcomes, table = lab.folder / "together", lab.folder / "together/tables/table/table.md"

    def done() -> int:
        return len(list(outcomes.glob("*/outcome_val.json")))

    def dawdle() -> None:
        """Between collecting and writing, until the other has written, or waits to collect."""
        until(lambda: done() == 2)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and not table.exists():
            time.sleep(0.01)

    args = ("--runs", "together", "--rows", "narrow")
    slow = at_call(mcan.tables.writing, "markdown", 1, dawdle)
    first = lab.start(*args, "--shard", "1/2", patch=slow)
    until(lambda: done() == 1)
    # The first has only to collect now, the second has a whole run to do.
    second = lab.start(*args, "--shard", "2/2", number=1)
    assert [first().status, second().status] == [0, 0]
    assert "2 of 2" in table.read_text()


@pytest.mark.slow
def test_a_run_whose_runner_died_is_waited_for(lab):
    """Its training lives on and holds the run's folder; the next runner evaluates it."""
    runs = lab.folder / "orphan"
    release = lab.folder / "release"

    def hold() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        until(release.exists)

    args = ("--runs", "orphan", "--rows", "wide", "--seeds", "0")
    assert lab.reproduce(*args, patch=at_call(Trainer, "update", 3, hold)).status == -9
    wait = lab.start(*args, number=1)
    printed = lab.folder / "printed_1.out"
    until(
        lambda: (
            printed.exists() and "waiting for other processes: wide, seed 0" in printed.read_text()
        )
    )
    assert not list(runs.glob("*/outcome_val.json"))
    release.touch()
    assert wait().status == 0
    assert lab.starts("orphan") == [1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(lab, number):
    """The signal reaches the training, which writes a checkpoint; the next command goes on."""
    runs = f"signal_{number}"
    args = ("--runs", runs, "--rows", "narrow", "--seeds", "0")
    ask = at_call(Trainer, "update", 4, lambda: os.kill(os.getppid(), number))
    stopped = lab.reproduce(*args, patch=ask)
    assert stopped.status == 128 + number
    assert stopped.err.splitlines()[-1] == (
        f"stopped by {number.name}; continue: python scripts/reproduce.py table.yaml "
        f"--runs {runs} --rows narrow --seeds 0"
    )
    (run,) = lab.folders(runs)
    assert list((run / "checkpoints").glob("step_*.pt"))
    assert not (run / "outcome_val.json").exists()
    assert lab.reproduce(*args).status == 0
    assert lab.starts(runs) == [2]


@pytest.mark.slow
def test_a_training_that_is_stopped_is_not_evaluated(lab):
    """train.py ends with status 0 where SIGTERM reaches it alone."""
    args = ("--runs", "stopped", "--rows", "narrow", "--seeds", "0")
    stopped = lab.reproduce(*args, patch=at_call(Trainer, "update", 8, send(signal.SIGTERM)))
    assert stopped.status == 1
    (failure,) = [line for line in stopped.err.splitlines() if line.startswith("failed: ")]
    assert failure.endswith("training was stopped after 1 of 2 epochs")
    assert not list((lab.folder / "stopped").glob("*/outcome_*.json"))


def test_failures_do_not_stop_the_others(lab):
    table = TABLE.replace("model.hidden_size=16", "model.image.input=pixels")
    result = lab.reproduce("--output", "failing", table=table)
    assert result.status == 1
    failed = [line for line in result.err.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in failed] == ["wide, seed 0", "wide, seed 1"]
    assert all(line.endswith("exit status 2; see its error above") for line in failed)
    assert "model.image.input is pixels" in result.err
    assert "0 of 2" in result.out
    assert "2 of 2" in result.out


def test_submissions_and_the_servers_scores(lab):
    args = ("--runs", "server", "--rows", "wide", "--seeds", "0")

    def reproduce(*more: str) -> Result:
        table = TABLE.replace("split: val", "split: val\nsubmission: true")
        return lab.reproduce(*args, *more, table=table)

    assert reproduce().status == 0
    (run,) = lab.folders("server")
    assert len(json.loads((run / "submission_val.json").read_text())) == 11
    assert json.loads((run / "outcome_val.json").read_text())["metrics"] is None
    filled = reproduce("--fill", "wide=70.63", "wide:yes/no=86.82")
    assert filled.status == 0
    assert "train.py" not in filled.out
    assert "70.63" in filled.out
    assert "86.82" in reproduce("--output", "elsewhere").out
    (error,) = reproduce("--set", "optimizer.lr=0.01", "--fill", "wide=71").errors()
    assert "(wide, seed 0) is not finished; give --set, --seeds and --runs as" in error
    kept = json.loads((run / "server_val.json").read_text())
    assert kept == {"overall": 70.63, "yes/no": 86.82}


def test_trials_on_part_of_the_data_say_so(lab):
    limited = ("data.limit=9", "train.max_steps=4")
    result = lab.reproduce("--runs", "trial", "--seeds", "0", "--set", *limited, "--rows", "wide")
    assert result.status == 0, result.err
    assert "1 of 1" in result.out
    assert "(9 questions)" in result.out
    for limit in limited:
        assert f"- Limited by {limit}: wide." in result.out
    (run,) = lab.folders("trial")
    assert (run / "checkpoints/step_00000004.pt").exists()
    compared = lab.execute("scripts/compare", [str(run), str(run)])
    assert re.search(r"overall +9 ", compared.out)


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (("model.hidden_size=16", "data.prepared=no"), (), "error: no: no prepared dataset"),
        (("split: val", "split: vla"), (), "error: prepared: there is no split 'vla'; there is"),
        (("", ""), ("--output", "table.yaml"), "error: [Errno 17] File exists: 'table.yaml'"),
        (("", ""), ("--output", "table.yaml/a"), "error: [Errno 20] Not a directory: 'table.yaml/"),
    ],
)
def test_what_would_fail_is_reported_before_any_run(lab, change, args, message):
    result = lab.reproduce("--runs", "refused", *args, table=TABLE.replace(*change))
    assert result.status == 2
    (error,) = result.errors()
    assert error.startswith(message)
    assert not (lab.folder / "refused").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("prepared", "the split 'train' of prepared is not what it was when"),
        ("images.h5", "the image store images.h5 is not what it was when"),
    ],
)
def test_changed_data_is_reported(tmp_path, file, message):
    """The same data elsewhere is accepted."""
    lab = make_table_lab(tmp_path)
    args = ("--rows", "narrow", "--seeds", "0")
    assert lab.reproduce(*args).status == 0
    before = contents(lab.folder / "runs")
    make_synthetic(tmp_path / "new", questions=44, images=10, feature_dim=6, seed=1)
    (tmp_path / file).rename(tmp_path / "moved")
    moved = "data.prepared=moved" if file == "prepared" else "data.images=[moved]"
    assert lab.reproduce(*args, "--set", moved, "--output", "o").status == 0
    (tmp_path / "new" / file).rename(tmp_path / file)
    result = lab.reproduce(*args)
    assert result.status == 2
    (error,) = result.errors()
    assert f"(narrow, seed 0): {message}" in error
    assert contents(lab.folder / "runs") == before


@pytest.mark.slow
def test_a_row_that_starts_from_a_run_on_other_data(tmp_path):
    """Which is not the row's own data; another source of the same path would be noticed."""
    lab = make_table_lab(tmp_path)
    make_lab(tmp_path / "elsewhere", questions=20, seed=5)
    other = ["data.prepared=elsewhere/prepared", "data.images=[elsewhere/images.h5]"]
    assert lab.train("source", "train.epochs=1", *other).status == 0
    start = ("--seeds", "0", "--set", "train.init_from={checkpoint: runs/source, partial: true}")
    result = lab.reproduce(*start)
    assert result.status == 0, result.err
    (folder,) = (tmp_path / "runs/reproduce/tables").glob("table-*")
    assert "1 of 1" in (folder / "table.md").read_text()
    shutil.rmtree(lab.run("source"))
    assert lab.train("source", "train.epochs=1", "seed=8", *other).status == 0
    assert "the checkpoint runs/source is not what it was" in lab.reproduce(*start).err


def test_runs_of_other_code_are_named_and_run_again(tmp_path):
    lab = make_table_lab(tmp_path)
    args = ("--rows", "narrow")
    assert lab.reproduce(*args).status == 0
    old, _ = lab.folders()
    outcome = json.loads((old / "outcome_val.json").read_text())
    (old / "outcome_val.json").write_text(json.dumps({**outcome, "code": ["other"]}))
    named = lab.reproduce(*args)
    where = old.relative_to(lab.folder)
    assert f"code, run again with --rerun-changed: {where} (narrow, seed " in named.out
    assert "nothing to run: all are done" in named.out.splitlines()
    again = lab.reproduce(*args, "--rerun-changed")
    assert again.status == 0, again.err
    (moved,) = (old.parent / "superseded").iterdir()
    assert f"moved to {moved.relative_to(lab.folder)}" in again.out.splitlines()
    assert again.out.count("python train.py") == 1
    assert (moved / "outcome_val.json").exists()
    assert lab.starts() == [1, 1]
    assert "other code" not in lab.reproduce(*args).out


@pytest.mark.slow
def test_as_a_user_starts_it(tmp_path):
    """In programs of their own, under torchrun."""
    lab = make_table_lab(tmp_path)
    script = str(ROOT / "scripts/reproduce.py")
    reproduce = [sys.executable, script, "table.yaml", "--seeds", "0"]
    done = program(*reproduce, "--nproc", "2", "--rows", "narrow", cwd=lab.folder)
    assert done.status == 0, done.err
    assert "1 of 1" in done.out
    assert "torchrun --standalone --nproc-per-node=2 train.py" in done.out
    assert lab.starts() == [1]
