"""From a scoring function to the answers it prefers.

N questions, A answers, k answers kept per question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcan.batch import Batch
from mcan.console import progress
from mcan.data.dataset import VQADataset
from mcan.data.loading import load_batches
from mcan.data.sampler import evaluation_batches

Score: TypeAlias = Callable[[Batch], Tensor]
"""A batch of B questions -> probabilities (B, A)."""


class Predictions(NamedTuple):
    """`rows` (N,) of the dataset; `answers` (N, k), best first; their `probabilities` (N, k)."""

    rows: NDArray[np.int64]
    answers: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @classmethod
    def merge(cls, parts: Iterable[Predictions]) -> Predictions:
        """The parts in the order of the dataset's rows, each row once."""
        rows, answers, probabilities = (np.concatenate(each) for each in zip(*parts, strict=True))
        rows, first = np.unique(rows, return_index=True)
        return cls(rows, answers[first], probabilities[first])


def predict(
    score: Score,
    dataset: VQADataset,
    batch_size: int,
    enter: Callable[[Batch], Batch],
    top: int = 1,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    pin_memory: bool = False,
    equal_sizes: bool = False,
) -> Predictions | None:
    """This process's share of the dataset, every row once over all; None if it stopped early.

    Questions about one image come together, and images of similar lengths. `enter` moves a batch to
    the device and into the layout that `score` computes in. With `equal_sizes`, all batches have
    equally many questions and images, as a compiled network needs. Raises `TrainingError` if one
    of the `workers` dies.
    """
    rows = evaluation_batches(dataset.evaluation_order(), batch_size, rank, world, equal_sizes)
    shared = dataset if equal_sizes else dataset.with_shared_images()
    none = torch.zeros(0, top)  # a process may have no batch at all
    parts = [(torch.zeros(0, dtype=torch.int64), none.long(), none)]
    # Under inference_mode autocast would round the weights in each batch.
    with load_batches(shared, rows, workers, pin_memory) as batches, torch.no_grad():
        options = {"unit": "batch", "leave": False, "delay": 1, "disable": rank > 0}
        for batch in progress(batches, "evaluating", len(rows), **options):
            if should_stop():
                return None
            batch = enter(batch)
            probabilities, answers = score(batch).topk(top, dim=1)
            parts.append((batch.index, answers, probabilities.float()))
    arrays = (torch.cat([part.cpu() for part in each]).numpy() for each in zip(*parts, strict=True))
    return Predictions.merge([Predictions(*arrays)])
