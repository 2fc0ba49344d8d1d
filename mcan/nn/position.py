"""Sinusoidal position encodings (Vaswani et al. 2017, section 3.5), in one and two dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal(positions: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(T,) positions -> (T, size): sin(p / 10000^(2i/size)), cos(...) in turn.

    Computed in float32 or better and rounded to `dtype`. Raises `ValueError` for an odd `size`.
    """
    if size % 2:
        raise ValueError(f"a position encoding needs an even size, not {size}")
    precise = torch.promote_types(dtype, torch.float32)
    index = torch.arange(0, size, 2, device=positions.device, dtype=precise)
    angle = positions.to(precise)[:, None] * torch.exp(index * (-math.log(10000.0) / size))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(dtype)


def sinusoidal_2d(cells: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(T, 2) row and column of grid cells -> (T, size): half encodes the row, half the column."""
    return torch.cat([sinusoidal(cells[:, axis], size // 2, dtype) for axis in (0, 1)], 1)
