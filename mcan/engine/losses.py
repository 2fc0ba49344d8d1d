"""Losses on logits (B, A) and sparse soft targets. To add one, put it into `LOSSES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mcan.batch import Targets


@dataclass(frozen=True)
class Loss:
    """A loss, and the probabilities that a network trained with it predicts.

    `total` (logits, targets) sums over the questions given, so that the parts of a batch
    (micro-batches, processes) add up to the whole batch's loss. `probabilities` maps logits
    (..., A) to probabilities (..., A). `batch_mean` divides the sum over the global batch by its
    number of questions; the reference's loss does not, so its gradient grows with the batch.
    """

    total: Callable[[Tensor, Targets], Tensor]
    probabilities: Callable[[Tensor], Tensor]
    batch_mean: bool
    meaning: str

    def scale(self, questions: int) -> float:
        """What the summed loss of a global batch of `questions` is multiplied by."""
        return 1 / questions if self.batch_mean else 1.0


def bce_sum(logits: Tensor, targets: Targets) -> Tensor:
    dense = targets.dense(*logits.shape)
    return F.binary_cross_entropy_with_logits(logits.float(), dense, reduction="sum")


def bce_mean(logits: Tensor, targets: Targets) -> Tensor:
    return bce_sum(logits, targets) / logits.shape[1]


def cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """A question without a target contributes nothing."""
    mass = logits.new_zeros(len(logits), dtype=torch.float32)
    mass.index_add_(0, targets.rows, targets.scores)
    log_probability = logits.float().log_softmax(1)[targets.rows, targets.answers]
    return -(targets.scores / mass[targets.rows] * log_probability).sum()


LOSSES = {
    "bce_sum": Loss(
        bce_sum,
        torch.sigmoid,
        batch_mean=False,
        meaning="binary cross entropy on soft scores, summed over batch and answers (reference)",
    ),
    "bce_mean": Loss(
        bce_mean,
        torch.sigmoid,
        batch_mean=True,
        meaning="binary cross entropy on soft scores, averaged over batch and answers",
    ),
    "cross_entropy": Loss(
        cross_entropy,
        partial(torch.softmax, dim=-1),
        batch_mean=True,
        meaning="cross entropy against the normalised scores, averaged over the batch",
    ),
}
