"""Optimisers by name. To add one, write a function and put it into `OPTIMIZERS`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def adam(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Adam; weight decay is an L2 penalty."""
    return torch.optim.Adam(groups, fused=True, **options)


def adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, fused=True, **options)


OPTIMIZERS = {"adam": adam, "adamw": adamw}


def build_optimizer(
    model: nn.Module, name: str, weight_decay: float, **options: Any
) -> torch.optim.Optimizer:
    """The optimiser `name` over the parameters that learn.

    `options` are `lr`, `betas` and `eps`. Weight decay leaves out one-dimensional parameters:
    biases and the weights of normalisation layers.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, **options)
