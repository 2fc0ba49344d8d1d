"""What turns pictures into features.

B pictures, H, W their height and width, n rows of a picture, D width of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Described(NamedTuple):
    """One picture: `features` (n, D), and `boxes` (n, 4) in [0, 1] or `grid_shape` (h, w)."""

    features: Tensor
    boxes: Tensor | None = None
    grid_shape: tuple[int, int] | None = None


class Extractor(nn.Module):
    """Pictures (B, 3, H, W) uint8 of one size -> `Described` of each.

    `settings` (JSON) tell how a store was made: stores with the same may be used as one.
    """

    feature_dim: int
    gives_boxes: bool
    settings: Mapping[str, Any]

    def forward(self, pictures: Tensor) -> list[Described]:
        raise NotImplementedError
