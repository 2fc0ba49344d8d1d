"""Attentional reduction against loops over samples and glimpses."""

from __future__ import annotations

import naive
import pytest
import torch
from small import rows

from mcan.nn.reduction import AttentionalReduction

D, HIDDEN, OUT = 6, 5, 7


def make(glimpses: int, dropout: float = 0.0) -> AttentionalReduction:
    torch.manual_seed(0)
    return AttentionalReduction(D, HIDDEN, glimpses, dropout, OUT).double()


@pytest.mark.parametrize("glimpses", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[3, 1, 5], [2, 2], [4], [1]])
def test_equals_loops(glimpses, lengths):
    reduction, x = make(glimpses), rows(lengths, D)
    expected = [naive.reduction(reduction.state_dict(), sample) for sample in x.split()]
    out, weights = reduction(x)
    torch.testing.assert_close(out, torch.stack(expected))
    assert weights.shape == (len(lengths), glimpses, max(lengths))
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert not weights.transpose(1, 2)[~x.layout.mask].any()


def test_glimpses_are_concatenated_one_after_the_other():
    """With the identity as projection, the first d numbers are the first glimpse."""
    reduction, x = AttentionalReduction(D, HIDDEN, 2, 0.0, 2 * D).double(), rows([3, 2], D)
    torch.nn.init.eye_(reduction.projection.weight)
    torch.nn.init.zeros_(reduction.projection.bias)
    out, weights = reduction(x)
    for b, sample in enumerate(x.split()):
        for g in range(2):
            glimpse = weights[b, g, : len(sample)] @ sample
            torch.testing.assert_close(out[b, g * D : (g + 1) * D], glimpse)


def test_samples_without_rows_reduce_to_the_bias():
    reduction = make(2)
    out, weights = reduction(rows([0, 2, 0], D))
    torch.testing.assert_close(out[::2], reduction.projection.bias.expand(2, OUT))
    assert not weights[::2].any()
    assert torch.equal(reduction(rows([0, 0], D))[0], out[::2])
    assert reduction(rows([], D))[0].shape == (0, OUT)


def test_dropout_acts_on_the_hidden_layer_in_training_only():
    reduction, x = make(1, dropout=0.5), rows([3, 2], D)
    assert not torch.equal(reduction(x)[0], reduction(x)[0])
    expected = [naive.reduction(reduction.state_dict(), sample) for sample in x.split()]
    torch.testing.assert_close(reduction.eval()(x)[0], torch.stack(expected))


def test_gradients():
    reduction, x = make(2), rows([3, 1, 0], D)

    def run(values, *_):
        return reduction(x.replace(values))

    tensors = (x.values.requires_grad_(), *reduction.parameters())
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
