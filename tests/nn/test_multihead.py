"""Multi-head attention against torch's own and against loops over samples, heads and pairs."""

from __future__ import annotations

import naive
import pytest
import torch
from small import SIMILARITIES, rows
from torch import nn

from mcan.nn.multihead import MultiHeadAttention

D = 8


def make(heads: int = 2, kind: str = "scaled_dot") -> MultiHeadAttention:
    torch.manual_seed(0)
    return MultiHeadAttention(D, heads, similarity=kind).double()


def torch_twin(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    twin = nn.MultiheadAttention(D, ours.heads, batch_first=True).double()
    projections = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        twin.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    twin.out_proj.load_state_dict(ours.output.state_dict())
    return twin


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("lengths", [[4, 1, 3], [3, 3, 3], [1, 1, 1]])
def test_equals_torch(heads, lengths):
    ours, query, source = make(heads), rows([2, 5, 1], D), rows(lengths, D, seed=1)
    padded, keys = query.padded(), source.padded()
    expected, expected_weights = torch_twin(ours)(
        padded, keys, keys, ~source.layout.mask, average_attn_weights=False
    )
    out, weights = ours(query, source, return_weights=True)
    valid = query.layout.mask
    torch.testing.assert_close(out, expected[valid])
    by_query = (w.transpose(1, 2)[valid] for w in (weights, expected_weights))
    torch.testing.assert_close(*by_query)
    torch.testing.assert_close(ours(query, source)[0], out)


@pytest.mark.parametrize("kind", SIMILARITIES)
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_loops(kind, heads):
    ours, query, source = make(heads, kind), rows([2, 3, 1], D), rows([3, 1, 2], D, seed=1)
    expected = [
        naive.multihead(ours.state_dict(), kind, heads, q, s)
        for q, s in zip(query.split(), source.split(), strict=True)
    ]
    torch.testing.assert_close(ours(query, source)[0], torch.cat(expected))


def test_the_number_of_parameters_does_not_depend_on_heads():
    counts = {sum(p.numel() for p in make(heads).parameters()) for heads in (1, 2, 4, 8)}
    assert counts == {4 * (D * D + D)}


def test_dropout_is_for_training_only():
    ours, query = make(), rows([4, 2], D)
    ours.dropout = 0.5
    assert not torch.equal(ours(query, query)[0], ours(query, query)[0])
    ours.eval()
    assert torch.equal(ours(query, query)[0], ours(query, query)[0])


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_samples_without_keys_and_empty_batches(kind):
    ours, bias = make(kind=kind), make(kind=kind).output.bias
    for lengths in ([0, 0], [0, 2]):
        out, _ = ours(rows([2, 1], D), rows(lengths, D))
        torch.testing.assert_close(out[:2], bias.expand(2, D))
    assert ours(rows([], D), rows([], D), return_weights=True)[0].shape == (0, D)


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_gradients(kind):
    ours, query, source = make(kind=kind), rows([2, 1], D), rows([1, 3], D, seed=1)

    def run(query_values, source_values, *_):
        return ours(query.replace(query_values), source.replace(source_values))[0]

    tensors = (query.values.requires_grad_(), source.values.requires_grad_(), *ours.parameters())
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_heads_that_do_not_divide_the_size():
    with pytest.raises(ValueError, match="size 8 is not divisible by heads 3"):
        MultiHeadAttention(D, 3)
