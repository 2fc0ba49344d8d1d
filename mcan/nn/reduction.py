"""Attentional reduction and fusion (Yu et al. 2019, section 4.3, eq. 11-12)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcan.nn.attention import masked_softmax
from mcan.nn.mlp import MLP
from mcan.ragged import Ragged


class AttentionalReduction(nn.Module):
    """Rows (T, d) of each sample -> one vector (B, out).

    α = softmax(MLP(x)) over the rows of a sample, one α per glimpse; the `glimpses` weighted sums
    are concatenated and mapped to `out`. MLP: Linear(d, hidden), ReLU, dropout, Linear(hidden,
    glimpses).
    """

    def __init__(self, size: int, hidden: int, glimpses: int, dropout: float, out: int) -> None:
        super().__init__()
        self.mlp = MLP(size, hidden, dropout, glimpses)
        self.projection = nn.Linear(size * glimpses, out)

    def forward(self, x: Ragged) -> tuple[Tensor, Tensor]:
        """The reduced samples (B, out) and the weights α (B, glimpses, L), zero where no row is."""
        layout = x.layout
        scores = layout.pad(self.mlp(x.values)).transpose(1, 2)
        mask = None if layout.dense else layout.mask[:, None, :]
        weights = masked_softmax(scores, mask)
        glimpses = torch.bmm(weights.to(x.values.dtype), x.padded())
        return self.projection(glimpses.flatten(1)), weights
