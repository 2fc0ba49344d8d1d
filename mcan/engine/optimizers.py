"""Optimisers by name. To add one, write a function and put it into `OPTIMIZERS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mcan.errors import ConfigError, shorten


def adam(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Adam; weight decay is an L2 penalty."""
    return torch.optim.Adam(groups, fused=True, **options)


def adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, fused=True, **options)


OPTIMIZERS = {"adam": adam, "adamw": adamw}


def build_optimizer(
    model: nn.Module,
    name: str,
    weight_decay: float,
    groups: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimiser `name` over the parameters that learn.

    `options` are `lr`, `betas` and `eps`; each of `groups` gives the parameters whose names match
    its `match` another `lr`. Weight decay leaves out one-dimensional parameters: biases and the
    weights of normalisation layers. Raises `ConfigError` for a group without parameters.
    """
    parts: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matching = (n for n, g in enumerate(groups) if fnmatchcase(parameter_name, g["match"]))
            part = next(matching, len(groups)), parameter.ndim < 2
            parts.setdefault(part, []).append(parameter)
    for number, group in enumerate(groups):
        if not any(part == number for part, _ in parts):
            raise ConfigError(
                f"optimizer.groups: no parameter is left for {group['match']!r}: none matches, or "
                "all that match are frozen or in an earlier group; parameters: "
                f"{shorten((name for name, _ in model.named_parameters()), 3)}"
            )
    rates = [*({"lr": group["lr"]} for group in groups), {}]
    return OPTIMIZERS[name](
        [
            {"params": parts[part], "weight_decay": 0.0 if part[1] else weight_decay}
            | rates[part[0]]
            for part in sorted(parts)
        ],
        **options,
    )
