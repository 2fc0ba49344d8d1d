"""Losses against torch's own on dense targets, and that parts of a batch add up."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcan.batch import Targets
from mcan.engine.losses import LOSSES

B, A = 7, 5
SPARSE = [(0, 1, 1.0), (1, 0, 0.3), (1, 4, 0.9), (3, 2, 0.6), (5, 3, 1.0), (5, 0, 0.3), (6, 4, 0.3)]
"""Questions 2 and 4 have no target."""
DENSE = torch.zeros(B, A)
for row, answer, score in SPARSE:
    DENSE[row, answer] = score


def targets(entries: list[tuple[int, int, float]]) -> Targets:
    columns = torch.tensor(entries, dtype=torch.float64).reshape(-1, 3).unbind(1)
    return Targets(columns[0].long(), columns[1].long(), columns[2].float())


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(B, A, generator=torch.Generator().manual_seed(0))


def torchs(name: str, logits: Tensor) -> Tensor:
    """The loss of the batch by torch's own function."""
    if name == "cross_entropy":
        known = DENSE.sum(1) > 0
        shares = DENSE[known] / DENSE[known].sum(1, keepdim=True)
        return F.cross_entropy(logits[known], shares, reduction="sum") / B
    reduction = name.removeprefix("bce_")
    return F.binary_cross_entropy(logits.double().sigmoid(), DENSE.double(), reduction=reduction)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_torchs(name, logits):
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = LOSSES[name].total(ours, targets(SPARSE)) * LOSSES[name].scale(B)
    expected = torchs(name, theirs)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=0)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_are_those_that_the_loss_trains(name):
    """Following the gradient, the probabilities of one question approach its target."""
    wanted = torch.tensor([[0.2, 0.3, 0.5]])
    scores = torch.zeros(1, 3, requires_grad=True)
    entries = targets([(0, answer, float(wanted[0, answer])) for answer in range(3)])
    for _ in range(300):
        (gradient,) = torch.autograd.grad(LOSSES[name].total(scores, entries), scores)
        scores = (scores - 3 * gradient).detach().requires_grad_()
    torch.testing.assert_close(LOSSES[name].probabilities(scores), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("cuts", [[0, 1, 2, 5, 7], [0, 2, 2, 7]])
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_add_up(name, cuts, logits):
    total = torch.tensor(0.0)
    for first, last in pairwise(cuts):
        part = [(row - first, a, s) for row, a, s in SPARSE if first <= row < last]
        total = total + LOSSES[name].total(logits[first:last], targets(part))
    torch.testing.assert_close(total, LOSSES[name].total(logits, targets(SPARSE)))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_and_large_ones(name, logits):
    precise = LOSSES[name].total(logits.bfloat16().float(), targets(SPARSE))
    assert LOSSES[name].total(logits.bfloat16(), targets(SPARSE)) == precise
    assert torch.isfinite(LOSSES[name].total(1e4 * logits, targets(SPARSE)))
