"""Grid cells against a hook on the backbone itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as T
from sketches import draw
from torch import Tensor
from torchvision.models import get_model

from mcan.errors import DataError
from mcan.vision.grid import GridExtractor
from mcan.vision.pictures import Resize, read_picture


def saved(tmp_path: Path, name: str, **options: Any) -> tuple[Path, torch.nn.Module]:
    """A model with weights of its own, and the file that they are saved in."""
    torch.manual_seed(7)
    model = get_model(name, weights=None, **options).eval()
    for module in model.modules():  # so that normalisation does something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), tmp_path / "state.pth")
    return tmp_path / "state.pth", model


MAPS = {
    "resnet18": ("layer4", 512),
    "squeezenet1_1": ("features", 512),
    "mobilenet_v3_small": ("features", 576),
    "shufflenet_v2_x0_5": ("conv5", 1024),
    "densenet121": ("features", 1024),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "densenet121" else []) for n in MAPS],
)
def test_cells_are_those_of_the_last_map(tmp_path: Path, name: str) -> None:
    state, model = saved(tmp_path, name)
    seen: list[Tensor] = []
    module, width = MAPS[name]
    model.get_submodule(module).register_forward_hook(lambda *args: seen.append(args[2]))
    draw(150, 100, 1).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 1, Resize(80, 1000))
    assert picture.pixels.shape == (3, 80, 120)
    pixels = torch.tensor(picture.pixels)[None]
    image = T.normalize(pixels.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    extractor = GridExtractor(name, str(state))
    with torch.inference_mode():
        model(image)
        (described,) = extractor(pixels)
    # Densenet's map goes through a ReLU that is no module.
    expected = seen[0].relu() if name == "densenet121" else seen[0]
    height, columns = expected.shape[2:]
    assert described.grid_shape == (height, columns)
    assert described.boxes is None
    assert extractor.feature_dim == width == expected.shape[1]
    assert (height, columns) != (columns, height)
    assert expected.std() > 0
    for cell, row in enumerate(described.features):
        torch.testing.assert_close(row, expected[0, :, cell // columns, cell % columns])


def test_batched_is_single() -> None:
    extractor = GridExtractor("resnet18", "random")
    pixels = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        together = extractor(pixels)
        for number, one in enumerate(together):
            (alone,) = extractor(pixels[number : number + 1])
            torch.testing.assert_close(one.features, alone.features, atol=1e-5, rtol=1e-5)


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (GridExtractor("resnet18", "random") for _ in range(2))
    assert torch.rand(1) == expected
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.settings["weights"] == {"random": True, "seed": 0}


@pytest.mark.parametrize("name", ["vit_b_32", pytest.param("maxvit_t", marks=pytest.mark.slow)])
def test_models_for_one_size_are_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=f"{name}: takes only pictures of one size"):
        GridExtractor(name, "random")
    assert "Traceback" not in capfd.readouterr().err


def test_unknown_models_are_refused() -> None:
    with pytest.raises(DataError, match=r"resnet19: is no classification model .* resnet18"):
        GridExtractor("resnet19", "random")
    with pytest.raises(DataError, match="is no classification model"):
        GridExtractor("fasterrcnn_resnet50_fpn", "random")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("vgg11", "features.20"),
        ("alexnet", "features.12"),
        ("swin_t", "permute"),
        ("convnext_tiny", "features.7.2.add"),
        ("efficientnet_b0", "features.8"),
        ("regnet_y_400mf", "trunk_output.block4.block4-5.activation"),
        ("googlenet", "inception5b.cat"),
        ("inception_v3", "Mixed_7c.cat_2"),
        ("mnasnet0_5", "layers.16"),
    ],
)
def test_the_map_of_other_families(name: str, node: str) -> None:
    assert GridExtractor(name, "random").layer == node
