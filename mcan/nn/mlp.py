"""The two-layer perceptron of feed-forward sublayers and of attentional reduction."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mcan.nn.dropout import Masks, blocks, clear, on_cpu


class MLP(nn.Sequential):
    """W_2 dropout(relu(W_1 x + b_1)) + b_2: (T, size) -> (T, out) with `inner` units.

    A plain sequence of modules. Trained on CPU it is one function: what is between the two products
    is done in place, by parts that stay in the cache.
    """

    def __init__(self, size: int, inner: int, dropout: float, out: int) -> None:
        super().__init__(
            nn.Linear(size, inner),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(inner, out),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not on_cpu(x) or not torch.is_grad_enabled():
            plain: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return plain
        first, second = cast(nn.Linear, self[0]), cast(nn.Linear, self[3])
        masks = Masks(cast(nn.Dropout, self[2]).p if self.training else 0.0)
        # The scale of dropout on the weight, which has fewer numbers than the rows.
        weight = second.weight if masks.scale == 1 else second.weight * masks.scale
        tensors = [x, first.weight, first.bias, weight, second.bias]
        if torch.is_autocast_enabled("cpu"):
            tensors = [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors]
        out: Tensor = _Perceptron.apply(*tensors, masks)
        return out


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, masks: Masks
    ) -> Tensor:
        hidden = torch.addmm(b1, x, w1.t())
        for part in blocks(hidden):
            part.relu_()
            if masks.rate:
                clear(part, masks.draw(torch.empty(len(part), dtype=torch.int16)))
        ctx.save_for_backward(x, w1, w2, hidden)
        return torch.addmm(b2, hidden, w2.t())

    # What was kept and positive is what the hidden values show positive: no mask is saved.
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, hidden = ctx.saved_tensors
        inner = grad @ w2
        torch.ops.aten.threshold_backward.grad_input(inner, hidden, 0, grad_input=inner)
        return inner @ w1, inner.t() @ x, inner.sum(0), grad.t() @ hidden, grad.sum(0), None
