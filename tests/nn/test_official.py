"""The authors' state dictionary against the naive network that reads it by its own names."""

import pytest
import torch
from official_naive import logits, random_state

from mcan.batch import ImageInput
from mcan.config.schema import ModelConfig
from mcan.nn.mcan import build_model
from mcan.nn.official import convert_official
from mcan.ragged import Ragged


def recorded(state, heads):
    """Padded inputs of different lengths and the naive network's logits."""
    torch.manual_seed(1)
    image, question = torch.randn(4, 6, 6), torch.randint(1, 20, (4, 5))
    for row, (regions, words) in enumerate(((6, 5), (3, 2), (1, 1), (5, 4))):
        image[row, regions:] = 0
        question[row, words:] = 0
    return image, question, logits(state, image, question, heads)


def imported_logits(official, image, question):
    model = build_model(ModelConfig.model_validate(official.model), official.sizes).eval()
    model.load_state_dict(official.state)
    regions = Ragged.of([rows[rows.abs().sum(1) > 0] for rows in image])
    with torch.no_grad():
        return model(Ragged.of([ids[ids != 0] for ids in question]), ImageInput(regions=regions))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("glimpses", [1, 3])
def test_imported_network_gives_the_same_logits(glimpses, prefix):
    state = random_state(glimpses=glimpses)
    image, question, expected = recorded(state, heads=4)
    official = convert_official({prefix + key: value for key, value in state.items()}, heads=4)
    ours = imported_logits(official, image, question)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert official.model["glimpses"] == glimpses


def test_a_norm_that_is_not_folded_would_show():
    state = random_state()
    image, question, expected = recorded(state, heads=4)
    official = convert_official(state, heads=4)
    official.state["norm.weight"] = state["proj_norm.a_2"]
    assert (imported_logits(official, image, question) - expected).abs().max() > 1e-3


def test_missing_and_unknown_keys_are_named():
    state = random_state()
    del state["backbone.dec_list.1.norm3.a_2"]
    state["backbone.extra"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"lacks backbone\.dec_list\.1\.norm3\.a_2 and has the unknown backbone\.e"
    ):
        convert_official(state, heads=4)
    with pytest.raises(ValueError, match=r"lacks embedding\.weight, .* and \d+ more"):
        convert_official({}, heads=4)
