"""A part that is replaced, hooked, parametrised or wrapped takes effect in every mode."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from small import GRID, LAYOUTS, logits_of, make_batch, small_config, small_model
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mcan.nn.attention import SIMILARITIES, MultiHeadAttention, ScaledDot
from mcan.nn.dropout import Dropout
from mcan.nn.encoders import QUESTION_ENCODERS, ConvStem
from mcan.nn.mcan import MCAN

OPTIONS = {"boxes": True, "box_embedding_size": 4}
BATCH = make_batch([3, 1, 5], [10, 4, 33], grid=[2, 3, 1])
RUNS = pytest.mark.parametrize(
    ("layout", "training", "encoder"),
    list(itertools.product(LAYOUTS, (True, False), QUESTION_ENCODERS)),
)


def make(encoder: str = "lstm", similarity: str = "scaled_dot") -> MCAN:
    config = small_config(encoder, image=OPTIONS, similarity=similarity, glimpses=2, depth=1)
    return small_model(config, GRID)


def run(model: MCAN, layout: str, training: bool) -> Tensor:
    model.train(training)
    with torch.set_grad_enabled(training):
        return logits_of(model, BATCH, layout).detach()


def replaced(model: MCAN, name: str, change: Callable[[nn.Module], nn.Module]) -> MCAN:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, change(model.get_submodule(name)))
    return model


def names(model: MCAN, *kinds: type) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, kinds)]


class LoRA(nn.Module):
    """As adapter libraries wrap a Linear: a `forward` that takes its input alone."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.a = nn.Linear(inner.in_features, 2, bias=False, dtype=torch.float64)
        self.b = nn.Linear(2, inner.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.b(self.a(x))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Squared(ScaledDot):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        return super().forward(query, key).square()


@RUNS
def test_activations(layout, training, encoder):
    expected, found = run(make(encoder), layout, training), names(make(encoder), nn.ReLU)
    assert len(found) == 4
    for name in found:
        changed = replaced(make(encoder), name, lambda _: nn.GELU())
        assert not torch.allclose(run(changed, layout, training), expected), name


@RUNS
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_hooks_on_every_part(layout, training, encoder, similarity):
    model, seen = make(encoder, similarity), []
    # A list of layers is never called itself.
    parts = [n for n, part in model.named_modules() if not isinstance(part, nn.ModuleList)]
    for name in parts:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    run(model, layout, training)
    assert sorted(set(seen)) == sorted(parts)


@RUNS
def test_a_hook_changes_what_follows(layout, training, encoder):
    expected = run(make(encoder), layout, training)
    for name in names(make(encoder), nn.Linear, nn.LayerNorm, Dropout, ScaledDot):
        changed = make(encoder)
        # Keys' biases have no effect, because they add the same to each score of a query.
        changed.get_submodule(name).register_forward_hook(lambda _, inputs, out: 1.5 * out)
        assert not torch.allclose(run(changed, layout, training), expected), name


@RUNS
def test_parametrisations_and_wrappers_of_every_linear_map(layout, training, encoder):
    expected, found = run(make(encoder), layout, training), names(make(encoder), nn.Linear)
    assert len(found) == 4 * 3 + 2 * 2 + 3 * 2 + 4 + (encoder == "positional")
    for name in found:
        changed = make(encoder)
        parametrize.register_parametrization(changed.get_submodule(name), "weight", Doubled())
        assert not torch.allclose(run(changed, layout, training), expected), name
        changed = replaced(make(encoder), name, LoRA)
        assert not torch.allclose(run(changed, layout, training), expected), name


@RUNS
@pytest.mark.parametrize("how", ["subclass", "instance"])
def test_a_similarity_with_its_own_forward(layout, training, encoder, how):
    """It is not mistaken for the dot product of the fused kernel, in evaluation either."""
    expected, changed = run(make(encoder), layout, training), make(encoder)
    for name in names(changed, ScaledDot):
        if how == "subclass":
            replaced(changed, name, lambda part: Squared(4))
        else:
            changed.get_submodule(name).forward = lambda q, k: q @ k.mT * 3
    found = run(changed, layout, training)
    assert not torch.allclose(found, expected)
    torch.testing.assert_close(found, run(changed, layout, not training))


def test_dropout_of_attention_alone_is_on():
    """Monte Carlo dropout (Gal and Ghahramani 2016): the network in evaluation, dropout not."""
    model = make().eval()
    for layout in LAYOUTS:
        expected = run(model, layout, False)
        for name in names(model, MultiHeadAttention):
            model.get_submodule(name).dropout.train().p = 0.5
        with torch.no_grad():
            assert not torch.allclose(logits_of(model, BATCH, layout), expected)
        model.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_learnt_scale(layout):
    model = make().eval()
    expected = run(model, layout, False)
    for name in names(model, ScaledDot):
        part = model.get_submodule(name)
        part.scale = nn.Parameter(torch.tensor(part.scale, dtype=torch.float64))
    torch.testing.assert_close(run(model, layout, False), expected)
    for name in names(model, ScaledDot):
        model.get_submodule(name).scale.data *= 2
    assert not torch.allclose(run(model, layout, False), expected)


def test_stem():
    """Hooks see what a layer made, and a wrapped convolution still gets its coordinates."""
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64) * 255
    stem = ConvStem((4, 8), (2, 1), coordinates=True).double()
    seen, gradients = [], []
    stem.layers.register_forward_hook(lambda _, __, out: 2 * out)
    norm = stem.layers.get_submodule("1")
    norm.register_forward_hook(lambda _, __, out: seen.append(out))
    norm.register_full_backward_hook(lambda _, __, grads: gradients.append(grads))
    doubled = stem(images)[0]
    doubled.sum().backward()
    assert seen[0].min() < 0
    assert len(gradients) == 1
    stem.layers._forward_hooks.clear()
    torch.testing.assert_close(doubled, 2 * stem(images)[0])
    wrapped = nn.Sequential(stem.layers.get_submodule("0"))
    setattr(stem.layers, "0", wrapped)
    torch.testing.assert_close(doubled, 2 * stem(images)[0])
