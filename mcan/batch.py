"""What flows from the loader through the model to loss and metric: a `Batch` of tensors.

B questions, n words of all of them together, m image rows of all of them together, A answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcan.ragged import Ragged, pinned


class _Movable:
    """Moves every tensor that a frozen dataclass holds."""

    def to(self: _T, device: torch.device | str, non_blocking: bool = False) -> _T:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self: _T) -> _T:
        """Page-locked copies, from which `to` can copy to a GPU while it computes."""
        return self._map(
            lambda value: pinned(value) if isinstance(value, Tensor) else value.pin_memory()
        )

    def _map(self: _T, move: Callable[[Any], Any]) -> _T:
        moved = {
            field.name: move(value)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), (Tensor, Ragged, _Movable))
        }
        return replace(self, **moved)  # type: ignore[type-var]


_T = TypeVar("_T", bound=_Movable)


@dataclass(frozen=True)
class ImageInput(_Movable):
    """The images of a batch: region rows or pixels.

    They are one per question, or `of_question` (B,) has the number of each question's image.

    - `regions`: (m, D) packed feature rows, with `boxes` (m, 4), normalised x1 y1 x2 y2, where the
      store has them and `cells` (m, 2), row and column, where the rows are the cells of a grid;
    - `grid`: further rows (m', D') appended after the regions, with `grid_cells` (m', 2);
    - `pixels`: (B, 3, H, W) uint8, for the convolutional stem.
    """

    regions: Ragged | None = None
    boxes: Tensor | None = None
    cells: Tensor | None = None
    grid: Ragged | None = None
    grid_cells: Tensor | None = None
    pixels: Tensor | None = None
    of_question: Tensor | None = None


@dataclass(frozen=True)
class Targets(_Movable):
    """Soft scores as a sparse (B, A) matrix: entry (`rows`[i], `answers`[i]) is `scores`[i]."""

    rows: Tensor
    answers: Tensor
    scores: Tensor

    def dense(self, batch: int, answers: int) -> Tensor:
        """(B, A) float32."""
        out = torch.zeros(batch, answers, device=self.scores.device)
        return out.index_put_((self.rows, self.answers), self.scores)


@dataclass(frozen=True)
class Batch(_Movable):
    """`question` packs token ids (n,) int64; `index` (B,) int64 is the row in the dataset."""

    question: Ragged
    image: ImageInput
    targets: Targets
    index: Tensor

    @property
    def size(self) -> int:
        return len(self.index)
