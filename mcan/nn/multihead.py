"""Multi-head attention over ragged rows.

B samples, T packed rows, d width, h heads, d_h = d / h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcan.nn.attention import attention, build_similarity
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
        layout = source.layout
        mask = None if layout.dense else layout.mask[:, None, None, :]
        out, weights = attention(
            self._heads(self.query(query.values), query),
            self._heads(self.key(source.values), source),
            self._heads(self.value(source.values), source),
            self.similarity,
            mask,
            self.dropout if self.training else 0.0,
            return_weights,
        )
        packed = query.layout.unpad(out.transpose(1, 2).flatten(2))
        return self.output(packed), weights

    def _heads(self, values: Tensor, ragged: Ragged) -> Tensor:
        """(T, d) packed -> (B, h, L, d_h)."""
        padded = ragged.layout.pad(values)
        return torch.unflatten(padded, -1, (self.heads, -1)).transpose(1, 2)
