"""Units against torch's transformer layers; cascades as lists of units against loops."""

from __future__ import annotations

import naive
import pytest
import torch
from small import copy_attention, packed_rows, random_rows, small_config
from torch import Tensor, nn

from mcan.nn.cascade import MCA_LAYERS, UNITS, Cascade, Layer, UnitSizes

D, HEADS, INNER = 8, 2, 12
ROWS, GUIDE_ROWS = packed_rows([3, 1, 4]), packed_rows([2, 5, 1])
X, GUIDE = random_rows(8, D), random_rows(8, D, 1)
OPTIONS = {"batch_first": True, "layer_norm_eps": 1e-6, "dropout": 0.0, "dtype": torch.float64}


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.double().parameters():  # norms start as the identity
        nn.init.normal_(parameter, std=0.4)
    return module


def make(units: tuple[str, ...], dropout: float = 0.0) -> Layer:
    return randomised(Layer(units, UnitSizes(D, HEADS, INNER, dropout)))


@pytest.mark.parametrize("units", [("SA", "FFN"), ("SA", "GA", "FFN")])
def test_layers_are_torchs_encoder_and_decoder_layers(units):
    guided = "GA" in units
    kind = nn.TransformerDecoderLayer if guided else nn.TransformerEncoderLayer
    ours, layer = make(units), kind(D, HEADS, INNER, **OPTIONS)
    copy_attention(ours["SA"].attention, layer.self_attn)
    if guided:
        copy_attention(ours["GA"].attention, layer.multihead_attn)
    layer.linear1.load_state_dict(ours["FFN"].mlp[0].state_dict())
    layer.linear2.load_state_dict(ours["FFN"].mlp[3].state_dict())
    for number, unit in enumerate(ours.values(), 1):
        getattr(layer, f"norm{number}").load_state_dict(unit.norm.state_dict())
    if guided:
        masks = {"tgt_key_padding_mask": ~ROWS.mask, "memory_key_padding_mask": ~GUIDE_ROWS.mask}
        expected = layer(ROWS.pad(X), GUIDE_ROWS.pad(GUIDE), **masks)
    else:
        expected = layer(ROWS.pad(X), src_key_padding_mask=~ROWS.mask)
    torch.testing.assert_close(ours(X, ROWS, GUIDE, GUIDE_ROWS), ROWS.unpad(expected))


def test_units_by_name():
    """A unit may occur twice; a layer without units is the identity."""
    assert list(make(("SA", "FFN", "SA", "FFN", "SA"))) == ["SA", "FFN", "SA_2", "FFN_2", "SA_3"]
    assert make(())(X, ROWS, GUIDE, GUIDE_ROWS) is X


@pytest.mark.parametrize("unit", UNITS)
def test_dropout_drops_a_whole_unit_at_rate_one(unit):
    """Then only the residual is left: the LayerNorm of x."""
    layer = make((unit,), dropout=0.9999999)
    expected = layer[unit].norm(X)
    torch.testing.assert_close(layer(X, ROWS, GUIDE, GUIDE_ROWS), expected)
    assert not torch.allclose(layer.eval()(X, ROWS, GUIDE, GUIDE_ROWS), expected)


def cascade(kind: str, question: list, image: list) -> Cascade:
    return randomised(Cascade(kind, question, image, UnitSizes(D, HEADS, INNER, 0.0)))


def run(ours: Cascade) -> tuple[Tensor, Tensor]:
    return ours(GUIDE, X, GUIDE_ROWS, ROWS)


@pytest.mark.parametrize(
    ("kind", "depths"),
    [("stacking", (1, 1)), ("stacking", (3, 3))]
    + [("encoder_decoder", depths) for depths in ((2, 2), (1, 3), (3, 1))],
)
@pytest.mark.parametrize("layers", [*MCA_LAYERS.values(), [("SA", "GA", "FFN"), ("GA", "FFN")]])
def test_cascades_equal_loops(kind, layers, depths):
    """Questions may be guided by images, too."""
    ours = cascade(kind, *([units] * depth for units, depth in zip(layers, depths, strict=True)))
    config = small_config(cascade=kind, depth=depths[1], question_depth=depths[0])
    samples = (torch.split(GUIDE, [2, 5, 1]), torch.split(X, [3, 1, 4]))
    expected = [
        naive.cascade(ours.state_dict(), config, *pair) for pair in zip(*samples, strict=True)
    ]
    for found, each in zip(run(ours), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(found, torch.cat(each))
