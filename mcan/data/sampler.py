"""Which questions come when: an order that follows from (seed, epoch), cut over processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mcan.errors import DataError


class BatchSampler(Sampler[list[int]]):
    """The micro-batches of one process in one epoch, as lists of dataset rows.

    A batch is `batch_size` questions over all processes; the last may be smaller, or is left out
    with `drop_last`. It is cut into `world` · `accumulation` contiguous pieces, whose sizes differ
    by one at most; process `rank` yields its `accumulation` pieces in order. A piece of a
    small last batch may be empty. Iteration begins at batch `start`: what follows equals the tail
    of an iteration from 0.

    Raises `DataError` where `size` questions do not make one batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        start: int = 0,
    ) -> None:
        self.batches = size // batch_size if drop_last else -(-size // batch_size)
        """Batches of a whole epoch."""
        if self.batches == 0:
            raise DataError(
                f"{size} questions make no whole batch of {batch_size}; lower batch_size or do not "
                "drop the last batch"
            )
        self._size = size
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch
        self._shuffle = shuffle
        self._rank = rank
        self._world = world
        self._accumulation = accumulation
        self._start = start

    def __len__(self) -> int:
        return (self.batches - self._start) * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        pieces = self._world * self._accumulation
        own = range(self._rank * self._accumulation, (self._rank + 1) * self._accumulation)
        for number in range(self._start, self.batches):
            batch = order[number * self._batch_size : (number + 1) * self._batch_size]
            for piece in own:
                first, last = (cut * len(batch) // pieces for cut in (piece, piece + 1))
                yield batch[first:last].tolist()

    def _order(self) -> torch.Tensor:
        if not self._shuffle:
            return torch.arange(self._size)
        # Mixed, because torch's generator uses 32 bits of a seed, and seed + epoch would repeat.
        mixed = np.random.SeedSequence((self._seed, self._epoch)).generate_state(1)
        return torch.randperm(self._size, generator=torch.Generator().manual_seed(int(mixed[0])))


class EvaluationSampler(Sampler[list[int]]):
    """Each of `rows` once over all processes, to which the batches are dealt in turn.

    `batch_size` is that of one process; batches are `batch_size` neighbours in `rows`.
    """

    def __init__(
        self, rows: NDArray[np.int64], batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._firsts = range(rank * batch_size, len(rows), world * batch_size)

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[list[int]]:
        for first in self._firsts:
            yield self._rows[first : first + self._batch_size].tolist()
