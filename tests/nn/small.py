"""Small models and inputs for tests: everything in double precision, seeded, dropout off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mcan.batch import ImageInput
from mcan.config.schema import ModelConfig
from mcan.nn.mcan import MCAN, ModelSizes, build_model
from mcan.ragged import Layout, Ragged

SIMILARITIES = ("dot", "scaled_dot", "general", "concat", "perceptron")
MCA_LAYERS = ("id_ga", "sa_ga", "sa_sga")
CASCADES = ("stacking", "encoder_decoder")
ENCODERS = ("lstm", "positional")

TOKENS, ANSWERS, FEATURES = 30, 5, 6


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
    return build_model(config, ModelSizes(TOKENS, ANSWERS, FEATURES, grid_size)).double()


def rows(lengths: list[int], width: int, seed: int = 0) -> Ragged:
    """Normal random rows (T, width)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), width, generator=generator, dtype=torch.float64)
    return Ragged(values, Layout.of(torch.tensor(lengths, dtype=torch.int64)))


def tokens(lengths: list[int], seed: int = 0) -> Ragged:
    """Random token ids (T,)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, TOKENS, (sum(lengths),), generator=generator)
    return Ragged(values, Layout.of(torch.tensor(lengths, dtype=torch.int64)))


def regions(lengths: list[int], seed: int = 1) -> ImageInput:
    return ImageInput(regions=rows(lengths, FEATURES, seed))


def one_by_one(model: MCAN, question: Ragged, image: ImageInput) -> Tensor:
    """Logits (B, A) of a forward pass per sample."""
    assert image.regions is not None
    pairs = zip(question.split(), image.regions.split(), strict=True)
    return torch.cat([model(Ragged.of([q]), ImageInput(regions=Ragged.of([r]))) for q, r in pairs])
