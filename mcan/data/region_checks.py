"""What may go into a region store; `ValueError` says what is wrong with an image.

n rows of an image, D width of a feature row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray

_BOX_TOLERANCE = 1e-3


def storable_features(
    features: ArrayLike, dim: int | None, dtype: DTypeLike
) -> NDArray[np.floating]:
    """(n, D) features as `dtype`, float16 or float32: finite, n >= 1, D is `dim` if given."""
    values = np.asarray(features)
    if values.ndim != 2 or 0 in values.shape or dim not in (None, values.shape[1]):
        width = "D >= 1" if dim is None else dim
        raise ValueError(f"features are {tuple(values.shape)}, expected (n >= 1, {width})")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"features are {values.dtype}, expected numbers")
    stored = _cast(values, np.dtype(dtype))
    if not _all_finite(stored):
        bad = values[~np.isfinite(stored)][0]
        if np.isfinite(bad):
            raise ValueError(
                f"a feature value of {bad} does not fit {stored.dtype}; write the store with a "
                "wider dtype"
            )
        raise ValueError(f"a feature value of {bad} is not finite")
    return stored


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.floating]:
    """C-contiguous; a copy only where needed. What is too large becomes infinite."""
    if values.dtype == np.float32 and dtype == np.float16 and min(values.strides) >= 0:
        # Rounds as numpy does, ten times as fast.
        source = torch.from_numpy(np.require(values, requirements="W"))
        halves = source.to(torch.float16, memory_format=torch.contiguous_format)
        return np.asarray(halves.numpy())
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(dtype, order="C", copy=False))


def _all_finite(values: NDArray[np.floating]) -> bool:
    if values.dtype == np.float16:
        # The exponent bits; np.isfinite takes ten times as long on halves.
        return bool(((values.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(values).all())


def storable_boxes(boxes: ArrayLike, count: int) -> NDArray[np.float32]:
    """(count, 4) boxes x1 y1 x2 y2 within [0, 1]; what is a little outside is clipped."""
    values = np.asarray(boxes, dtype=np.float32)
    if values.shape != (count, 4):
        raise ValueError(f"boxes are {values.shape}, expected ({count}, 4)")
    inside = (values >= -_BOX_TOLERANCE) & (values <= 1 + _BOX_TOLERANCE)
    right = inside.all(1) & (values[:, :2] <= values[:, 2:]).all(1)
    if not right.all():
        raise ValueError(
            f"box {values[~right][0].tolist()} is not x1 <= x2, y1 <= y2 within [0, 1]; divide "
            "pixel coordinates by the width and height of the image"
        )
    return values.clip(0, 1)


def storable_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels."""
    if min(size) < 1:
        raise ValueError(f"size is {size}, expected a positive width and height")
    return int(size[0]), int(size[1])


def storable_grid_shape(grid_shape: tuple[int, int], count: int) -> tuple[int, int]:
    """(rows, columns) of the `count` cells."""
    if min(grid_shape) < 1 or grid_shape[0] * grid_shape[1] != count:
        raise ValueError(f"grid_shape {grid_shape} does not make its {count} rows")
    return int(grid_shape[0]), int(grid_shape[1])
