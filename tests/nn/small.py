"""Small networks and batches for tests: double precision, seeded, dropout off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcan.batch import Batch, Image, Question, RowLayout, Targets
from mcan.build import build_model
from mcan.config.schema import ModelConfig
from mcan.nn.attention import MultiHeadAttention
from mcan.nn.mcan import MCAN, ModelSizes
from mcan.rows import Packed, filler_rows

LAYOUTS: tuple[RowLayout, ...] = ("padded", "packed")
TOKENS, ANSWERS, FEATURES, GRID = 30, 5, 6, 3


def small_config(encoder: str = "lstm", **changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "heads": 2,
        "depth": 2,
        "reduction_size": 6,
        "fusion_size": 10,
        "dropout": 0.0,
        "question": {"embedding_size": 5, "encoder": encoder},
    }
    return ModelConfig.model_validate(sizes | changes)


def small_model(config: ModelConfig, grid_size: int | None = None) -> MCAN:
    torch.manual_seed(0)
    model = build_model(config, ModelSizes(TOKENS, ANSWERS, FEATURES, grid_size)).double()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start as the identity, which would hide them
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    """The weights of our attention into torch's."""
    projections = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([p.weight for p in projections]).detach()
    theirs.in_proj_bias.data = torch.cat([p.bias for p in projections]).detach()
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def packed_rows(lengths: Sequence[int], filler: int = 0) -> Packed:
    return Packed(torch.tensor(lengths, dtype=torch.int64), filler)


def random_rows(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def make_batch(
    words: Sequence[int],
    regions: Sequence[int],
    grid: Sequence[int] | None = None,
    of_question: Sequence[int] | None = None,
    filled: bool = False,
) -> Batch:
    """A batch as the loader makes it, with boxes, cells of the grid (or of the regions).

    `filled` adds filler rows, which hold numbers that must not be read.
    """

    def fill(x: Tensor, rows: Packed) -> Tensor:
        return torch.cat([x, 1000 + x.new_zeros(rows.filler, *x.shape[1:])])

    def packed(lengths: Sequence[int]) -> Packed:
        return packed_rows(lengths, filler_rows(torch.tensor(lengths)) if filled else 0)

    torch.manual_seed(1)
    word_rows, region_rows = packed(words), packed(regions)
    tokens = torch.randint(0, TOKENS, (sum(words),))
    corners = torch.rand(sum(regions), 4, dtype=torch.float64)
    image = {
        "regions": fill(random_rows(sum(regions), FEATURES), region_rows),
        "boxes": fill(corners, region_rows),
        "cells": fill(torch.randint(0, 9, (sum(regions), 2)), region_rows),
    }
    grid_rows = None
    if grid is not None:
        grid_rows = packed(grid)
        image["cells"] = None
        image["grid"] = fill(random_rows(sum(grid), GRID, 1), grid_rows)
        image["grid_cells"] = fill(torch.randint(0, 9, (sum(grid), 2)), grid_rows)
    shared = None if of_question is None else torch.tensor(of_question)
    return Batch(
        Question(fill(tokens, word_rows) % TOKENS, word_rows),
        Image(region_rows, grid_rows=grid_rows, of_question=shared, **image),
        Targets(*(torch.zeros(0, dtype=torch.int64) for _ in range(3))),
        torch.arange(len(words)),
    )


def enter(batch: Batch, layout: RowLayout, dtype: torch.dtype = torch.float64) -> Batch:
    return batch.enter("cpu", layout, dtype)


def logits_of(model: MCAN, batch: Batch, layout: RowLayout) -> Tensor:
    entered = enter(batch, layout)
    return model(entered.question, entered.image)


def samples(batch: Batch) -> list[dict[str, Tensor | None]]:
    """Of each question its tokens, and the regions, boxes, cells and grid rows of its image."""
    image, words = batch.image, batch.question.rows
    parts: dict[str, list[Any]] = {}
    for name, rows in (
        ("regions", image.rows),
        ("boxes", image.rows),
        ("cells", image.rows),
        ("grid", image.grid_rows),
        ("grid_cells", image.grid_rows),
    ):
        value = getattr(image, name)
        count = len(image.rows.lengths)
        parts[name] = [None] * count if value is None else split(value, rows)
    tokens = split(batch.question.tokens, words)
    shared = image.of_question
    index = range(len(tokens)) if shared is None else shared.tolist()
    return [
        {"tokens": own, **{name: part[i] for name, part in parts.items()}}
        for own, i in zip(tokens, index, strict=True)
    ]


def split(x: Tensor, rows: Packed) -> list[Tensor]:
    """Rows (T, ...) of each sample."""
    return list(torch.split(x[: rows.valid], rows.lengths.tolist()))
