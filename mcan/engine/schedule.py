"""Learning-rate schedules: pure functions of the step.

A step is one update, counted from 0; an epoch has `epoch_steps` of them. Each function gives the
factor of the base rate at a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def plateau(
    questions: int,
    batch_size: int,
    epoch_steps: int,
    warmup_epochs: int = 3,
    decay_after: Sequence[int] = (10, 12),
    decay: float = 0.2,
) -> Schedule:
    """The reference's schedule: k plateaus at 1/(k+1) ... k/(k+1), then 1, then steps down.

    As in the reference, warm-up plateaus end after int(questions / batch_size · epochs) updates,
    while an epoch that drops its last incomplete batch has floor(questions / batch_size): a plateau
    may reach up to k-1 updates into the next epoch. Steps down happen at the start of an epoch.
    """
    boundaries = [int(questions / batch_size * k) for k in range(1, warmup_epochs + 1)]

    def factor(step: int) -> float:
        warm = next((k for k, end in enumerate(boundaries, 1) if step < end), warmup_epochs + 1)
        decays = sum(step >= epoch * epoch_steps for epoch in decay_after)
        return warm / (warmup_epochs + 1) * decay**decays

    return factor


def cosine(
    epoch_steps: int, epochs: int, warmup_epochs: float = 1.0, final: float = 0.0
) -> Schedule:
    """Linear warm-up over `warmup_epochs`, then half a cosine from 1 down to `final`."""
    warmup = round(warmup_epochs * epoch_steps)
    rest = max(1, epochs * epoch_steps - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / rest)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
