"""The two-layer perceptron of feed-forward sublayers and of attentional reduction."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from mcan.nn.dropout import relu_dropout


class MLP(nn.Sequential):
    """W_2 dropout(relu(W_1 x)): (..., size) -> (..., out) with `inner` units.

    The modules are those of a plain sequence; ReLU and dropout are computed together.
    """

    def __init__(self, size: int, inner: int, dropout: float, out: int) -> None:
        super().__init__(
            nn.Linear(size, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        first, dropout, second = self[0], cast(nn.Dropout, self[2]), cast(nn.Linear, self[3])
        hidden, scale = relu_dropout(first(x), dropout.p if self.training else 0.0)
        # The scale of dropout on the weight, which has fewer numbers than the rows.
        return F.linear(hidden, second.weight if scale == 1 else second.weight * scale, second.bias)
