"""What a process reads in an epoch: its pieces of each batch, in an order that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.data.sampler import BatchSampler
from mcan.engine.distributed import Ranks
from mcan.engine.signals import ignore_in_worker
from mcan.errors import RunError


class Feed:
    """Batches of `batch_size` questions over all processes, `accumulation` pieces per process.

    `workers` processes prepare them; 0 prepares them in this one.
    """

    def __init__(
        self,
        dataset: VQADataset,
        batch_size: int,
        accumulation: int,
        drop_last: bool,
        seed: int,
        workers: int,
        ranks: Ranks,
    ) -> None:
        pieces = ranks.world * accumulation
        if batch_size < pieces:
            raise RunError(
                f"train.batch_size {batch_size} is less than {ranks.world} processes x "
                f"train.accumulation {accumulation}; each piece needs a question"
            )
        self.dataset = dataset
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._drop_last = drop_last
        self._seed = seed
        self._workers = workers
        self._ranks = ranks
        self.epoch_steps = self._sampler(0, 0).batches
        """Batches of an epoch."""

    def questions(self, batch: int) -> int:
        """Questions in batch number `batch` of an epoch, over all processes."""
        return min(self._batch_size, len(self.dataset) - batch * self._batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """This process's pieces of each batch of an epoch, from batch number `start` on."""
        loader: DataLoader[Batch] = DataLoader(
            self.dataset,  # type: ignore[arg-type]  # a map from lists of rows to batches
            batch_size=None,
            sampler=self._sampler(epoch, start),
            num_workers=self._workers,
            pin_memory=self._ranks.device.type == "cuda",
            worker_init_fn=ignore_in_worker,
        )
        pieces: list[Batch] = []
        for piece in loader:
            pieces.append(piece)
            if len(pieces) == self._accumulation:
                yield pieces
                pieces = []

    def _sampler(self, epoch: int, start: int) -> BatchSampler:
        return BatchSampler(
            len(self.dataset),
            self._batch_size,
            self._seed,
            epoch,
            drop_last=self._drop_last,
            rank=self._ranks.rank,
            world=self._ranks.world,
            accumulation=self._accumulation,
            start=start,
        )
