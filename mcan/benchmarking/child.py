"""A measuring process: `python -m mcan.benchmarking.child SPEC`, started by `arms`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from mcan.benchmarking import products, serving, training
from mcan.benchmarking.bench import Bench
from mcan.benchmarking.turns import Spec, Turns
from mcan.config import load_config
from mcan.engine.distributed import ranks
from mcan.errors import command

JOBS: dict[str, Callable[[Spec, Bench, Turns], None]] = {
    "train": training.train,
    "train_baseline": training.train_baseline,
    "evaluate": serving.evaluate,
    "evaluate_baseline": serving.evaluate_baseline,
    "load": serving.load,
    "load_baseline": serving.load_baseline,
    "multiply": products.multiply,
}
"""Each does one repetition of its work per turn."""


def main() -> None:
    spec = Spec.parse(sys.argv[1])
    with ranks(load_config(spec.config, spec.overrides).train.device) as job:
        JOBS[spec.job](spec, Bench.open(spec, job), Turns(job.device))


if __name__ == "__main__":
    command(main)
