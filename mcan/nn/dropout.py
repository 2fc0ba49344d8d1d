"""`nn.Dropout` with masks that cost little on a CPU.

Srivastava et al. 2014. On a CPU torch draws a mask number by number, which took a quarter of a bf16
training step. Here each value takes 16 bits of a random word: rates are multiples of 2^-16, and
kept values are divided by the exact probability. Masks depend on torch's generator alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 2**16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Dropout):
    """Zeroes each value with probability `p` in training and divides the others by 1 - p."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1:
            return super().forward(x)
        # GPUs have fast generators, and a compiler fuses torch's own.
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        out: Tensor = _Keep.apply(x, *_draw_mask(x, self.p))
        return out


def _draw_mask(x: Tensor, p: float) -> tuple[Tensor, float]:
    """int16 of x's shape, all bits set where a value is kept; 1 / the share that is kept."""
    kept = max(1, round((1 - p) * _STEPS))
    seed = int(torch.empty((), dtype=torch.int64).random_())
    # Four values from a word, and a generator several times as fast as torch's.
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)
    bits = torch.from_numpy(words)[: x.numel()].view(x.shape)
    return bits.le_(kept - 1 - _STEPS // 2).neg_(), _STEPS / kept


class _Keep(torch.autograd.Function):
    """Clears what is not kept bit by bit, which is cheaper than a product. Its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        out, integer = x * scale, _INTEGERS[x.itemsize]
        out.view(integer).bitwise_and_(mask.to(integer))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Keep.apply(grad, ctx.saved_tensors[0], ctx.scale), None, None
