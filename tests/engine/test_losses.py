"""Losses against torch's own on dense targets, and against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcan.batch import Targets
from mcan.engine.losses import LOSSES, bce_mean, bce_sum, cross_entropy

B, A = 7, 5
SPARSE = [(0, 1, 1.0), (1, 0, 0.3), (1, 4, 0.9), (3, 2, 0.6), (5, 3, 1.0), (5, 0, 0.3), (6, 4, 0.3)]
"""Questions 2 and 4 have no target."""


def targets(entries: list[tuple[int, int, float]]) -> Targets:
    rows, answers, scores = zip(*entries, strict=True) if entries else ((), (), ())
    return Targets(
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(answers, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
    )


def dense() -> Tensor:
    out = torch.zeros(B, A)
    for row, answer, score in SPARSE:
        out[row, answer] = score
    return out


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(B, A, generator=torch.Generator().manual_seed(0))


def test_binary_cross_entropy_is_torchs(logits):
    whole = F.binary_cross_entropy(logits.sigmoid().double(), dense().double(), reduction="sum")
    assert float(bce_sum(logits, targets(SPARSE))) == pytest.approx(float(whole), rel=1e-5)
    mean = F.binary_cross_entropy(logits.sigmoid().double(), dense().double())
    found = bce_mean(logits, targets(SPARSE)) * LOSSES["bce_mean"].scale(B)
    assert float(found) == pytest.approx(float(mean), rel=1e-5)


def test_cross_entropy_is_torchs(logits):
    rows = dense().sum(1) > 0
    shares = dense()[rows] / dense()[rows].sum(1, keepdim=True)
    expected = F.cross_entropy(logits[rows], shares, reduction="sum")
    assert float(cross_entropy(logits, targets(SPARSE))) == pytest.approx(float(expected))
    single = [(row, row % A, 1.0) for row in range(B)]
    expected = F.cross_entropy(logits, torch.arange(B) % A)
    found = cross_entropy(logits, targets(single)) * LOSSES["cross_entropy"].scale(B)
    assert float(found) == pytest.approx(float(expected))


def test_closed_forms():
    nothing_known = torch.zeros(1, A)
    one = targets([(0, 2, 0.6)])
    # At probability 1/2 the target does not matter: ln 2 per answer.
    assert float(bce_sum(nothing_known, one)) == pytest.approx(A * math.log(2))
    assert float(bce_mean(nothing_known, one)) == pytest.approx(math.log(2))
    assert float(cross_entropy(nothing_known, one)) == pytest.approx(math.log(A))
    # x - x z + ln(1 + exp(-x)) and -ln softmax.
    x, z = 1.7, 0.3
    formula = x - x * z + math.log1p(math.exp(-x))
    assert float(bce_sum(torch.tensor([[x]]), targets([(0, 0, z)]))) == pytest.approx(formula)
    formula = -math.log(math.exp(2) / (math.exp(2) + math.exp(1)))
    assert float(cross_entropy(torch.tensor([[2.0, 1.0]]), targets([(0, 0, 0.3)]))) == (
        pytest.approx(formula)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_torchs(name, logits):
    wanted = {"bce_sum": dense(), "bce_mean": dense()}.get(name)
    scores = logits.clone().requires_grad_()
    (LOSSES[name].total(scores, targets(SPARSE)) * LOSSES[name].scale(B)).backward()
    if wanted is not None:
        expected = logits.sigmoid() - wanted
        if name == "bce_mean":
            expected = expected / (A * B)
    else:
        mass = dense().sum(1, keepdim=True)
        shares = dense() / mass.clamp(min=1e-9)
        expected = (logits.softmax(1) - shares) * (mass > 0) / B
    torch.testing.assert_close(scores.grad, expected)


@pytest.mark.parametrize("cuts", [[0, 7], [0, 3, 7], [0, 1, 2, 5, 7], [0, 2, 2, 7]])
@pytest.mark.parametrize("name", LOSSES)
def test_pieces_add_up(name, cuts, logits):
    total = torch.tensor(0.0)
    for first, last in pairwise(cuts):
        piece = [(row - first, a, s) for row, a, s in SPARSE if first <= row < last]
        total = total + LOSSES[name].total(logits[first:last], targets(piece))
    torch.testing.assert_close(total, LOSSES[name].total(logits, targets(SPARSE)))


def test_a_question_without_target(logits):
    alone, none = logits[2:3], targets([])
    assert float(cross_entropy(alone, none)) == 0
    expected = F.softplus(alone).sum()  # every answer is wrong
    torch.testing.assert_close(bce_sum(alone, none), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_and_large_ones(name, logits):
    precise = LOSSES[name].total(logits.bfloat16().float(), targets(SPARSE))
    assert LOSSES[name].total(logits.bfloat16(), targets(SPARSE)) == precise
    assert torch.isfinite(LOSSES[name].total(1e4 * logits, targets(SPARSE)))
