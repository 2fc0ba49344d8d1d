"""Attention: similarity, softmax, weighted sum; with several heads.

B samples, n queries, m keys, d width, h heads, d_h = d / h. Rows are (B, n, d) or (T, d), see
`mcan.rows`.

Yu et al. 2019, section 3.1, eq. 1-3. Their similarity is `scaled_dot`. The others are those of the
literature: `dot`, `general` (Luong et al. 2015), `concat` in its linear form, `perceptron`
(additive, Bahdanau et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcan.nn.dropout import Dropout
from mcan.rows import Packed, Padded, Rows

# Numbers of the perceptron's hidden layer that exist at once.
MAX_HIDDEN = 2**27


class Dot(nn.Module):
    """qᵀk"""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return (query * self.scale) @ key.transpose(-2, -1)


class ScaledDot(Dot):
    """qᵀk / √d_h, the paper's (eq. 1)."""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__(size, heads)
        self.scale = 1 / math.sqrt(size)


class General(nn.Module):
    """qᵀ W k, one W (d_h, d_h) per head."""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.weight = _per_head(heads, size, size, fan_in=size)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ self.weight.to(query.dtype) @ key.transpose(-2, -1)


class Concat(nn.Module):
    """wᵀ[q; k], one w (2 d_h) per head. The softmax cancels the query's part."""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.query_weight = _per_head(heads, size, 1, fan_in=2 * size)
        self.key_weight = _per_head(heads, size, 1, fan_in=2 * size)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        of_query = query @ self.query_weight.to(query.dtype)  # (..., n, 1)
        of_key = key @ self.key_weight.to(key.dtype)  # (..., m, 1)
        return of_query + of_key.transpose(-2, -1)


class Perceptron(nn.Module):
    """vᵀ tanh(W q + U k), one v (d_h), W and U (d_h, d_h) per head."""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.query_weight = _per_head(heads, size, size, fan_in=size)
        self.key_weight = _per_head(heads, size, size, fan_in=size)
        self.vector = _per_head(heads, size, 1, fan_in=size)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query = query @ self.query_weight.to(query.dtype)
        key = key @ self.key_weight.to(key.dtype)
        # The hidden layer is large: compute it for some queries at a time, again in backward.
        size = max(1, MAX_HIDDEN // max(1, key.numel()))
        if size >= query.shape[-2] or torch.compiler.is_compiling():
            return self._scores(query, key)
        blocks = torch.split(query, size, -2)
        scores = [checkpoint(self._scores, q, key, use_reentrant=False) for q in blocks]
        return torch.cat(scores, -2)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        hidden = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3))  # (..., n, m, d_h)
        return (hidden @ self.vector.to(hidden.dtype).unsqueeze(-3)).squeeze(-1)


def _per_head(heads: int, rows: int, columns: int, fan_in: int) -> nn.Parameter:
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(heads, rows, columns).uniform_(-bound, bound))


SIMILARITIES: dict[str, Callable[[int, int], nn.Module]] = {
    "dot": Dot,
    "scaled_dot": ScaledDot,
    "general": General,
    "concat": Concat,
    "perceptron": Perceptron,
}
"""name -> module for (d_h, h): queries (b, h, n, d_h), keys (b, h, m, d_h) -> (b, h, n, m).

To add one, put it into this dictionary. Only `Dot` and `ScaledDot` take torch's fused kernel.
"""


Record = Callable[[Tensor, Tensor | None, Tensor], None]
"""Takes weights (B, ..., n, m), the mask of queries (B, n) if there are any, and of keys (B, m)."""


def masked_softmax(scores: Tensor, mask: Tensor | None, some_empty: bool = True) -> Tensor:
    """Softmax where `mask` is true, zeros elsewhere; if `some_empty`, it may be true nowhere."""
    if mask is None:
        return scores.softmax(-1)
    # The lowest finite number, not -inf: a slice without a valid entry must not become NaN.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~mask, 0.0) if some_empty else weights


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    similarity: nn.Module,
    mask: Tensor | None = None,
    dropout: nn.Module | None = None,
    some_empty: bool = True,
) -> tuple[Tensor, Tensor]:
    """softmax(similarity(query, key)) · value (..., n, e), and the softmax (..., n, m) (eq. 1).

    `mask`, broadcast to (..., n, m), is true where a key is valid. If `some_empty`, a query without
    any valid key gets zeros. `dropout` applies to the weights, but not to those returned.
    """
    weights = masked_softmax(similarity(query, key), mask, some_empty)
    dropped = weights if dropout is None else dropout(weights)
    return dropped.to(value.dtype) @ value, weights


class MultiHeadAttention(nn.Module):
    """MultiHead(q, k, v) = [head_1, ..., head_h] W_o (eq. 2-3); h must divide the width d."""

    def __init__(self, width: int, heads: int, dropout: float, similarity: str) -> None:
        super().__init__()
        self.heads = heads
        # In the packed layout a hook on these sees rows (T, d).
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.similarity = SIMILARITIES[similarity](width // heads, heads)
        self.dropout = Dropout(dropout)
        self.record: Record | None = None  # set by mcan.explain.weights.record_attention

    def forward(self, x: Tensor, source: Tensor, rows: Rows, source_rows: Rows) -> Tensor:
        """Each row of `x` attends to the rows of the same sample in `source`: rows like `x`."""
        heads, some_empty = self.heads, source_rows.some_empty
        if self.record is not None and isinstance(rows, Packed):
            padded, padded_source = Padded(rows.mask), Padded(source_rows.mask, some_empty)
            out = self.forward(rows.pad(x), source_rows.pad(source), padded, padded_source)
            return rows.unpad(out)
        # Packed samples are computed in groups, padded ones all at once.
        query = rows.split_heads(self.query(x), heads, rows)  # (b, h, n, d_h) of each group
        key = source_rows.split_heads(self.key(source), heads, rows)  # (b, h, m, d_h)
        value = source_rows.split_heads(self.value(source), heads, rows)
        masks = source_rows.key_masks(heads, rows)
        outs: list[Tensor] = []
        for q, k, v, mask in zip(query, key, value, masks, strict=True):
            if self._use_fused(q, some_empty):
                p, scale = self.dropout.p if self.dropout.training else 0.0, self.similarity.scale
                outs.append(F.scaled_dot_product_attention(q, k, v, mask, p, scale=scale))  # type: ignore[arg-type]
                continue
            out, weights = attention(q, k, v, self.similarity, mask, self.dropout, some_empty)
            outs.append(out)
            if self.record is not None:
                self.record(weights, rows.mask, source_rows.mask)
        joined: Tensor = self.output(rows.join_heads(outs))
        return joined

    def _use_fused(self, query: Tensor, some_empty: bool) -> bool:
        # On a CPU torch's kernel is for inference: its backward is slow, dropout switches it off.
        training = self.dropout.training or torch.is_grad_enabled()
        faster = query.device.type != "cpu" or not training
        stock = _is_stock(self.similarity, Dot, ScaledDot)
        stock = stock and _is_stock(self.dropout, Dropout, nn.Dropout)
        stock = stock and isinstance(self.similarity.scale, float)
        return faster and stock and self.record is None and not some_empty


def _is_stock(module: nn.Module, *kinds: type) -> bool:
    """Whether a short cut may compute it: no subclass, hook, parametrisation, or other forward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, name) for name in hooks)
    return type(module) in kinds and "forward" not in module.__dict__ and not hooked
