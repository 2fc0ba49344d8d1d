"""Dropout against its definition: what is kept, how often, how scaled, with which gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mcan.nn.dropout import add_dropout, dropout, relu_dropout
from mcan.nn.mlp import MLP

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
RATES = pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
STEPS = 2**16


def dropped_relu(x: Tensor, rate: float) -> Tensor:
    out, scale = relu_dropout(x, rate)
    return out * scale


def within(found: float, probability: float, draws: int) -> bool:
    """Five standard deviations of a binomial share."""
    return abs(found - probability) < 5 * (probability * (1 - probability) / draws) ** 0.5


@RATES
@DTYPES
def test_values_are_zero_or_scaled_and_the_expectation_stays(rate, dtype):
    torch.manual_seed(0)
    share = round((1 - rate) * STEPS) / STEPS
    out = dropout(torch.ones(400, 512, dtype=dtype), rate)
    assert out.dtype == dtype
    assert out.unique().tolist() == [0.0, float(torch.tensor(1 / share, dtype=dtype))]
    assert within(float((out != 0).double().mean()), share, out.numel())
    assert abs(share - (1 - rate)) <= 0.5 / STEPS


@RATES
def test_every_place_in_a_word_is_drawn_alike(rate):
    torch.manual_seed(1)
    kept = dropout(torch.ones(100_000, 4), rate) != 0
    for place in range(4):
        assert within(float(kept[:, place].double().mean()), 1 - rate, len(kept))


def test_draws_do_not_depend_on_each_other():
    torch.manual_seed(2)
    kept = (dropout(torch.ones(2**18), 0.3) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 8, 512):
        correlation = (kept[distance:] * kept[:-distance]).mean() / (0.7 * 0.3)
        assert abs(float(correlation)) < 5 / 2**9


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 7), (2, 0, 3)])
def test_any_shape(shape):
    x = torch.ones(shape)
    assert dropout(x, 0.5).shape == dropped_relu(x, 0.5).shape == x.shape
    assert add_dropout(x, x, 0.5).shape == x.shape


def test_masks_follow_from_the_generator_alone():
    x, outs = torch.ones(1000), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs += [dropout(x, 0.5), dropout(x, 0.5)]
    assert torch.equal(outs[0], outs[2])
    assert torch.equal(outs[1], outs[3])
    assert not torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[4])


@DTYPES
def test_rate_zero_draws_nothing(dtype):
    x, y = torch.randn(20, dtype=dtype), torch.randn(20, dtype=dtype)
    state = torch.get_rng_state()
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(add_dropout(y, x, 0.0), y + x)
    assert torch.equal(dropped_relu(x, 0.0), x.relu())
    assert torch.equal(torch.get_rng_state(), state)


def test_rates_next_to_none_and_to_all():
    x = torch.ones(1000)
    assert torch.equal(dropout(x, 1e-9), x)
    assert dropout(x, 1 - 1e-9).isfinite().all()


@DTYPES
def test_sum_with_a_residual_and_relu_are_fused_only(dtype):
    """Equal seeds draw equal masks; bf16 is rounded once where it was rounded twice."""
    x, y = torch.randn(50, 8, dtype=dtype), torch.randn(50, 8, dtype=dtype)
    found, expected = [], []
    for results, functions in (
        (found, (lambda: add_dropout(y, x, 0.3), lambda: dropped_relu(x, 0.3))),
        (expected, (lambda: y + dropout(x, 0.3), lambda: dropout(x, 0.3).relu())),
    ):
        for function in functions:
            torch.manual_seed(3)
            results.append(function())
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_gradients():
    x, y = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def seeded(function):
        def run(*tensors: Tensor) -> Tensor:
            torch.manual_seed(4)
            return function(*tensors, 0.4)

        return run

    for function, tensors in ((dropout, (x,)), (add_dropout, (y, x)), (dropped_relu, (x,))):
        assert torch.autograd.gradcheck(seeded(function), tensors)
        assert torch.autograd.gradgradcheck(seeded(function), tensors)


@pytest.mark.parametrize("low", ["residual", "x"])
def test_residual_and_x_of_different_types(low):
    """As autocast may hand them over."""
    tensors = {name: torch.randn(50, requires_grad=True) for name in ("residual", "x")}
    mixed = {
        name: tensor.bfloat16() if name == low else tensor * 1 for name, tensor in tensors.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        out = add_dropout(mixed["residual"], mixed["x"], 0.5)
    assert out.dtype == torch.float32
    kept = (out - mixed["residual"]).detach() != 0
    out.sum().backward()
    assert torch.equal(tensors["residual"].grad, torch.ones(50))
    assert torch.equal(tensors["x"].grad, 2.0 * kept)


def test_relu_keeps_no_mask():
    """Its output alone is kept, which the next layer keeps anyway."""
    x, kept = torch.randn(100, requires_grad=True), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out, _ = relu_dropout(x, 0.5)
    assert [tensor.data_ptr() for tensor in kept] == [out.data_ptr()]


def test_perceptron_is_the_sequence_of_its_modules():
    torch.manual_seed(0)
    mlp, x = MLP(3, 5, 0.5, 2), torch.randn(7, 3)
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2))
    plain.load_state_dict(mlp.state_dict())
    torch.testing.assert_close(mlp.eval()(x), plain.eval()(x))
    first, _, _, second = mlp.train()
    torch.manual_seed(1)
    found = mlp(x)
    torch.manual_seed(1)
    torch.testing.assert_close(found, second(dropout(first(x).relu(), 0.5)))
    assert not torch.equal(mlp(x), mlp(x))
