"""The rate at which this machine multiplies matrices: the limit that a network is held against."""

from __future__ import annotations

import torch

from mcan.benchmarking.bench import Bench
from mcan.benchmarking.stopwatch import Stopwatch
from mcan.benchmarking.turns import Spec, Turns

SHAPES = ((2048, 2048, 2048), (3520, 512, 2048), (3520, 2048, 512))
"""A large square, and the feed-forward layer of a batch of 64 (rows x in x out)."""

_SECONDS = 0.3


def multiply(spec: Spec, bench: Bench, turns: Turns) -> None:
    """The machine's rate of matrix products (multiply-adds/s) by dtype: the best of some shapes."""
    device = bench.ranks.device
    while True:
        turns.wait()
        rates = {
            name: max(_product_rate(shape, dtype, device) for shape in SHAPES)
            for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
        }
        turns.report(rates=rates)


def _product_rate(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    watch = Stopwatch(device)
    done, seconds, repeats = 0, 0.0, 1
    while seconds < _SECONDS:
        watch.start()
        for _ in range(repeats):
            left @ right
        watch.mark("products")
        done, seconds = repeats, watch.read()["products"]
        repeats *= 2
    return done * rows * inner * columns / seconds
