"""scripts/train.sbatch with stand-ins for Slurm: what it starts, and when it queues again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import ROOT

SCONTROL = """\
#!/bin/bash
echo "$*" >> scontrol.txt
[ "$1" = show ] && printf 'node7\\nnode8\\n'
true
"""
SRUN = """\
#!/bin/bash
trap 'sleep 0.3; echo stopped > stopped.txt; exit 0' TERM
echo "$*" > started.txt
{work}
"""


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Start the script; `work` is what the training does."""

    def start(work: str) -> subprocess.Popen[str]:
        for name, text in (("scontrol", SCONTROL), ("srun", SRUN.format(work=work))):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
        }
        command = ["bash", str(ROOT / "scripts/train.sbatch"), "a config.yaml", "train.epochs=3"]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True)

    monkeypatch.chdir(tmp_path)
    return start


@pytest.mark.parametrize("status", [0, 3])
def test_a_run_that_ends_is_not_queued_again(submit, status):
    assert submit(f"exit {status}").wait(30) == status
    assert Path("started.txt").read_text() == (
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint node7:29500 "
        "--rdzv-id 42 train.py a config.yaml train.epochs=3 --resume\n"
    )
    assert "requeue" not in Path("scontrol.txt").read_text()


def test_at_the_time_limit_it_stops_and_queues_again(submit):
    job = submit("while true; do sleep 0.05; done")
    deadline = time.monotonic() + 20
    while not Path("started.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert Path("stopped.txt").exists()
    assert Path("scontrol.txt").read_text().splitlines()[-1] == "requeue 42"
