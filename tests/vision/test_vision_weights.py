"""Weights from a file, random ones, and downloads only when asked for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from mcan.errors import DataError
from mcan.vision import weights
from mcan.vision.grid import GridExtractor
from mcan.vision.region import Choice, RegionExtractor
from mcan.vision.weights import choose_weights

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: object, **__: object) -> None:
        raise URLError(f"asked for {url}")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


def state_of(name: str, **options: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    return dict(get_model(name, weights=None, **options).state_dict())


@pytest.mark.parametrize("wrap", ["", "state_dict", "model", "module."])
def test_local_state_dictionaries(tmp_path: Path, wrap: str) -> None:
    state = state_of("resnet18", num_classes=7)
    content: Any = {wrap: state} if wrap.isidentifier() else {wrap + k: v for k, v in state.items()}
    torch.save(content, tmp_path / "mine.pth")
    extractor = GridExtractor("resnet18", str(tmp_path / "mine.pth"))
    loaded = extractor.trunk.state_dict()
    assert len(loaded) == len(state) - 2  # the classifier is not needed, nor its size
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    description = extractor.settings["weights"]
    assert description["file"] == "mine.pth"
    assert len(description["sha256"]) == 64


def test_a_detector_of_other_classes(tmp_path: Path) -> None:
    state = state_of(DETECTOR, weights_backbone=None, num_classes=5)
    torch.save(state, tmp_path / "mine.pth")
    model = RegionExtractor(DETECTOR, str(tmp_path / "mine.pth"), Choice()).model
    assert model.roi_heads.box_predictor.cls_score.out_features == 5
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("tensor 'layer1.0.conv1.weight' is missing", {"layer1.0.conv1.weight": None}),
        (
            r"tensor 'conv1.weight' is \(2,\), the model has \(64, 3, 7, 7\)",
            {"conv1.weight": torch.ones(2)},
        ),
        ("the model has no tensor 'neck.weight'", {"neck.weight": torch.ones(2)}),
        ("holds no state dictionary", {"epoch": 3}),
    ],
)
def test_states_that_do_not_fit(tmp_path: Path, message: str, change: dict[str, Any]) -> None:
    state = {**state_of("resnet18"), **change}
    path = tmp_path / "mine.pth"
    torch.save({k: v for k, v in state.items() if v is not None}, path)
    with pytest.raises(DataError, match=message) as error:
        GridExtractor("resnet18", str(path))
    assert str(path) in str(error.value)


def test_files_that_are_no_states(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    with pytest.raises(DataError, match="no such file; weights are DEFAULT, random or a file"):
        choose_weights("resnet18", str(path))
    for content in (b"", b"junk", b"PK\x03\x04junk"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"mine\.pth: "):
            choose_weights("resnet18", str(path))
    with pytest.raises(DataError, match=r"mine.*: not written by torch\.save, or damaged"):
        choose_weights("resnet18", str(tmp_path / "mine.pth" / ".."))
    for bomb in (
        lambda: path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed"))),
        lambda: torch.save({"a": Bomb(tmp_path / "executed")}, path),
    ):
        bomb()
        with pytest.raises(DataError, match="not loaded"):
            choose_weights("resnet18", str(path))
    assert not (tmp_path / "executed").exists()


def test_only_default_downloads() -> None:
    GridExtractor("resnet18", "random")
    RegionExtractor(DETECTOR, "random", Choice())
    with pytest.raises(
        DataError, match=r"resnet18: its weights could not be downloaded .*resnet18"
    ):
        GridExtractor("resnet18", "DEFAULT")
    with pytest.raises(DataError, match=r"its weights could not be downloaded .*fasterrcnn"):
        RegionExtractor(DETECTOR, "DEFAULT", Choice())


@pytest.mark.slow
def test_published_files_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own file, brought here by hand, gives what DEFAULT would give."""
    name = "fasterrcnn_resnet50_fpn"
    torch.save(state_of(name, weights_backbone=None), tmp_path / "brought.pth")
    ours = RegionExtractor(name, str(tmp_path / "brought.pth"), Choice())
    assert {m.eps for m in ours.model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    monkeypatch.setattr(weights, "file_sha256", lambda _: "258fb6c6" + 56 * "0")
    ours = RegionExtractor(name, str(tmp_path / "brought.pth"), Choice())
    assert ours.settings["weights"] == {"published": "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"}
    assert {m.eps for m in ours.model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.0}
