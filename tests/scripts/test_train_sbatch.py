"""scripts/train.sbatch with stand-ins for Slurm: what it starts, and when it queues again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import ROOT, assert_same, load, make_lab, outcome

from mcan.engine.checkpoint import last_checkpoint

SCONTROL = """\
#!/bin/bash
echo "$*" >> "$FAKES/scontrol.txt"
[ "$1" = show ] && printf 'localhost\\nnode8\\n'
true
"""
# As Slurm's: SIGTERM to srun itself kills the tasks, here one for each node.
SRUN = """\
#!/bin/bash
trap 'kill -KILL $(cat "$FAKES/tasks.txt"); exit 1' TERM
echo "$*" > "$FAKES/started.txt"
[[ $1 == --* ]] && shift
tasks=
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do "$@" & tasks+=" $!"; done
echo "$tasks" > "$FAKES/tasks.txt"
for task in $tasks; do wait "$task" || status=$?; done
exit "${status:-0}"
"""
SCANCEL = """\
#!/bin/bash
[ "$*" = "--signal=TERM $SLURM_JOB_ID" ] && kill -TERM $(cat "$FAKES/tasks.txt")
"""
TORCHRUN = """\
#!/bin/bash
trap 'sleep 0.3; echo stopped >> "$FAKES/stopped.txt"; exit 1' TERM
{work}
"""
REAL_TORCHRUN = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
NODES = 2
EPOCHS = 60
LONG = 240
"""Seconds that a torchrun may need to start and train on a busy machine."""


@pytest.fixture
def fakes(tmp_path):
    """A folder for the path that holds Slurm's programs."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("scancel", SCANCEL)):
        program(folder, name, text)
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def submit(fakes: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the script as a job on two nodes."""
    jobs = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PATH": f"{fakes}:{os.environ['PATH']}",
            "FAKES": str(fakes),
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": str(40_000 + os.getpid()),
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": str(NODES),
            **more,
        }
        command = ["bash", "scripts/train.sbatch", *arguments]
        jobs.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
        return jobs[-1]

    yield start
    for job in jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGTERM)
            job.wait()


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 3])
def test_a_run_that_ends_is_not_queued_again(submit, fakes, status):
    program(fakes, "torchrun", TORCHRUN.format(work=f"exit {status}"))
    job = submit(
        "a config.yaml",
        "train.epochs=3",
        SLURM_JOB_ID="42",
        SLURM_GPUS_ON_NODE="8",
        SLURM_CPUS_PER_TASK="16",
    )
    assert job.wait(30) == status
    assert (fakes / "started.txt").read_text() == (
        "--cpus-per-task=16 torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d "
        "--rdzv-endpoint localhost:20042 --rdzv-id 42 --shutdown-timeout 240 "
        "train.py a config.yaml train.epochs=3 --resume\n"
    )
    assert "requeue" not in (fakes / "scontrol.txt").read_text()


def test_at_the_time_limit_it_stops_and_queues_again(submit, fakes):
    program(fakes, "torchrun", TORCHRUN.format(work="while true; do sleep 0.05; done"))
    job = submit("config.yaml", SLURM_JOB_ID="42")
    wait_for((fakes / "tasks.txt").exists)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert (fakes / "stopped.txt").read_text() == "stopped\n" * NODES
    assert (fakes / "scontrol.txt").read_text().splitlines()[-1] == "requeue 42"


@pytest.mark.slow
def test_a_run_over_two_jobs_is_that_of_one(submit, fakes, tmp_path):
    """Two real torchruns that meet, are stopped, and go on, to the bits of a run that was not."""
    program(fakes, "torchrun", REAL_TORCHRUN)
    lab = make_lab(tmp_path / "lab", {"train": {"epochs": EPOCHS, "evaluate_every": EPOCHS}})
    here = [f"data.prepared={lab.folder}/prepared", f"data.images=[{lab.folder}/images.h5]"]
    arguments = [f"runs={lab.folder}/runs", *here]
    job = [str(lab.folder / lab.config), "name=cut", *arguments]

    first = submit(*job)
    metrics = lab.run("cut") / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(LONG) == 0
    assert "requeue" in (fakes / "scontrol.txt").read_text()
    assert load(last_checkpoint(lab.run("cut") / "checkpoints"))["position"]["epoch"] < EPOCHS

    assert submit(*job).wait(LONG) == 0
    for result in lab.train_over_ranks(NODES, "whole", *arguments):
        assert result.status == 0, result.err
    assert_same(outcome(lab.run("cut")), outcome(lab.run("whole")))
