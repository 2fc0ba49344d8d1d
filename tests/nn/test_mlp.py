"""The perceptron against the sequence of its modules, and its gradients against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mcan.nn.dropout import dropout
from mcan.nn.mlp import MLP


def plain(mlp: MLP, x: Tensor) -> Tensor:
    first, _, between, second = mlp
    rate = between.p if mlp.training else 0.0
    return second(dropout(first(x).relu(), rate))


def results(function, mlp: MLP, x: Tensor) -> list[Tensor]:
    """The output and all gradients, with the masks of one seed."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = function(x)
    mlp.zero_grad()
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in mlp.parameters())]


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("training", [True, False])
def test_same_as_its_modules(rows, rate, training, monkeypatch):
    monkeypatch.setattr("mcan.nn.dropout._BLOCK", 64)  # several parts, which end within rows
    torch.manual_seed(0)
    mlp = MLP(6, 12, rate, 3).double().train(training)
    x = torch.randn(rows, 6, dtype=torch.float64)
    found = results(mlp, mlp, x)
    torch.testing.assert_close(found, results(lambda x: plain(mlp, x), mlp, x))
    with torch.no_grad():
        torch.testing.assert_close(mlp.eval()(x), nn.Sequential(*mlp)(x))


def test_bf16_is_as_close_to_float32_as_its_modules():
    torch.manual_seed(0)
    mlp, x = MLP(64, 256, 0.1, 64), torch.randn(100, 64)
    exact = results(lambda x: plain(mlp, x), mlp, x)
    with torch.autocast("cpu", torch.bfloat16):
        found, modules = results(mlp, mlp, x), results(lambda x: plain(mlp, x), mlp, x)
    assert found[0].dtype == torch.bfloat16
    assert [tensor.dtype for tensor in found[1:]] == [torch.float32] * 5
    for number, expected, other in zip(found, exact, modules, strict=True):
        limit = 1.2 * (other - expected).norm() + 1e-6
        assert (number - expected).norm() < limit


def test_gradients():
    mlp = MLP(3, 5, 0.4, 2).double()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)

    def seeded(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(4)
        return mlp(x)

    assert torch.autograd.gradcheck(seeded, (x, *mlp.parameters()))


def test_hidden_values_alone_are_kept():
    """No mask; and the rows that came in, which the layer before keeps anyway."""
    x, kept = torch.randn(10, 6, requires_grad=True), []
    mlp = MLP(6, 20, 0.5, 6)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mlp(x)
    assert sorted(tensor.numel() for tensor in kept if tensor.requires_grad is False) == [200]


def test_every_draw_differs():
    torch.manual_seed(0)
    mlp, x = MLP(6, 20, 0.5, 6), torch.randn(10, 6)
    assert not torch.equal(mlp(x), mlp(x))
