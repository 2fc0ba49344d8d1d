"""SA, GA and SGA against torch's transformer layers and against the paper's equations."""

from __future__ import annotations

import naive
import pytest
import torch
from small import SIMILARITIES, rows
from torch import nn

from mcan.nn.multihead import MultiHeadAttention
from mcan.nn.units import (
    AttentionUnit,
    GuidedAttentionUnit,
    SelfAttentionUnit,
    SelfGuidedAttentionUnit,
)

D, HEADS, INNER = 8, 2, 12
UNITS = {
    SelfAttentionUnit: lambda s, k, x, y: naive.self_attention_unit(s, k, HEADS, x),
    GuidedAttentionUnit: lambda s, k, x, y: naive.guided_attention_unit(s, k, HEADS, x, y),
    SelfGuidedAttentionUnit: lambda s, k, x, y: naive.self_guided_attention_unit(s, k, HEADS, x, y),
}


def make(kind: type[AttentionUnit], similarity: str = "scaled_dot", dropout: float = 0.0):
    torch.manual_seed(0)
    unit = kind(D, HEADS, INNER, dropout, similarity).double()
    for parameter in unit.parameters():  # norms start as the identity, which would hide them
        nn.init.normal_(parameter, std=0.4)
    return unit


def copy_attention(source: MultiHeadAttention, target: nn.MultiheadAttention) -> None:
    projections = (source.query, source.key, source.value)
    target.in_proj_weight.data = torch.cat([p.weight for p in projections]).detach()
    target.in_proj_bias.data = torch.cat([p.bias for p in projections]).detach()
    target.out_proj.load_state_dict(source.output.state_dict())


def copy_rest(unit: AttentionUnit, layer: nn.Module, norms: list[nn.LayerNorm]) -> None:
    layer.linear1.load_state_dict(unit.feed_forward.feed_forward[0].state_dict())
    layer.linear2.load_state_dict(unit.feed_forward.feed_forward[3].state_dict())
    ours = [*(sublayer.norm for sublayer in unit.attentions.values()), unit.feed_forward.norm]
    for norm, own in zip(norms, ours, strict=True):
        norm.load_state_dict(own.state_dict())


OPTIONS = {"batch_first": True, "layer_norm_eps": 1e-6, "dropout": 0.0, "dtype": torch.float64}


def test_sa_is_torchs_encoder_layer():
    unit, x = make(SelfAttentionUnit), rows([3, 1, 4], D)
    layer = nn.TransformerEncoderLayer(D, HEADS, INNER, **OPTIONS)
    copy_attention(unit.attentions["self"].attention, layer.self_attn)
    copy_rest(unit, layer, [layer.norm1, layer.norm2])
    expected = layer(x.padded(), src_key_padding_mask=~x.layout.mask)
    torch.testing.assert_close(unit(x, x).values, x.layout.unpad(expected))


def test_sga_is_torchs_decoder_layer():
    unit, x, y = make(SelfGuidedAttentionUnit), rows([3, 1, 4], D), rows([2, 5, 1], D, seed=1)
    layer = nn.TransformerDecoderLayer(D, HEADS, INNER, **OPTIONS)
    copy_attention(unit.attentions["self"].attention, layer.self_attn)
    copy_attention(unit.attentions["guided"].attention, layer.multihead_attn)
    copy_rest(unit, layer, [layer.norm1, layer.norm2, layer.norm3])
    expected = layer(
        x.padded(),
        y.padded(),
        tgt_key_padding_mask=~x.layout.mask,
        memory_key_padding_mask=~y.layout.mask,
    )
    torch.testing.assert_close(unit(x, y).values, x.layout.unpad(expected))


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equals_the_papers_equations(kind, similarity):
    unit, x, y = make(kind, similarity), rows([3, 1], D), rows([2, 4], D, seed=1)
    expected = [
        UNITS[kind](unit.state_dict(), similarity, *pair)
        for pair in zip(x.split(), y.split(), strict=True)
    ]
    torch.testing.assert_close(unit(x, y).values, torch.cat(expected))


def test_parameters():
    attention, feed_forward, norm = 4 * (D * D + D), 2 * D * INNER + D + INNER, 2 * D
    for kind, attentions in (
        (SelfAttentionUnit, 1),
        (GuidedAttentionUnit, 1),
        (SelfGuidedAttentionUnit, 2),
    ):
        expected = attentions * (attention + norm) + feed_forward + norm
        assert sum(p.numel() for p in make(kind).parameters()) == expected


@pytest.mark.parametrize("kind", UNITS)
def test_dropout_drops_whole_sublayers_at_rate_one(kind):
    """Then only residuals are left: LayerNorm after LayerNorm of x."""
    unit, x, y = make(kind, dropout=0.9999999), rows([3, 1], D), rows([2, 4], D, seed=1)
    expected = x.values
    for sublayer in (*unit.attentions.values(), unit.feed_forward):
        expected = sublayer.norm(expected)
    torch.testing.assert_close(unit(x, y).values, expected)
    assert not torch.allclose(unit.eval()(x, y).values, expected)


@pytest.mark.parametrize("kind", UNITS)
def test_gradients(kind):
    unit, x, y = make(kind), rows([2, 1], D), rows([1, 3], D, seed=1)

    def run(x_values, y_values, *_):
        return unit(x.replace(x_values), y.replace(y_values)).values

    tensors = (x.values.requires_grad_(), y.values.requires_grad_(), *unit.parameters())
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
