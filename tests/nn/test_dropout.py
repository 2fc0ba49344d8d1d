"""Dropout against its definition: what is kept, how often, how scaled, with which gradient."""

from __future__ import annotations

import pytest
import torch

from mcan.nn.dropout import Dropout

RATES = pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
STEPS = 2**16


def within(found: float, probability: float, draws: int) -> bool:
    """Five standard deviations of a binomial share."""
    return abs(found - probability) < 5 * (probability * (1 - probability) / draws) ** 0.5


@RATES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_zero_or_scaled_and_the_expectation_stays(rate, dtype):
    torch.manual_seed(0)
    share = round((1 - rate) * STEPS) / STEPS
    out = Dropout(rate)(torch.ones(400, 512, dtype=dtype))
    assert out.dtype == dtype
    assert out.unique().tolist() == [0.0, float(torch.tensor(1 / share, dtype=dtype))]
    assert within(float((out != 0).double().mean()), share, out.numel())
    assert abs(share - (1 - rate)) <= 0.5 / STEPS
    for place in range(4):  # of the four values from one random word
        kept = out.flatten()[place::4] != 0
        assert within(float(kept.double().mean()), share, len(kept))


def test_draws_do_not_depend_on_each_other():
    torch.manual_seed(2)
    kept = (Dropout(0.3)(torch.ones(2**18)) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 8, 512):
        correlation = (kept[distance:] * kept[:-distance]).mean() / (0.7 * 0.3)
        assert abs(float(correlation)) < 5 / 2**9


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 7), (2, 0, 3)])
def test_any_shape_and_stride(shape):
    for x in (torch.ones(shape), torch.ones(*shape, 2)[..., 0]):
        assert Dropout(0.5)(x).shape == shape


def test_masks_follow_from_the_generator_alone():
    x, outs = torch.ones(1000), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs += [Dropout(0.5)(x), Dropout(0.5)(x)]
    assert torch.equal(outs[0], outs[2])
    assert torch.equal(outs[1], outs[3])
    assert not torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[4])


@pytest.mark.parametrize("part", [Dropout(0.0), Dropout(0.5).eval()])
def test_without_dropout_nothing_is_drawn(part):
    x, state = torch.randn(20), torch.get_rng_state()
    assert torch.equal(part(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_extreme_rates():
    x = torch.ones(1000)
    assert torch.equal(Dropout(1e-9)(x), x)
    assert Dropout(1 - 1e-9)(x).isfinite().all()
    assert not Dropout(1.0)(x).any()


def test_gradients():
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(4)
        return Dropout(0.4)(x)

    assert torch.autograd.gradcheck(seeded, x)
    assert torch.autograd.gradgradcheck(seeded, x)
