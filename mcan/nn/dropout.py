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
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each value with probability `rate` < 1, scale the others: the expectation stays."""
    if not rate or not _on_cpu(x):
        return F.dropout(x, rate)
    out: Tensor = _Kept.apply(x, *_draw(x, rate))
    return out


def add_dropout(residual: Tensor, x: Tensor, rate: float) -> Tensor:
    """residual + dropout(x)."""
    if not rate or not _on_cpu(x):
        return residual + F.dropout(x, rate)
    out: Tensor = _AddKept.apply(residual, x, *_draw(x, rate))
    return out


def relu_dropout(x: Tensor, rate: float) -> tuple[Tensor, float]:
    """`out`, `scale` with out · scale = dropout(relu(x)): the next product can scale its weight."""
    if not rate or not _on_cpu(x):
        return F.dropout(x.relu(), rate), 1.0
    mask, scale = _draw(x, rate)
    out: Tensor = _KeptRelu.apply(x, mask)
    return out, scale


def _on_cpu(x: Tensor) -> bool:
    """Other devices have fast generators, and a compiler fuses torch's own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _draw(x: Tensor, rate: float) -> tuple[Tensor, float]:
    """All bits of an int16 where a value is kept and none elsewhere; 1 / the share kept."""
    kept = max(1, round((1 - rate) * _STEPS))
    seed = int(torch.empty((), dtype=torch.int64).random_())
    # Four values from a word, and a generator several times as fast as torch's.
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)
    bits = torch.from_numpy(words)[: x.numel()].view(x.shape)
    return bits.le_(kept - 1 - _STEPS // 2).neg_(), _STEPS / kept


def _clear(x: Tensor, mask: Tensor) -> Tensor:
    """`x`, overwritten."""
    integer = _INTEGERS[x.itemsize]
    x.view(integer).bitwise_and_(mask.to(integer))
    return x


# Its own adjoint.
class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _clear(x * scale, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _Kept.apply(grad, mask, ctx.scale), None, None


class _AddKept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale, ctx.dtypes = scale, (residual.dtype, x.dtype)
        return torch.add(residual, _clear(x.clone(), mask), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        residual, x = ctx.dtypes
        return grad.to(residual), _Kept.apply(grad.to(x), mask, ctx.scale), None, None


# What was kept and positive is what the output shows positive: no mask is kept for the gradient.
class _KeptRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        out = _clear(x.relu(), mask)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0), None
