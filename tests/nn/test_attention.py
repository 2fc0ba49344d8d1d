"""Attention against loops over pairs of a query and a key, and against torch's own module."""

from __future__ import annotations

import naive
import pytest
import torch
from small import copy_attention, packed_rows, random_rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcan.nn import attention as module
from mcan.nn.attention import SIMILARITIES, MultiHeadAttention, attention, masked_softmax
from mcan.nn.dropout import Dropout
from mcan.rows import Padded

N, M, D, E, HEADS, WIDTH = 3, 5, 4, 6, 2, 8
MASKS = {
    "none": None,
    "key": torch.tensor([True, False, True, True, False]),
    "row": torch.tensor([[False, True, True, False, True]]),
    "pair": torch.tensor([[1, 0, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool(),
    "some_without_key": torch.tensor([[1, 0, 1, 0, 0], [0] * 5, [1] * 5]).bool(),
    "all_without_key": torch.zeros(N, M, dtype=torch.bool),
}
KINDS = pytest.mark.parametrize("kind", SIMILARITIES)


def make(kind: str, heads: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return SIMILARITIES[kind](D, heads).double()


def inputs(*leading: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    shapes = ((N, D), (M, D), (M, E))
    return tuple(
        torch.randn(*leading, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes
    )


@KINDS
@pytest.mark.parametrize("name", MASKS)
def test_equals_loops_over_pairs(kind, name):
    """Each head is an attention of its own."""
    similarity, tensors, mask = make(kind, HEADS), inputs(2, HEADS), MASKS[name]
    out, weights = attention(*tensors, similarity, mask)
    pairs = None if mask is None else mask.expand(N, M)
    for b in range(2):
        for h in range(HEADS):
            state = {name: weight[h] for name, weight in similarity.state_dict().items()}
            expected = naive.attention(kind, state, *(t[b, h] for t in tensors), pairs)
            torch.testing.assert_close((out[b, h], weights[b, h]), expected)
    parameters = (*tensors, *similarity.parameters())
    gradients = torch.autograd.grad(out.square().sum(), parameters, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


@KINDS
@pytest.mark.parametrize(("queries", "keys"), [(0, 2), (2, 0), (0, 0)])
def test_no_queries_or_no_keys(kind, queries, keys):
    query, key, value = torch.ones(2, queries, D), torch.ones(2, keys, D), torch.ones(2, keys, E)
    out, weights = attention(query, key, value, SIMILARITIES[kind](D, 1))
    torch.testing.assert_close(out, torch.zeros(2, queries, E))
    assert weights.shape == (2, queries, keys)


def test_dropout_acts_on_the_weights_and_in_backward_again():
    """out = W v, so <out, g> = <v, Wᵀ g> if both passes saw the same W."""
    query, key, value = inputs(2)
    out, weights = attention(query, key, value, make("scaled_dot"), dropout=Dropout(0.5))
    gradient = torch.randn_like(out)
    (back,) = torch.autograd.grad(out, value, gradient)
    torch.testing.assert_close((out * gradient).sum(), (value * back).sum())
    assert not torch.allclose(out, weights @ value)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


@pytest.mark.parametrize("queries_at_once", [1, 5, 100])
def test_the_perceptrons_hidden_layer_is_bounded(queries_at_once, monkeypatch):
    """It is computed for some queries at a time, in the backward pass too."""
    similarity = make("perceptron", HEADS)
    query, key = (random_rows(n * HEADS, D).view(HEADS, n, D).requires_grad_() for n in (23, 20))
    parameters = (query, key, *similarity.parameters())
    scores = similarity(query, key)
    expected = torch.autograd.grad(scores.square().sum(), parameters)
    bound = queries_at_once * HEADS * 20 * D
    monkeypatch.setattr(module, "MAX_HIDDEN", bound)
    with Largest() as largest:
        blocks = similarity(query, key)
        gradients = torch.autograd.grad(blocks.square().sum(), parameters)
    torch.testing.assert_close((blocks, gradients), (scores, expected))
    assert largest.numbers == max(min(bound, 23 * HEADS * 20 * D), scores.numel())


@KINDS
def test_gradients(kind):
    similarity, mask = make(kind), MASKS["some_without_key"]
    tensors = (*inputs(), *similarity.parameters())
    assert torch.autograd.gradcheck(
        lambda *tensors: attention(*tensors[:3], similarity, mask)[0], tensors
    )


def test_large_scores_do_not_overflow():
    scores = torch.tensor([[1e4, -1e4, 3e38], [3e38, 3e38, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(masked_softmax(scores, mask), expected)
    torch.testing.assert_close(masked_softmax(scores, mask, some_empty=False), expected)
    half = masked_softmax(scores.clamp(max=6e4).half(), mask)
    torch.testing.assert_close(half, expected.half())


def multi_head(heads: int = 2, kind: str = "scaled_dot", dropout: float = 0.0):
    torch.manual_seed(0)
    return MultiHeadAttention(WIDTH, heads, dropout, kind).double()


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("lengths", [[4, 1, 3], [3, 3, 3], [1, 1, 1]])
@pytest.mark.parametrize("inference", [True, False])
def test_multi_head_equals_torch(heads, lengths, inference):
    """By the fused kernel in inference, by products otherwise."""
    ours, rows, keys = multi_head(heads), packed_rows([2, 5, 1]), packed_rows(lengths)
    twin = nn.MultiheadAttention(WIDTH, heads, batch_first=True).double()
    copy_attention(ours, twin)
    ours.train(not inference)
    x, source = random_rows(8, WIDTH), random_rows(keys.valid, WIDTH, 1)
    padded, padded_source = rows.pad(x), keys.pad(source)
    expected, _ = twin(padded, padded_source, padded_source, ~keys.mask)
    with torch.inference_mode(inference):
        torch.testing.assert_close(ours(x, source, rows, keys), expected[rows.mask])
        found = ours(padded, padded_source, Padded(rows.mask, False), Padded(keys.mask, False))
        torch.testing.assert_close(found[rows.mask], expected[rows.mask])


@KINDS
@pytest.mark.parametrize("inference", [True, False])
def test_samples_without_keys_get_the_bias(kind, inference):
    ours, rows, x = multi_head(kind=kind), packed_rows([2, 1]), random_rows(3, WIDTH)
    bias = ours.output.bias.expand(2, WIDTH)
    ours.train(not inference)
    with torch.inference_mode(inference):
        for lengths in ([0, 0], [0, 2]):
            keys = packed_rows(lengths)
            source = random_rows(keys.valid, WIDTH)
            torch.testing.assert_close(ours(x, source, rows, keys)[:2], bias)
            out = ours(rows.pad(x), keys.pad(source), Padded(rows.mask), Padded(keys.mask))
            torch.testing.assert_close(out[0], bias)
