"""The attention units SA, GA and SGA (Yu et al. 2019, section 3.1, figure 2; MCA layers: figure 4).

T packed rows, d width. All sublayers are post-norm: LayerNorm(x + dropout(sublayer(x))).
"""

from __future__ import annotations

from torch import Tensor, nn

from mcan.nn.dropout import add_dropout
from mcan.nn.mlp import MLP
from mcan.nn.multihead import MultiHeadAttention
from mcan.ragged import Ragged

AttentionRecord = dict[str, Tensor]
"""Attention weights (B, h, n, m) by the name of the sublayer that formed them."""

# The reference adds 1e-6 to the standard deviation.
NORM_EPS = 1e-6


class AttentionSublayer(nn.Module):
    """LayerNorm(x + dropout(MultiHead(q = x, k = v = source)))."""

    def __init__(self, size: int, heads: int, dropout: float, similarity: str) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(size, heads, dropout, similarity)
        self.dropout = dropout
        self.norm = nn.LayerNorm(size, eps=NORM_EPS)

    def forward(
        self, x: Ragged, source: Ragged, record: AttentionRecord | None = None, name: str = ""
    ) -> Ragged:
        out, weights = self.attention(x, source, return_weights=record is not None)
        if record is not None:
            record[name] = weights
        rate = self.dropout if self.training else 0.0
        return x.replace(self.norm(add_dropout(x.values, out, rate)))


class FeedForwardSublayer(nn.Module):
    """LayerNorm(x + dropout(FFN(x))), FFN(x) = W_2 dropout(relu(W_1 x)) with `inner` units."""

    def __init__(self, size: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.feed_forward = MLP(size, inner, dropout, size)
        self.dropout = dropout
        self.norm = nn.LayerNorm(size, eps=NORM_EPS)

    def forward(self, x: Ragged) -> Ragged:
        rate = self.dropout if self.training else 0.0
        return x.replace(self.norm(add_dropout(x.values, self.feed_forward(x.values), rate)))


class AttentionUnit(nn.Module):
    """Attention sublayers followed by one feed-forward sublayer.

    `sublayers` says in order which attentions the unit has: `self` attends from x to x, `guided`
    from x to y. As in the reference, SGA has one feed-forward sublayer, after both attentions.
    """

    def __init__(
        self,
        sublayers: tuple[str, ...],
        size: int,
        heads: int,
        inner: int,
        dropout: float,
        similarity: str,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleDict(
            {name: AttentionSublayer(size, heads, dropout, similarity) for name in sublayers}
        )
        self.feed_forward = FeedForwardSublayer(size, inner, dropout)

    def forward(
        self, x: Ragged, y: Ragged, record: AttentionRecord | None = None, name: str = ""
    ) -> Ragged:
        for kind, sublayer in self.attentions.items():
            x = sublayer(x, x if kind == "self" else y, record, f"{name}.{kind}")
        out: Ragged = self.feed_forward(x)
        return out


class SelfAttentionUnit(AttentionUnit):
    """SA: relations inside one modality. `size` d, `heads` h, `inner` feed-forward width (4d)."""

    def __init__(
        self, size: int, heads: int, inner: int, dropout: float, similarity: str = "scaled_dot"
    ) -> None:
        super().__init__(("self",), size, heads, inner, dropout, similarity)


class GuidedAttentionUnit(AttentionUnit):
    """GA: x guided by y."""

    def __init__(
        self, size: int, heads: int, inner: int, dropout: float, similarity: str = "scaled_dot"
    ) -> None:
        super().__init__(("guided",), size, heads, inner, dropout, similarity)


class SelfGuidedAttentionUnit(AttentionUnit):
    """SGA: x attends to itself, then is guided by y."""

    def __init__(
        self, size: int, heads: int, inner: int, dropout: float, similarity: str = "scaled_dot"
    ) -> None:
        super().__init__(("self", "guided"), size, heads, inner, dropout, similarity)
