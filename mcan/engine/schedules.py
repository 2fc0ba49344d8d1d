"""Learning-rate schedules: sections of the config, each a pure function of the step.

`factor` gives what `Trainer.update` multiplies `optimizer.lr` by at a step. Steps are updates,
counted from 0 here and from 1 in metrics.jsonl; an epoch has `epoch_steps` of them. To add a
schedule, write a section and put it into `Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from mcan.section import PositiveInt, Section


@dataclass(frozen=True)
class RunLength:
    """What a schedule may depend on: `questions` of the training splits, and steps."""

    questions: int
    batch_size: int
    epoch_steps: int
    epochs: int


class Plateau(Section):
    """The reference's: warm-up in plateaus, then steps down."""

    name: Literal["plateau"] = "plateau"
    """This kind of schedule."""
    warmup_epochs: int = Field(3, ge=0)
    """k: epochs 1..k run at 1/(k+1), ..., k/(k+1) of the base rate."""
    decay_after: tuple[PositiveInt, ...] = (10, 12)
    """Epochs after which the rate is multiplied by `decay`."""
    decay: float = Field(0.2, gt=0, le=1)
    """Factor of each step down."""

    def contradictions(self) -> Iterator[str]:
        if any(a >= b for a, b in zip(self.decay_after, self.decay_after[1:], strict=False)):
            yield "{decay_after} must rise from item to item"
        if self.decay_after and self.decay_after[0] < self.warmup_epochs:
            yield "{decay_after} starts before {warmup_epochs} have passed"

    def factor(self, step: int, run: RunLength) -> float:
        """As in the reference, the k-th warm-up plateau ends after int(questions / batch_size · k)
        updates, while an epoch that drops its last incomplete batch has floor(questions /
        batch_size). A plateau may therefore reach up to k-1 updates into the next epoch. Steps down
        happen at the start of an epoch.
        """
        ends = (int(run.questions / run.batch_size * k) for k in range(1, self.warmup_epochs + 1))
        plateau = 1 + sum(step >= end for end in ends)
        decays = sum(step >= epoch * run.epoch_steps for epoch in self.decay_after)
        return plateau / (self.warmup_epochs + 1) * self.decay**decays


class Cosine(Section):
    """Linear warm-up, then half a cosine down."""

    name: Literal["cosine"]
    """This kind of schedule."""
    warmup_epochs: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Length of the linear warm-up in epochs; a fraction is allowed."""
    final: float = Field(0.0, ge=0, le=1)
    """Rate at the end, as a fraction of the base rate."""

    def factor(self, step: int, run: RunLength) -> float:
        """(step + 1) / warm-up steps, then from 1 down to `final` at the end of the last epoch."""
        warmup = round(self.warmup_epochs * run.epoch_steps)
        if step < warmup:
            return (step + 1) / warmup
        rest = max(1, run.epochs * run.epoch_steps - warmup)
        progress = min(1.0, (step - warmup) / rest)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


Schedule = Annotated[Plateau | Cosine, Field(discriminator="name")]
