"""scripts/reproduce.py: tables run to their end through anything that happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import ROOT, at_call, contents, die, program, send
from table_lab import TABLE, TableLab, make_table_lab, until

import mcan.report.write
from mcan.engine.trainer import Trainer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> TableLab:
    """With the table done, uninterrupted, in `runs/reproduce`."""
    lab = make_table_lab(tmp_path_factory.mktemp("tables"))
    result = lab.reproduce()
    assert result.status == 0, result.err
    return lab


def test_the_table_is_done_and_skipped_then(lab):
    assert lab.starts() == [1, 1, 1, 1]
    assert sorted(lab.results()) == ["table.csv", "table.json", "table.md", "table.png"]
    outcomes = [json.loads((run / "outcome_val.json").read_text()) for run in lab.folders()]
    for run, outcome in zip(lab.folders(), outcomes, strict=True):
        (predicted,) = (run / "predictions").iterdir()
        assert outcome["metrics"] == json.loads((predicted / "metrics.json").read_text())
        assert outcome["dataset"] == "synthetic"
        assert [trained["split"] for trained in outcome["trained_on"]] == ["train"]
    before = contents(lab.folder / "runs")
    again = lab.reproduce()
    assert again.status == 0
    assert "train.py" not in again.out
    assert "nothing to run: 4 runs, all done" in again.out.splitlines()
    assert contents(lab.folder / "runs") == before


def test_another_call_leaves_the_table_as_it_is(lab):
    """It has a folder of its own, which it names before it runs, and says what it changed."""
    before = lab.results()
    result = lab.reproduce("--set", "model.hidden_size=4", "--seeds", "0")
    assert result.status == 0, result.err
    assert lab.results() == before
    (folder,) = (lab.folder / "runs/reproduce/tables").glob("table-*")
    named, shared, *_ = result.out.splitlines()
    assert named == f"table: {folder.relative_to(lab.folder)}"
    assert shared == "rows that are one run, since their configs are equal: wide = narrow"
    assert "train.py" not in result.out  # that of the narrow row is done
    text = (folder / "table.md").read_text()
    assert text.splitlines()[2] == "Run with model.hidden_size=4 and seed 0."


@pytest.mark.slow
def test_printed_commands_are_exact(lab):
    """What a runner prints trains the same run when it is typed."""
    result = lab.reproduce("--runs", "typed", "--rows", "narrow", "--seeds", "1")
    line = next(line for line in result.out.splitlines() if line.startswith("python train.py"))
    again = lab.execute("train", line.split()[2:])
    assert again.err == f"{lab.folders('typed')[0].relative_to(lab.folder)}: " + (
        "finished after 2 epochs; nothing to resume\n"
    )


@pytest.mark.slow
def test_a_changed_config_is_a_new_run_and_an_equal_one_is_reused(lab):
    before = len(lab.folders())
    text = TABLE.replace("title: Tiny", "title: Other").replace("name: narrow", "name: thin")
    (lab.folder / "table.yaml").write_text(text)
    assert "train.py" not in lab.reproduce("--output", "other").out
    result = lab.reproduce("--set", "optimizer.lr=0.01", "--seeds", "0", "--output", "faster")
    assert result.status == 0
    (lab.folder / "table.yaml").write_text(TABLE)
    assert len(lab.folders()) == before + 2
    assert all(lab.starts()[i] == 1 for i in range(before + 2))


@pytest.mark.slow
def test_shards_and_rows_show_what_is_there(lab):
    first = lab.reproduce("--runs", "parts", "--seeds", "0", "--shard", "1/2")
    assert first.status == 0
    assert "1 of 1" in first.out
    assert "0 of 1" in first.out
    assert len(lab.folders("parts")) == 1
    rest = lab.reproduce("--runs", "parts", "--seeds", "0", "--rows", "narrow")
    assert rest.status == 0
    assert "0 of 1" not in rest.out
    assert len(lab.folders("parts")) == 2


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

    killed = lab.reproduce("--runs", runs, patch=at_call(Trainer, "_update", 8, kill))
    assert killed.status == (1 if victim == "the training" else -signal.SIGKILL)
    assert lab.reproduce("--runs", runs).status == 0
    assert len(lab.folders(runs)) == 4
    assert lab.results(runs) == lab.results()


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
    slow = at_call(mcan.report.write, "png", 1, dawdle)
    first = lab.start(*args, "--shard", "1/2", patch=slow)
    until(lambda: done() == 1)
    # The first has only to collect now, the second has a whole run to do.
    second = lab.start(*args, "--shard", "2/2", number=1)
    assert [first().status, second().status] == [0, 0]
    assert "2 of 2" in table.read_text()


@pytest.mark.slow
def test_a_run_whose_runner_died_is_waited_for(lab):
    """Its training lives on and keeps its claim; the next runner evaluates it."""
    runs = lab.folder / "orphan"
    release = lab.folder / "release"

    def hold() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        until(release.exists)

    args = ("--runs", "orphan", "--rows", "wide", "--seeds", "0")
    assert lab.reproduce(*args, patch=at_call(Trainer, "_update", 3, hold)).status == -9
    wait = lab.start(*args, number=1)
    printed = lab.folder / "printed_1.out"
    until(lambda: printed.exists() and "waiting for 1 run" in printed.read_text())
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
    ask = at_call(Trainer, "_update", 4, lambda: os.kill(os.getppid(), number))
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
    stopped = lab.reproduce(*args, patch=at_call(Trainer, "_update", 8, send(signal.SIGTERM)))
    assert stopped.status == 1
    (failure,) = [line for line in stopped.err.splitlines() if line.startswith("failed: ")]
    assert failure.endswith("training was stopped after 1 of 2 epochs")
    assert not list((lab.folder / "stopped").glob("*/outcome_*.json"))


def test_failures_do_not_stop_the_others(lab):
    text = TABLE.replace("model.hidden_size=16", "model.image.input=pixels")
    (lab.folder / "table.yaml").write_text(text)
    result = lab.reproduce("--output", "failing")
    failing = lab.reproduce("--output", "none", "--runs", "none", "--rows", "wide")
    (lab.folder / "table.yaml").write_text(TABLE)
    assert result.status == 1
    failed = [line for line in result.err.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in failed] == ["wide, seed 0", "wide, seed 1"]
    assert all(
        line.endswith("train.py ended with exit status 2; it says above why") for line in failed
    )
    assert "model.image.input is pixels" in result.err
    assert "0 of 2" in result.out
    assert "2 of 2" in result.out
    assert failing.status == 1
    assert "nothing written to none: no run of the table is finished" in failing.out
    assert not list((lab.folder / "none").glob("table.*"))


def test_submissions_and_what_the_server_says(lab):
    (lab.folder / "table.yaml").write_text(
        TABLE.replace("split: val", "split: val\nsubmission: true")
    )
    args = ("--runs", "server", "--rows", "wide", "--seeds", "0")
    try:
        assert lab.reproduce(*args).status == 0
        (run,) = lab.folders("server")
        answers = json.loads((run / "submission_val.json").read_text())
        assert len(answers) == 11
        outcome = json.loads((run / "outcome_val.json").read_text())
        assert outcome["metrics"] is None
        assert outcome["submission"] == "submission_val.json"
        filled = lab.reproduce(*args, "--fill", "wide=70.63", "wide:yes/no=86.82")
        assert filled.status == 0
        assert "train.py" not in filled.out
        assert "70.63" in filled.out
        kept = json.loads((run / "server_val.json").read_text())
        assert kept == {"overall": 70.63, "yes/no": 86.82}
        assert "86.82" in lab.reproduce(*args, "--output", "elsewhere").out
        changed = lab.reproduce(*args, "--set", "optimizer.lr=0.01", "--fill", "wide=71")
        (error,) = changed.errors()
        assert "(wide, seed 0) is not done; give --set, --seeds and --runs as" in error
        dry = lab.reproduce(*args, "--fill", "wide=71", "--dry-run")
        assert (dry.status, dry.out) == (2, "")
        assert dry.err.endswith("error: --fill writes figures; leave --dry-run out\n")
        assert json.loads((run / "server_val.json").read_text()) == kept
    finally:
        (lab.folder / "table.yaml").write_text(TABLE)


@pytest.mark.slow
def test_another_base_is_evaluated_on_its_own_split(lab):
    base = (lab.folder / "config.yaml").read_text()
    (lab.folder / "small.yaml").write_text(base.replace("name: small", "name: other"))
    args = ("--base", "small.yaml", "--rows", "narrow", "--seeds", "0")
    result = lab.reproduce(*args, "--set", "data.evaluate=train")
    assert result.status == 0
    (run,) = (lab.folder / "runs/reproduce").glob("other-*")
    assert (run / "outcome_train.json").exists()
    (table,) = (lab.folder / "runs/reproduce/tables").glob("table_other-*/table.md")
    assert "Run on small.yaml with data.evaluate=train and seed 0." in table.read_text()


@pytest.mark.slow
def test_as_a_user_starts_it(tmp_path):
    """In programs of their own; the second time killed in the middle."""
    lab = make_table_lab(tmp_path, TABLE.replace("seeds: [0, 1]", "seeds: [0]"))
    reproduce = [sys.executable, str(ROOT / "scripts/reproduce.py"), "table.yaml"]
    alone = program(*reproduce, cwd=lab.folder)
    assert alone.status == 0, alone.err
    killed = [*reproduce, "--runs", "killed"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    with subprocess.Popen(killed, cwd=lab.folder, env=env, stdout=subprocess.DEVNULL) as runner:
        until(lambda: len(list((lab.folder / "killed").glob("*/metrics.jsonl"))) == 2, 300)
        runner.kill()
    continued = program(*killed, cwd=lab.folder)
    assert continued.status == 0, continued.err
    assert lab.results("killed") == lab.results()


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    lab = make_table_lab(tmp_path)
    reproduce = [sys.executable, str(ROOT / "scripts/reproduce.py"), "table.yaml", "--seeds", "0"]
    done = program(*reproduce, "--nproc", "2", "--rows", "narrow", cwd=lab.folder)
    assert done.status == 0, done.err
    assert "torchrun --standalone --nproc-per-node=2 train.py" in done.out
    assert lab.starts() == [1]
