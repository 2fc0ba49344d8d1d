"""Optimiser and schedule from their config sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mcan.engine.schedule import Schedule, cosine, plateau

if TYPE_CHECKING:
    from mcan.config.schema import Config, OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that learn, with torch's fused update where there is one.

    Weight decay leaves out biases and the gains of normalisation layers (one-dimensional
    parameters).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[
        config.name
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def build_schedule(config: Config, questions: int, epoch_steps: int) -> Schedule:
    """The factor of the base rate at each step, for `questions` in the training splits."""
    schedule, train = config.schedule, config.train
    if schedule.name == "plateau":
        return plateau(
            questions,
            train.batch_size,
            epoch_steps,
            schedule.warmup_epochs,
            schedule.decay_after,
            schedule.decay,
        )
    return cosine(epoch_steps, train.epochs, schedule.warmup_epochs, schedule.final)
