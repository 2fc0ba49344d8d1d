"""Closed-form costs against torch's own count of the real network."""

import pytest
import torch
from small import CASCADES, MCA_LAYERS, SIMILARITIES
from torch.utils.flop_counter import FlopCounterMode

from mcan.batch import ImageInput
from mcan.config.schema import ModelConfig
from mcan.nn.cost import forward_macs
from mcan.nn.mcan import ModelSizes, build_model
from mcan.ragged import Ragged

SIZES = ModelSizes(tokens=20, answers=7, feature_size=11)


def config(**changes):
    small = {
        "hidden_size": 8,
        "heads": 2,
        "depth": 2,
        "reduction_size": 6,
        "fusion_size": 10,
        "question": {"embedding_size": 5},
    }
    return ModelConfig.model_validate(small | changes)


def counted(model: ModelConfig, sizes: ModelSizes, words: int, image: ImageInput) -> int:
    """Multiply-adds of one sample, as torch counts them operator by operator.

    In double precision, in which the LSTM is made of matrix products that torch knows.
    """
    network = build_model(model, sizes).double().eval()
    question = Ragged.of([torch.ones(words, dtype=torch.int64)])
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        network(question, image)
    return counter.get_total_flops() // 2


def features(rows: int, width: int = 11) -> Ragged:
    return Ragged.of([torch.randn(rows, width, dtype=torch.float64)])


@pytest.mark.parametrize("cascade", CASCADES)
@pytest.mark.parametrize("mca_layer", MCA_LAYERS)
@pytest.mark.parametrize(("words", "regions"), [(1, 1), (4, 9)])
def test_layers(cascade, mca_layer, words, regions):
    model = config(cascade=cascade, mca_layer=mca_layer)
    expected = counted(model, SIZES, words, ImageInput(features(regions)))
    assert forward_macs(model, SIZES, words, regions) == expected


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_similarities(similarity, heads):
    model = config(similarity=similarity, heads=heads)
    expected = counted(model, SIZES, 3, ImageInput(features(6)))
    assert forward_macs(model, SIZES, 3, 6) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"question_depth": 3},
        {"glimpses": 3, "feed_forward_factor": 2},
        {"question": {"embedding_size": 5, "encoder": "positional"}},
    ],
)
def test_options(changes):
    model = config(**changes)
    expected = counted(model, SIZES, 3, ImageInput(features(6)))
    assert forward_macs(model, SIZES, 3, 6) == expected


def test_boxes_and_grid():
    model = config(image={"boxes": True, "box_embedding_size": 9})
    sizes = ModelSizes(tokens=20, answers=7, feature_size=11, grid_size=13)
    image = ImageInput(features(6), torch.rand(6, 4, dtype=torch.float64), grid=features(4, 13))
    assert forward_macs(model, sizes, 3, 6, grid_rows=4) == counted(model, sizes, 3, image)


@pytest.mark.parametrize("coordinates", [False, True])
def test_pixels(coordinates):
    stem = {"channels": (4, 6, 8), "strides": (2, 1, 2), "coordinates": coordinates}
    model = config(image={"input": "pixels", "stem": stem})
    sizes = ModelSizes(tokens=20, answers=7)
    image = ImageInput(pixels=torch.zeros(1, 3, 8, 12, dtype=torch.uint8))
    assert forward_macs(model, sizes, 3, 2 * 3) == counted(model, sizes, 3, image)


def test_the_known_figure_of_the_small_network():
    sizes = ModelSizes(tokens=20_572, answers=3129, feature_size=2048)
    assert forward_macs(ModelConfig(), sizes, 14, 100) / 1e9 == pytest.approx(2.74, abs=0.005)
