"""Regions against torchvision's own detections, the parts of the model run by hand, and NMS
written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sketches import draw
from torch import Tensor
from torchvision.models import get_model

from mcan.errors import DataError
from mcan.vision.region import Choice, RegionExtractor

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIDE = 96


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def chosen_by_hand(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, choice: Choice
) -> list[int]:
    kept: list[int] = []
    suppressed: list[int] = []
    for i in np.argsort(-scores):
        rivals = [j for j in kept if labels[i] == labels[j]]
        beaten = any(overlap(boxes[i], boxes[j]) > choice.overlap for j in rivals)
        (suppressed if beaten else kept).append(int(i))
    above = sum(bool(scores[i] > choice.threshold) for i in kept)
    return [*kept, *suppressed][: min(max(above, choice.least), choice.most)]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "choice",
    [
        Choice(0.5, 0.3, 1, 100),
        Choice(0.9, 0.3, 5, 100),
        Choice(0.1, 0.5, 1, 7),
        Choice(1.0, 0.3, 36, 36),
        Choice(0.5, 0.3, 50, 100),
        Choice(0.0, 1.0, 1, 1),
    ],
)
def test_choice(seed: int, choice: Choice) -> None:
    random = np.random.default_rng(seed)
    count = 40
    corners = np.sort(random.random((count, 2, 2)) * 30, axis=1).reshape(count, 4)
    corners[:, 2:] += 10
    scores = random.permutation(count) / count
    labels = random.integers(0, 3, count)
    found = choice(*(torch.from_numpy(array) for array in (corners, scores, labels)))
    assert found.tolist() == chosen_by_hand(corners, scores, labels, choice)


def test_choice_among_none() -> None:
    empty = torch.empty(0)
    assert Choice()(torch.empty(0, 4), empty, empty.long()).tolist() == []


@pytest.fixture
def picture() -> Tensor:
    return torch.from_numpy(np.array(draw(150, 100, 3)).transpose(2, 0, 1).copy())


@pytest.fixture
def state(tmp_path: Path, picture: Tensor) -> Path:
    """A detector of a single class whose scores are spread and whose boxes move."""
    torch.manual_seed(5)
    options = {"weights": None, "weights_backbone": None, "num_classes": 2, "min_size": SIDE}
    model = get_model(NAME, **options)
    model.backbone(torch.randn(16, 3, 96, 96))  # for the statistics of its normalisation
    for layer in (model.roi_heads.box_head.fc6, model.roi_heads.box_head.fc7):
        torch.nn.init.kaiming_normal_(layer.weight)
    model.eval()
    predictor = model.roi_heads.box_predictor
    torch.nn.init.normal_(predictor.bbox_pred.weight, std=2)
    seen: list[Tensor] = []
    hook = predictor.cls_score.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        model([picture / 255])
        margin = seen[0][:, 1] - seen[0][:, 0]
        scale = 2 / margin.std()
        predictor.cls_score.weight *= scale
        predictor.cls_score.bias *= scale
        predictor.cls_score.bias[1] -= margin.median() * scale
    hook.remove()
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    return tmp_path / "detector.pth"


@pytest.mark.parametrize("choice", [Choice(0.5, 0.5, 1, 100), Choice(0.3, 0.3, 1, 8)])
def test_boxes_are_the_detections_of_torchvision(
    state: Path, picture: Tensor, choice: Choice
) -> None:
    """With one class, a proposal's best class is the only one, as torchvision sees it too."""
    extractor = RegionExtractor(NAME, str(state), choice, SIDE)
    model = get_model(
        NAME,
        weights=None,
        weights_backbone=None,
        num_classes=2,
        min_size=SIDE,
        box_score_thresh=choice.threshold,
        box_nms_thresh=choice.overlap,
        box_detections_per_img=choice.most,
    ).eval()
    model.load_state_dict(torch.load(state, weights_only=True))
    with torch.inference_mode():
        (described,) = extractor(picture[None])
        (detected,) = model([picture / 255])
    assert 1 < len(detected["boxes"]) <= choice.most
    scale = torch.tensor([150, 100, 150, 100])
    torch.testing.assert_close(described.boxes, detected["boxes"] / scale, atol=1e-5, rtol=0)
    assert described.features.shape == (len(detected["boxes"]), 1024)


def test_features_are_those_of_the_parts_run_by_hand(state: Path, picture: Tensor) -> None:
    extractor = RegionExtractor(NAME, str(state), Choice(0.5, 0.5, 3, 20), SIDE)
    model = extractor.model
    with torch.inference_mode():
        (described,) = extractor(picture[None])
        images, _ = model.transform([picture / 255])
        maps = model.backbone(images.tensors)
        ((height, width),) = images.image_sizes
        boxes = described.boxes * torch.tensor([width, height, width, height])
        pooled = model.roi_heads.box_roi_pool(maps, [boxes], images.image_sizes)
        expected = model.roi_heads.box_head(pooled)
    assert (height, width) == (SIDE, 144)
    assert expected.std() > 0
    torch.testing.assert_close(described.features, expected, atol=1e-4, rtol=1e-3)


def test_batched_is_single(state: Path, picture: Tensor) -> None:
    extractor = RegionExtractor(NAME, str(state), Choice(0.5, 0.5, 5, 20), SIDE)
    pictures = torch.stack([picture, picture.flip(2), picture.flip(0)])
    with torch.inference_mode():
        for number, one in enumerate(extractor(pictures)):
            (alone,) = extractor(pictures[number : number + 1])
            torch.testing.assert_close(one.boxes, alone.boxes, atol=1e-5, rtol=0)
            torch.testing.assert_close(one.features, alone.features, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("least", "most"), [(10, 100), (36, 36), (1, 5)])
def test_bounds_hold_with_random_weights(picture: Tensor, least: int, most: int) -> None:
    """Where 91 classes score alike, none is above the threshold."""
    extractor = RegionExtractor(NAME, "random", Choice(0.2, 0.5, least, most), SIDE)
    with torch.inference_mode():
        (described,) = extractor(picture[None])
    assert described.boxes is not None
    assert len(described.features) == len(described.boxes) == least
    assert bool(((described.boxes >= 0) & (described.boxes <= 1)).all())
    assert bool((described.boxes[:, :2] < described.boxes[:, 2:]).all())


def test_unknown_detectors_are_refused() -> None:
    for name in ("resnet18", "maskrcnn_resnet50_fpn", "nothing"):
        with pytest.raises(DataError, match=f"{name}: is no Faster R-CNN of torchvision"):
            RegionExtractor(name, "random", Choice())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_other_detectors(picture: Tensor, name: str) -> None:
    extractor = RegionExtractor(name, "random", Choice(), SIDE)
    with torch.inference_mode():
        (described,) = extractor(picture[None])
    assert described.features.shape[1] == 1024
    assert 10 <= len(described.features) <= 100
