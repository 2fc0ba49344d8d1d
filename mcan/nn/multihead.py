"""Multi-head attention over ragged rows.

B samples, T packed rows, d width, h heads, d_h = d / h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcan.nn.attention import attention, build_similarity
from mcan.nn.blocks import blocks_of
from mcan.ragged import Ragged


class MultiHeadAttention(nn.Module):
    """MultiHead(q, k, v) = [head_1, ..., head_h] W_o (Yu et al. 2019, section 3.1, eq. 2-3).

    `size` d, `heads` h (must divide d: `ValueError`), `dropout` on the attention weights,
    `similarity` one of `mcan.nn.attention`. W_q, W_k, W_v and W_o are separate d x d projections
    with bias, whatever h, so the number of parameters of a dot-product similarity does not depend
    on h.
    """

    def __init__(
        self, size: int, heads: int, dropout: float = 0.0, similarity: str = "scaled_dot"
    ) -> None:
        super().__init__()
        if size % heads:
            raise ValueError(f"size {size} is not divisible by heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.similarity = build_similarity(similarity, size // heads, heads)

    def forward(
        self, query: Ragged, source: Ragged, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from the rows of `query` (T, d) to the rows of the same sample in `source`.

        Returns (T, d) and, on request, the weights (B, h, n, m) of the padded view, zero where
        there is no key.
        """
        mine, theirs = blocks_of(query.layout, source.layout, self.heads, whole=return_weights)
        if source is query:
            inputs = mine.split(_joint(query.values, self.query, self.key, self.value), 3)
        else:
            queries = mine.split(self.query(query.values), 1)
            pairs = theirs.split(_joint(source.values, self.key, self.value), 2)
            inputs = [(*q, *kv) for q, kv in zip(queries, pairs, strict=True)]
        rate = self.dropout if self.training else 0.0
        outs = [
            attention(q, k, v, self.similarity, mask, rate, return_weights)
            for (q, k, v), mask in zip(inputs, theirs.masks, strict=True)
        ]
        return self.output(mine.merge([out for out, _ in outs])), outs[0][1]


def _joint(x: Tensor, *projections: nn.Linear) -> Tensor:
    """Several linear maps of the same rows as one matrix product, (T, d) -> (T, maps · d)."""
    weight = torch.cat([projection.weight for projection in projections])
    return F.linear(x, weight, torch.cat([projection.bias for projection in projections]))
