"""Attention in blocks of queries: the same numbers from bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import SIMILARITIES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcan.nn.attention import attention, build_similarity

# Five queries at once; their scores outnumber the inputs and the output.
B, N, M, D, ROWS = 2, 23, 20, 4, 5
KINDS = pytest.mark.parametrize("kind", SIMILARITIES)


class Largest(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return out


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((B, N, D), (B, M, D), (B, M, D))
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def masks() -> dict[str, Tensor | None]:
    torch.manual_seed(1)
    return {"none": None, "key": torch.rand(B, 1, M) < 0.6, "pair": torch.rand(B, N, M) < 0.6}


@KINDS
@pytest.mark.parametrize("mask", ["none", "key", "pair"])
@pytest.mark.parametrize("block_elements", [1, ROWS * B * M, ROWS * B * M * D])
def test_blocks_equal_one_piece(kind, mask, block_elements):
    similarity, tensors = build_similarity(kind, D).double(), inputs()
    parameters = (*tensors, *similarity.parameters())
    results = []
    for size in (block_elements, 2**27):
        out, weights = attention(
            *tensors, similarity, masks()[mask], return_weights=True, block_elements=size
        )
        total = (out * torch.arange(out.numel()).view_as(out)).sum()
        gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
        with torch.no_grad():
            lean, _ = attention(*tensors, similarity, masks()[mask], block_elements=size)
        results.append((out, weights, lean, *gradients))
    torch.testing.assert_close(*results)


@KINDS
@pytest.mark.parametrize("explicit", [True, False])
def test_backward_repeats_the_dropout_of_forward(kind, explicit):
    """The output is linear in the value, out = W v, so <out, g> = <v, Wᵀ g> if both saw one W."""
    similarity, (query, key, value) = build_similarity(kind, D).double(), inputs()
    torch.manual_seed(3)
    numbers = {"dropout": 0.5, "return_weights": explicit, "block_elements": ROWS * B * M * D}
    out, _ = attention(query, key, value, similarity, **numbers)
    gradient = torch.randn_like(out)
    (back,) = torch.autograd.grad(out, value, gradient)
    torch.testing.assert_close((out * gradient).sum(), (value * back).sum())


@KINDS
def test_equal_seeds_give_equal_dropout(kind):
    similarity, tensors, outs = build_similarity(kind, D).double(), inputs(), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        out, _ = attention(*tensors, similarity, dropout=0.5, block_elements=ROWS * B * M * D)
        outs.append(out)
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    ("kind", "dropout"), [("scaled_dot", 0.1), ("concat", 0.0), ("perceptron", 0.0)]
)
def test_no_intermediate_exceeds_the_bound(kind, dropout):
    similarity, tensors = build_similarity(kind, D).double(), inputs()
    cost = similarity.cost(D)
    whole, bound = B * N * M * cost, ROWS * B * M * cost
    for block_elements, seen in ((whole, whole), (bound, bound)):
        with Largest() as largest:
            out, _ = attention(*tensors, similarity, dropout=dropout, block_elements=block_elements)
            out.sum().backward()
        assert largest.elements == seen
