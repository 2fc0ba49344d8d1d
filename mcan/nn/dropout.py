"""Dropout whose masks cost little.

Srivastava et al. 2014, with the kept values divided by the probability of keeping them. On CPU
torch draws a mask number by number, which took a quarter of a bf16 training step. Here each value
takes 16 bits of a random word: rates are multiples of 2^-16, the division is by the exact
probability. What is not kept is cleared bit by bit, which is cheaper than a product. What is drawn
follows from torch's generator alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = 2**16
_BLOCK = 2**18
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each value with probability `rate` < 1, scale the others: the expectation stays."""
    if not rate or not on_cpu(x):
        return F.dropout(x, rate)
    out: Tensor = _Kept.apply(x, *_mask(x, rate))
    return out


def add_dropout(residual: Tensor, x: Tensor, rate: float) -> Tensor:
    """residual + dropout(x)."""
    if not rate or not on_cpu(x):
        return residual + F.dropout(x, rate)
    out: Tensor = _AddKept.apply(residual, x, *_mask(x, rate))
    return out


def on_cpu(x: Tensor) -> bool:
    """Other devices have fast generators, and a compiler fuses torch's own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _mask(x: Tensor, rate: float) -> tuple[Tensor, float]:
    masks = Masks(rate)
    mask = torch.empty_like(x, dtype=torch.int16, memory_format=torch.contiguous_format)
    for part in blocks(mask):
        masks.draw(part)
    return mask, masks.scale


class Masks:
    """The masks of one dropout at `rate`, part by part, from a seed of torch's generator.

    `scale` is 1 / the share kept. A rate of zero draws nothing.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._kept = max(1, round((1 - rate) * _STEPS))
        self.scale = _STEPS / self._kept
        if rate:
            # A generator several times as fast as torch's.
            self._words = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))

    def draw(self, mask: Tensor) -> Tensor:
        """`mask` (n,) int16, overwritten: all bits where a value is kept, none elsewhere."""
        # Four values from a word.
        words = self._words.random_raw(-(-len(mask) // 4)).view(np.int16)
        bits = torch.from_numpy(words)[: len(mask)]
        return torch.le(bits, self._kept - 1 - _STEPS // 2, out=mask).neg_()


def blocks(x: Tensor) -> tuple[Tensor, ...]:
    """All values of `x` in parts (n,) that stay in the cache from one operation to the next."""
    return torch.split(x.view(-1), _BLOCK)


def clear(x: Tensor, mask: Tensor) -> Tensor:
    """`x`, overwritten with zero where `mask` has no bits."""
    integer = _INTEGERS[x.itemsize]
    x.view(integer).bitwise_and_(mask.to(integer))
    return x


# Its own adjoint.
class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return clear(x * scale, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _Kept.apply(grad, mask, ctx.scale), None, None


class _AddKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtypes = scale, (residual.dtype, x.dtype)
        return torch.add(residual, clear(x.clone(), mask), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        residual, x = ctx.dtypes
        return grad.to(residual), _Kept.apply(grad.to(x), mask, ctx.scale), None, None
