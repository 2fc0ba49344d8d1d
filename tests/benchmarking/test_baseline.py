"""The plain network of the baseline against ours."""

import pytest
import torch

from mcan.batch import Batch, ImageInput, Targets
from mcan.benchmarking.baseline import Baseline, load, padded
from mcan.config.schema import ModelConfig
from mcan.errors import ConfigError
from mcan.nn.mcan import ModelSizes, build_model
from mcan.ragged import Ragged

SIZES = ModelSizes(tokens=30, answers=11, feature_size=12)


def config(**changes):
    small = {
        "hidden_size": 16,
        "heads": 4,
        "depth": 2,
        "reduction_size": 8,
        "fusion_size": 20,
        "question": {"embedding_size": 6},
    }
    return ModelConfig.model_validate(small | changes)


def batch(words, regions):
    torch.manual_seed(1)
    question = Ragged.of([torch.randint(1, SIZES.tokens, (count,)) for count in words])
    rows = Ragged.of([torch.randn(count, SIZES.feature_size) for count in regions])
    none = torch.zeros(0, dtype=torch.int64)
    targets = Targets(none, none, torch.zeros(0))
    return Batch(question, ImageInput(regions=rows), targets, torch.arange(len(words)))


def networks(model):
    """Ours with norms that are not the identity, and the baseline with its weights."""
    torch.manual_seed(0)
    ours = build_model(model, SIZES).eval()
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.rand_like(parameter))
    baseline = Baseline(model, SIZES).eval()
    load(baseline, ours)
    return ours, baseline


@pytest.mark.parametrize(
    "changes", [{}, {"glimpses": 3}, {"question_depth": 3}, {"heads": 1, "feed_forward_factor": 2}]
)
def test_same_logits(changes):
    ours, baseline = networks(config(**changes))
    given = batch([14, 1, 6], [3, 20, 11])
    with torch.no_grad():
        expected = ours(given.question, given.image)
        plain = baseline(*padded(given, regions=20, words=14))
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-4)


def test_same_gradients():
    ours, baseline = networks(config())
    given = batch([2, 5], [4, 1])
    ours(given.question, given.image).square().sum().backward()
    baseline(*padded(given, regions=9, words=7)).square().sum().backward()
    for name, parameter in baseline.named_parameters():
        own = ours.get_parameter(name)
        scale = parameter.data.norm() / own.data.norm() if "norm.weight" in name else 1
        torch.testing.assert_close(parameter.grad * scale, own.grad, rtol=1e-3, atol=1e-3)


def test_a_gain_that_is_not_rescaled_would_show():
    ours, baseline = networks(config())
    baseline.norm.weight.data = ours.norm.weight.data
    given = batch([3], [4])
    with torch.no_grad():
        plain = baseline(*padded(given, regions=4, words=3))
        assert (plain - ours(given.question, given.image)).abs().max() > 1e-3


def test_padded_inputs():
    given = batch([2, 1], [1, 3])
    features, tokens = padded(given, regions=4, words=3)
    assert features.shape == (2, 4, 12)
    first, second = given.image.regions.split()
    torch.testing.assert_close(features[0, :1], first)
    torch.testing.assert_close(features[1, :3], second)
    assert not features[0, 1:].any()
    assert not features[1, 3:].any()
    assert tokens[0].tolist() == [*given.question.values[:2].tolist(), 0]
    assert tokens[1].tolist() == [given.question.values[2].item(), 0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"cascade": "stacking"},
        {"mca_layer": "sa_ga"},
        {"similarity": "dot"},
        {"question": {"encoder": "positional"}},
        {"image": {"input": "pixels"}},
        {"image": {"boxes": True}},
    ],
)
def test_other_networks_are_refused(changes):
    with pytest.raises(ConfigError, match="the baseline computes an encoder_decoder of sa_sga"):
        Baseline(config(**changes), SIZES)
