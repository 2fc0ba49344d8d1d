"""From a scoring function to the answers it prefers.

N questions, A answers, k answers kept per question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.data.sampler import EvaluationSampler
from mcan.progress import progress

Score = Callable[[Batch], Tensor]
"""A batch of B questions -> probabilities (B, A)."""


@dataclass(frozen=True)
class Predictions:
    """`rows` (N,) of the dataset; `answers` (N, k), best first; their `probabilities` (N, k)."""

    rows: NDArray[np.int64]
    answers: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @classmethod
    def merge(cls, parts: Sequence[Predictions]) -> Predictions:
        """The parts in the order of the dataset's rows."""
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows)
        return cls(
            rows[order],
            np.concatenate([part.answers for part in parts])[order],
            np.concatenate([part.probabilities for part in parts])[order],
        )


def predict(
    score: Score,
    dataset: VQADataset,
    batch_size: int,
    device: torch.device,
    top: int = 1,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    start_worker: Callable[[int], None] | None = None,
) -> Predictions | None:
    """This process's share of the dataset, every row once over all; None where it stopped early.

    Questions about one image come together, and images of like lengths.
    `start_worker` is called in each of the `workers` processes with its number.
    """
    loader: DataLoader[Batch] = DataLoader(
        dataset.for_evaluation(),  # type: ignore[arg-type]  # a map from lists of rows to batches
        batch_size=None,
        sampler=EvaluationSampler(dataset.evaluation_order(), batch_size, rank, world),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
    )
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():  # under inference_mode autocast would round the weights in each batch
        for batch in progress(loader, "evaluating", unit="batch", leave=False, disable=rank > 0):
            if should_stop():
                return None
            batch = batch.to(device, non_blocking=True)
            probabilities, answers = score(batch).topk(top, dim=1)
            parts.append((batch.index, answers, probabilities.float()))
    if not parts:
        return Predictions(
            np.zeros(0, np.int64), np.zeros((0, top), np.int64), np.zeros((0, top), np.float32)
        )
    rows, kept, certainty = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return Predictions.merge([Predictions(rows, kept, certainty)])
