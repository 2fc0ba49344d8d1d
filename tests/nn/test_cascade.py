"""The wiring of MCA layers against loops over layers (paper figures 4 and 5)."""

from __future__ import annotations

import naive
import pytest
import torch
from small import CASCADES, MCA_LAYERS, rows, small_config

from mcan.config.schema import ModelConfig
from mcan.nn.cascade import Cascade

D, HEADS = 8, 2


def make(config: ModelConfig) -> Cascade:
    torch.manual_seed(0)
    numbers = (config.depth, D, HEADS, config.feed_forward_factor * D, 0.0, config.similarity)
    return Cascade(config.cascade, config.mca_layer, *numbers, config.question_depth).double()


def check(config: ModelConfig) -> None:
    cascade, y, x = make(config), rows([2, 4, 1], D), rows([3, 1, 2], D, seed=1)
    pairs = zip(y.split(), x.split(), strict=True)
    expected = [naive.cascade(cascade.state_dict(), config, *pair) for pair in pairs]
    attended = cascade(y, x)
    for ragged, samples in zip(attended, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(ragged.values, torch.cat(samples))


@pytest.mark.parametrize("kind", CASCADES)
@pytest.mark.parametrize("mca_layer", MCA_LAYERS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_wiring(kind, mca_layer, depth):
    check(small_config(cascade=kind, mca_layer=mca_layer, depth=depth))


@pytest.mark.parametrize(("depth", "question_depth"), [(1, 3), (3, 1), (2, 2)])
def test_depths_of_an_encoder_decoder_may_differ(depth, question_depth):
    check(small_config(depth=depth, question_depth=question_depth))


@pytest.mark.parametrize("mca_layer", MCA_LAYERS)
def test_cascades_of_one_layer_are_equal_and_of_two_are_not(mca_layer):
    y, x = rows([2, 4, 1], D), rows([3, 1, 2], D, seed=1)
    for depth in (1, 2):
        stacking, other = (
            make(small_config(cascade=kind, mca_layer=mca_layer, depth=depth))(y, x)[1].values
            for kind in CASCADES
        )
        assert torch.equal(stacking, other) == (depth == 1 or mca_layer == "id_ga")


@pytest.mark.parametrize("kind", CASCADES)
def test_identity_leaves_the_question_untouched(kind):
    y, x = rows([2, 4], D), rows([3, 1], D, seed=1)
    cascade = make(small_config(cascade=kind, mca_layer="id_ga"))
    assert cascade(y, x)[0] is y
    assert not [name for name, _ in cascade.named_parameters() if name.startswith("question")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("parallel", "sa_sga", 2), "cascade 'parallel' is not one of stacking, encoder_decoder"),
        (("stacking", "ga_sa", 2), "mca_layer 'ga_sa' is not one of id_ga, sa_ga, sa_sga"),
        (("stacking", "sa_sga", 0), "at least one layer"),
        (("encoder_decoder", "sa_sga", 2, 0), "at least one layer"),
        (("stacking", "sa_sga", 2, 3), "stacking 2 image layers on 3 question layers"),
    ],
)
def test_mistakes(arguments, message):
    kind, mca_layer, depth, *question_depth = arguments
    with pytest.raises(ValueError, match=message):
        Cascade(kind, mca_layer, depth, D, HEADS, D, 0.0, "scaled_dot", *question_depth)
