#!/usr/bin/env python3
"""Measure speed and memory of the main jobs; see `--help`."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mcan.data.synthetic import make_synthetic
from mcan.errors import RunError, command

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure speed and memory on made-up data.")
    commands = parser.add_subparsers(dest="what", required=True)
    startup = commands.add_parser(
        "startup",
        help="time and peak memory from `python train.py` to the end of the first step",
        description="Makes a prepared dataset of the size asked for and starts training on it. The "
        "network is small, so that the figure is start-up and not the first step. A validation "
        "split of a quarter of the questions is opened too; word vectors are not read.",
    )
    startup.add_argument("--questions", type=int, default=440_000)
    startup.add_argument("--images", type=int, default=120_000)
    startup.add_argument("--repeats", type=int, default=3)
    startup.add_argument("--folder", type=Path, help="keep the dataset here and use it again")
    return parser.parse_args()


def main() -> int:
    args = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / "data"
        if not (folder / "prepared").exists():
            make_synthetic(
                folder,
                questions=args.questions,
                images=args.images,
                answers=3129,
                vocabulary=20_000,
                feature_dim=16,
                splits=("train", "val"),
            )
        starts = [start(folder, Path(temporary) / "runs") for _ in range(args.repeats)]
    seconds = [entry["seconds"] for entry in starts]
    report = {
        "what": "startup",
        "questions": args.questions,
        "images": args.images,
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds": seconds,
        "peak_memory_mb": max(entry["peak_memory_mb"] for entry in starts),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    print(json.dumps(report, indent=2))
    return 0


def start(folder: Path, runs: Path) -> dict[str, Any]:
    """Start training, wait for the line of the first step, stop."""
    shutil.rmtree(runs, ignore_errors=True)
    overrides = {
        "data.prepared": folder / "prepared",
        "data.images": f"[{folder / 'images.h5'}]",
        "data.max_tokens": 14,
        "model.hidden_size": 64,
        "model.depth": 1,
        "train.log_every": 1,
        "name": "startup",
        "runs": runs,
    }
    begin = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "train.py"),
            str(ROOT / "configs/_base_/mcan_small.yaml"),
            *(f"{key}={value}" for key, value in overrides.items()),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = runs / "startup" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            assert process.stderr is not None
            raise RunError(f"train.py ended early: {process.stderr.read().strip()[-300:]}")
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return {"seconds": round(seconds, 2), "peak_memory_mb": round(int(peak) / 1024)}


if __name__ == "__main__":
    command(main)
