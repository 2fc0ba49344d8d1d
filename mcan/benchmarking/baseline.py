"""The same network computed plainly, as the baseline that speed is compared with.

The way of the authors' code, rebuilt from its description: questions and images padded to fixed
lengths, every row computed, masks by -1e9, one product per projection, float32. The modules are
named as in `mcan.nn`, so that `load` copies weights by name.

B samples, m = 100 regions, n = 14 words, d width, h heads, d_h = d / h.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mcan.batch import Batch
from mcan.errors import ConfigError

if TYPE_CHECKING:
    from mcan.config.schema import ModelConfig
    from mcan.nn.mcan import MCAN, ModelSizes

_MASKED = -1e9
_EPS = 1e-6


class Norm(nn.Module):
    """weight · (x - mean) / (std + eps) + bias with the unbiased standard deviation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (deviation + _EPS) + self.bias


class Attention(nn.Module):
    """Four projections, each head's softmax over the keys that `mask` (B, 1, 1, L) leaves."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        query, key = self._split(self.query(x)), self._split(self.key(source))
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores.masked_fill(mask, _MASKED), -1)
        mixed = torch.matmul(self.dropout(weights), self._split(self.value(source)))
        out: Tensor = self.output(mixed.transpose(1, 2).contiguous().view_as(x))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, d) -> (B, h, L, d_h)"""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class AttentionSublayer(nn.Module):
    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(size, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = Norm(size)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.dropout(self.attention(x, source, mask)))
        return out


class FeedForward(nn.Module):
    def __init__(self, size: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.feed_forward = nn.Sequential(
            nn.Linear(size, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, size)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm = Norm(size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x + self.dropout(self.feed_forward(x)))
        return out


class Unit(nn.Module):
    """SA (`guided` false) or SGA."""

    def __init__(self, model: ModelConfig, guided: bool) -> None:
        super().__init__()
        size, dropout = model.hidden_size, model.dropout
        self.attentions = nn.ModuleDict(
            {
                name: AttentionSublayer(size, model.heads, dropout)
                for name in (("self", "guided") if guided else ("self",))
            }
        )
        self.feed_forward = FeedForward(size, model.feed_forward_factor * size, dropout)

    def forward(
        self, x: Tensor, x_mask: Tensor, y: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Tensor:
        x = self.attentions["self"](x, x, x_mask)
        if y is not None:
            x = self.attentions["guided"](x, y, y_mask)
        out: Tensor = self.feed_forward(x)
        return out


class Reduction(nn.Module):
    """(B, L, d) -> (B, out), one weighted sum per glimpse."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(model.hidden_size, model.reduction_size),
            nn.ReLU(),
            nn.Dropout(model.dropout),
            nn.Linear(model.reduction_size, model.glimpses),
        )
        self.projection = nn.Linear(model.hidden_size * model.glimpses, model.fusion_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.mlp(x).masked_fill(mask.flatten(1).unsqueeze(-1), _MASKED)
        weights = torch.softmax(scores, 1)
        sums = [(weights[..., g : g + 1] * x).sum(1) for g in range(weights.shape[-1])]
        out: Tensor = self.projection(torch.cat(sums, 1))
        return out


class Baseline(nn.Module):
    """(B, m, D) features and (B, n) token ids, padded with zeros -> logits (B, A).

    Raises `ConfigError` for a model that the authors' code cannot be.
    """

    def __init__(self, model: ModelConfig, sizes: ModelSizes) -> None:
        super().__init__()
        kind = (model.cascade, model.mca_layer, model.similarity, model.question.encoder)
        if kind != ("encoder_decoder", "sa_sga", "scaled_dot", "lstm") or (
            model.image.input != "regions" or model.image.boxes or sizes.grid_size
        ):
            raise ConfigError(
                "the baseline computes an encoder_decoder of sa_sga with scaled_dot and lstm on "
                f"regions without boxes or grid, found {', '.join(kind)} on {model.image.input}"
            )
        assert sizes.feature_size is not None
        size, embedding = model.hidden_size, model.question.embedding_size
        self.question_encoder = nn.ModuleDict(
            {
                "embedding": nn.Embedding(sizes.tokens, embedding),
                "lstm": nn.LSTM(embedding, size, batch_first=True),
            }
        )
        self.image_encoder = nn.ModuleDict({"projection": nn.Linear(sizes.feature_size, size)})
        depths = {"question": model.question_depth or model.depth, "image": model.depth}
        self.cascade = nn.ModuleDict(
            {
                f"{side}_units": nn.ModuleList(Unit(model, side == "image") for _ in range(depth))
                for side, depth in depths.items()
            }
        )
        self.question_reduction = Reduction(model)
        self.image_reduction = Reduction(model)
        self.norm = Norm(model.fusion_size)
        self.classifier = nn.Linear(model.fusion_size, sizes.answers)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        x_mask = (features.abs().sum(-1) == 0)[:, None, None, :]
        y_mask = (tokens == 0)[:, None, None, :]
        y, _ = self.question_encoder["lstm"](self.question_encoder["embedding"](tokens))
        x = self.image_encoder["projection"](features)
        for unit in self.cascade["question_units"].children():
            y = unit(y, y_mask)
        for unit in self.cascade["image_units"].children():
            x = unit(x, x_mask, y, y_mask)
        fused = self.question_reduction(y, y_mask) + self.image_reduction(x, x_mask)
        logits: Tensor = self.classifier(self.norm(fused))
        return logits


def load(baseline: Baseline, model: MCAN) -> None:
    """Copy the weights of `model`; gains are rescaled for the unbiased standard deviation."""
    state = dict(model.state_dict())
    for name, part in baseline.named_modules():
        if isinstance(part, Norm):
            size = len(part.weight)
            state[f"{name}.weight"] = state[f"{name}.weight"] * math.sqrt(size / (size - 1))
    baseline.load_state_dict(state)


def padded(batch: Batch, regions: int, words: int) -> tuple[Tensor, Tensor]:
    """Features (B, `regions`, D) in float32 and token ids (B, `words`), zeros where no row is."""
    assert batch.image.regions is not None
    rows, tokens = batch.image.regions, batch.question
    features = torch.zeros(batch.size, regions, rows.values.shape[1])
    ids = torch.zeros(batch.size, words, dtype=torch.int64)
    for number, (own, asked) in enumerate(zip(rows.split(), tokens.split(), strict=True)):
        features[number, : len(own)] = own
        ids[number, : len(asked)] = asked
    return features, ids
