"""Sampling order: which questions make up each batch, and which part of it each process takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mcan.errors import DataError


@dataclass(frozen=True)
class BatchSampler:
    """The micro-batches of one process in one epoch, as lists of dataset rows.

    The order of the `size` questions is a function of `seed` and `epoch`. A batch is `batch_size`
    questions over all processes; the last may be smaller, or is left out with `drop_last`. It is
    cut into `world` · `accumulation` contiguous pieces, whose sizes differ by one at most; process
    `rank` yields its `accumulation` pieces in order. A piece of a small last batch may be empty.
    Iteration begins at batch `start`: what follows equals the tail of an iteration from 0.

    Raises `DataError` if `size` questions do not make one batch.
    """

    size: int
    batch_size: int
    seed: int
    epoch: int
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    accumulation: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if self.batches == 0:
            raise DataError(
                f"{self.size} questions make no whole batch of {self.batch_size}; lower batch_size "
                "or do not drop the last batch"
            )

    @property
    def batches(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        return (self.batches - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        # Mixed, because torch's generator uses 32 bits of a seed, and seed + epoch would repeat.
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(int(mixed[0])))
        pieces, last = self.world * self.accumulation, self.batches * self.batch_size
        for first in range(self.start * self.batch_size, min(self.size, last), self.batch_size):
            batch = order[first : first + self.batch_size]
            for piece in range(self.rank * self.accumulation, (self.rank + 1) * self.accumulation):
                begin, end = (cut * len(batch) // pieces for cut in (piece, piece + 1))
                yield batch[begin:end].tolist()


def evaluation_batches(
    rows: NDArray[np.int64],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    equal_sizes: bool = False,
) -> list[list[int]]:
    """Batches of `batch_size` neighbours in `rows`, dealt to `world` processes in turn.

    Every row occurs once over all processes. With `equal_sizes`, the last row is repeated until the
    last batch is as large as the others.
    """
    firsts = range(rank * batch_size, len(rows), world * batch_size)
    batches = [rows[first : first + batch_size].tolist() for first in firsts]
    if batches and equal_sizes:
        batches[-1] += batches[-1][-1:] * (batch_size - len(batches[-1]))
    return batches
