"""Attention in general: similarity, softmax normalisation, weighted sum.

n queries, m keys, d width of queries and keys, e width of values; leading dimensions are shared.

Yu et al. 2019, section 3.1, eq. 1 is `scaled_dot`. The other similarities are the ones of the
attention literature: `dot` and `general` (Luong et al. 2015), `concat` in its linear form,
`perceptron` (additive, Bahdanau et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcan.nn.dropout import dropout as drop

# Elements of the largest intermediate (scores, or the perceptron's hidden layer) formed at once.
BLOCK_ELEMENTS = 2**27


class Similarity(nn.Module):
    """Scores (..., n, m) of queries (..., n, d) against keys (..., m, d)."""

    def cost(self, width: int) -> int:
        """Elements formed for each pair of a query and a key of width `width`."""
        return 1

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        raise NotImplementedError


class Dot(Similarity):
    """scale · qᵀk; `scaled` divides by √d (the paper's, eq. 1)."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled

    def scale(self, width: int) -> float:
        return 1 / math.sqrt(width) if self.scaled else 1.0

    def map_query(self, query: Tensor) -> Tensor:
        """What the dot product is taken with."""
        return query

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query = self.map_query(query) * self.scale(query.shape[-1])
        return query @ key.transpose(-2, -1)


class General(Dot):
    """qᵀ W k, with one W (d, d) per head."""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__(scaled=False)
        self.weight = _per_head(heads, size, size, fan_in=size)

    def map_query(self, query: Tensor) -> Tensor:
        return query @ self.weight.to(query.dtype)


class Concat(Similarity):
    """wᵀ[q; k], with one w (2d) per head.

    The query's part is the same for all keys, so the softmax removes it: the weights depend on the
    keys alone. It is offered because papers compare against it.
    """

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.query_weight = _per_head(heads, size, 1, fan_in=2 * size)
        self.key_weight = _per_head(heads, size, 1, fan_in=2 * size)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query_score = query @ self.query_weight.to(query.dtype)
        key_score = key @ self.key_weight.to(key.dtype)
        return query_score + key_score.transpose(-2, -1)


class Perceptron(Similarity):
    """vᵀ tanh(W q + U k), with one v (d), W and U (d, d) per head."""

    def __init__(self, size: int, heads: int = 1) -> None:
        super().__init__()
        self.query_weight = _per_head(heads, size, size, fan_in=size)
        self.key_weight = _per_head(heads, size, size, fan_in=size)
        self.vector = _per_head(heads, size, 1, fan_in=size)

    def cost(self, width: int) -> int:
        return width

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query = (query @ self.query_weight.to(query.dtype)).unsqueeze(-2)
        key = (key @ self.key_weight.to(key.dtype)).unsqueeze(-3)
        hidden = torch.tanh(query + key)  # (..., h, n, m, d)
        return (hidden @ self.vector.to(hidden.dtype).unsqueeze(-3)).squeeze(-1)


def _per_head(heads: int, rows: int, columns: int, fan_in: int) -> nn.Parameter:
    """One matrix per head; a single one has no head dimension and broadcasts over any."""
    bound = 1 / math.sqrt(fan_in)
    shape = (rows, columns) if heads == 1 else (heads, rows, columns)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


_SIMILARITIES: dict[str, Callable[[int, int], Similarity]] = {
    "dot": lambda size, heads: Dot(scaled=False),
    "scaled_dot": lambda size, heads: Dot(scaled=True),
    "general": General,
    "concat": Concat,
    "perceptron": Perceptron,
}


def build_similarity(name: str, size: int, heads: int = 1) -> Similarity:
    """The similarity `name` for queries and keys (..., heads, n, size).

    With `heads` = 1, inputs need no head dimension. Raises `ValueError` for an unknown name.
    """
    if name not in _SIMILARITIES:
        raise ValueError(f"similarity {name!r} is not one of {', '.join(_SIMILARITIES)}")
    return _SIMILARITIES[name](size, heads)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    similarity: Similarity,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    return_weights: bool = False,
    block_elements: int = BLOCK_ELEMENTS,
) -> tuple[Tensor, Tensor | None]:
    """softmax(similarity(query, key)) · value.

    `query` (..., n, d), `key` (..., m, d), `value` (..., m, e), `mask` bool, true where a key
    counts, broadcastable to (..., n, m). `dropout` applies to the normalised weights. Returns (...,
    n, e) and, on request, the weights (..., n, m) before dropout. A query with no key that counts
    gets zeros.

    At most about `block_elements` numbers of an intermediate exist at once: long inputs are
    computed in blocks of queries, which the backward pass recomputes. Dot products take torch's
    fused kernel where it is faster, unless the weights are asked for.
    """
    if isinstance(similarity, Dot) and not return_weights and _fused_is_faster(query, dropout):
        return _fused(query, key, value, similarity, mask, dropout), None

    queries, keys = query.shape[-2], key.shape[-2]
    per_query = query.shape[:-2].numel() * keys * similarity.cost(query.shape[-1])
    rows = max(1, block_elements // max(1, per_query))

    def compute(query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _explicit(query, key, value, similarity, mask, dropout, return_weights)

    if rows >= queries:
        return compute(query, mask)
    outputs: list[Tensor] = []
    weights: list[Tensor] = []
    per_row_mask = mask is not None and mask.dim() >= 2 and mask.shape[-2] > 1
    for start in range(0, queries, rows):
        block = query[..., start : start + rows, :]
        part = mask[..., start : start + rows, :] if mask is not None and per_row_mask else mask
        if torch.is_grad_enabled():
            out, weight = checkpoint(compute, block, part, use_reentrant=False)
        else:
            out, weight = compute(block, part)
        outputs.append(out)
        if weight is not None:
            weights.append(weight)
    return torch.cat(outputs, -2), torch.cat(weights, -2) if return_weights else None


def _fused_is_faster(query: Tensor, dropout: float) -> bool:
    """On CPU the fused kernel is for inference.

    Its backward pass takes as long as explicit products in float32 and several times as long in
    bf16; with dropout it falls back to them.
    """
    return query.device.type != "cpu" or (dropout == 0 and not torch.is_grad_enabled())


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    similarity: Dot,
    mask: Tensor | None,
    dropout: float,
) -> Tensor:
    return F.scaled_dot_product_attention(
        similarity.map_query(query),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=similarity.scale(query.shape[-1]),
    )


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    similarity: Similarity,
    mask: Tensor | None,
    dropout: float,
    return_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    weights = masked_softmax(similarity(query, key), mask)
    dropped = drop(weights, dropout) if dropout else weights
    return dropped.to(value.dtype) @ value, weights if return_weights else None


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension where `mask` is true; zeros where it is false.

    `scores` are overwritten. A slice without any true entry is all zeros.
    """
    if mask is None:
        return torch.softmax(scores, -1)
    # The lowest finite number instead of -inf: no NaN arises in a slice without a true entry.
    hidden = ~mask
    weights = torch.softmax(scores.masked_fill_(hidden, torch.finfo(scores.dtype).min), -1)
    return weights if _all_have_keys(mask) else weights.masked_fill(hidden, 0.0)


def _all_have_keys(mask: Tensor) -> bool:
    """Where that can be told without waiting for a device."""
    asks = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return asks and bool(mask.any(-1).all())
