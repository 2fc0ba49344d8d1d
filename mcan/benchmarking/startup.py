"""From `python train.py` to the end of the first step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcan.benchmarking.stopwatch import peak_memory
from mcan.data.synthetic import make_synthetic
from mcan.errors import RunError

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def measure_startup(
    folder: Path, config: str, questions: int, images: int, threads: int, repeats: int
) -> list[dict[str, float]]:
    """Seconds and peak bytes of `repeats` starts on data in `folder`, made where it is missing.

    The network is small, so that the time is start-up and not the first step. A validation split of
    a quarter of the questions is opened too; word vectors are not read.
    """
    if not (folder / "prepared").exists():
        make_synthetic(
            folder,
            questions=questions,
            images=images,
            answers=3129,
            vocabulary=20_000,
            feature_dim=16,
            splits=("train", "val"),
        )
    overrides = {
        "data.prepared": folder / "prepared",
        "data.images": f"[{folder / 'images.h5'}]",
        "data.max_tokens": 14,
        "model.hidden_size": 64,
        "model.depth": 1,
        "train.log_every": 1,
        "name": "startup",
    }
    command = [sys.executable, str(TRAIN), config]
    command += [f"{key}={value}" for key, value in overrides.items()]
    with tempfile.TemporaryDirectory() as runs:
        return [_start([*command, f"runs={runs}"], Path(runs), threads) for _ in range(repeats)]


def _start(command: list[str], runs: Path, threads: int) -> dict[str, Any]:
    """Start training, wait for the line of the first step, stop."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        metrics = runs / "startup" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                assert process.stderr is not None
                *_, last = ["it said nothing", *process.stderr.read().splitlines()]
                raise RunError(f"train.py ended early: {last.removeprefix('error: ')}")
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "peak_memory": peak_memory(process.pid)}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        shutil.rmtree(runs / "startup", ignore_errors=True)
