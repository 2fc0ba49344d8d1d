"""Losses on logits (B, A) and sparse soft targets.

Each is a sum over the questions given, so that pieces of a batch (accumulation steps, processes)
add up to the whole batch's loss: `Loss.scale` is what the sum over the global batch is multiplied
with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mcan.batch import Targets


@dataclass(frozen=True)
class Loss:
    """A loss by name: `total` sums it over questions.

    `batch_mean` divides the sum over the batch by its number of questions; the reference's sum does
    not, so that its gradient grows with the batch.
    """

    total: Callable[[Tensor, Targets], Tensor]
    batch_mean: bool

    def scale(self, questions: int) -> float:
        """What the summed loss of a global batch of `questions` is multiplied with."""
        return 1 / questions if self.batch_mean else 1.0


def bce_sum(logits: Tensor, targets: Targets) -> Tensor:
    """Binary cross entropy on soft targets, summed over questions and answers (the reference's)."""
    dense = targets.dense(*logits.shape)
    return F.binary_cross_entropy_with_logits(logits.float(), dense, reduction="sum")


def bce_mean(logits: Tensor, targets: Targets) -> Tensor:
    """Binary cross entropy with soft targets, averaged over answers, summed over questions."""
    return bce_sum(logits, targets) / logits.shape[1]


def cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Cross entropy against each question's scores, normalised to sum to one.

    With one answer per question it is the usual cross entropy; a question without a target adds
    nothing.
    """
    mass = torch.zeros(len(logits), device=logits.device).index_add_(
        0, targets.rows, targets.scores
    )
    shares = targets.scores / mass[targets.rows]
    log_probability = torch.log_softmax(logits.float(), 1)[targets.rows, targets.answers]
    return -(shares * log_probability).sum()


LOSSES = {
    "bce_sum": Loss(bce_sum, batch_mean=False),
    "bce_mean": Loss(bce_mean, batch_mean=True),
    "cross_entropy": Loss(cross_entropy, batch_mean=True),
}
