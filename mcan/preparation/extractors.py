"""Networks that turn images into features: cells of a backbone's last map, boxes of a detector.

Both take images (B, 3, H, W) uint8 of one size and return `ImageFeatures` of each. Their `settings`
(JSON) say how: stores with equal settings may be used as one. (h, w) rows and columns of the map, P
proposals of an image, C classes without background, n boxes that are kept, D width of a row.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from contextlib import redirect_stderr
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes
from torchvision.transforms.functional import normalize

from mcan.errors import DataError
from mcan.files import sha256_of

DEFAULT, RANDOM = "DEFAULT", "random"
_SEED = 0
# Not square, so that a model that needs squares shows it.
_PROBE = (1, 3, 160, 224)
# Of all torchvision weights for classification.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_MIN_SIDE = 1e-2
"""Boxes with a shorter side, in pixels, are dropped, as torchvision does."""


class ImageFeatures(NamedTuple):
    """One image: `features` (n, D), and `boxes` (n, 4) in [0, 1] or `grid_shape` (h, w)."""

    features: Tensor
    boxes: Tensor | None = None
    grid_shape: tuple[int, int] | None = None


class GridExtractor(nn.Module):
    """The cells of an image row by row, with the shape of their grid.

    `backbone` is the name of a classification model of torchvision that takes images of any size,
    `weights` DEFAULT, random or a file of that model.
    """

    def __init__(self, backbone: str, weights: str) -> None:
        super().__init__()
        _check_name(backbone, list_models(module=torchvision.models), "classification model")
        state, description = choose_weights(backbone, weights)
        model = _build_model(backbone, weights)
        self.layer = _last_map(backbone, model)
        self.trunk = create_feature_extractor(
            model, {self.layer: "map"}, suppress_diff_warning=True
        ).eval()
        _load_state(self.trunk, state, model, weights)
        self.settings = {"grid": backbone, "layer": self.layer, "weights": description}

    def forward(self, images: Tensor) -> list[ImageFeatures]:
        maps = self.trunk(normalize(images / 255, _MEAN, _STD))["map"]  # (B, D, h, w)
        shape = int(maps.shape[2]), int(maps.shape[3])
        return [ImageFeatures(rows, grid_shape=shape) for rows in maps.flatten(2).transpose(1, 2)]


def _last_map(name: str, model: nn.Module) -> str:
    """The name in the graph of the last (B, D, h, w) before pooling and classifier."""
    try:
        # The traced model prints where it fails.
        with redirect_stderr(io.StringIO()), torch.inference_mode():
            names = get_graph_node_names(model, suppress_diff_warning=True)[1]
            probe = create_feature_extractor(model, names, suppress_diff_warning=True).eval()
            outputs = probe(torch.zeros(_PROBE))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{name}: takes only images of one size, so it gives no grid in the aspect ratio of "
            "the image; choose a convolutional backbone"
        ) from error
    pooling = {n for n, module in model.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)}
    for node, value in reversed(outputs.items()):
        is_map = isinstance(value, Tensor) and value.ndim == 4 and value[0, 0].numel() > 1
        if is_map and not node.startswith("classifier") and node not in pooling:
            return str(node)
    raise DataError(f"{name}: computes no map of features; choose a convolutional backbone")


class BoxSelection(NamedTuple):
    """Which boxes are kept.

    A proposal stands for its best class. Of boxes of one class that overlap by more than `overlap`
    (intersection over union) only the best is kept. Those that score above `threshold` are kept,
    but at least `min_boxes` (the next best, suppressed ones last) and at most `max_boxes`.
    """

    threshold: float = 0.2
    overlap: float = 0.5
    min_boxes: int = 10
    max_boxes: int = 100

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Rows to keep, best first; `boxes` (P, 4), `scores` (P,) and `labels` (P,)."""
        kept = batched_nms(boxes, scores, labels, self.overlap)
        suppressed = torch.ones_like(scores, dtype=torch.bool).index_fill_(0, kept, False)
        others = suppressed.nonzero().flatten()
        others = others[scores[others].argsort(descending=True, stable=True)]
        above = int((scores[kept] > self.threshold).sum())
        return torch.cat([kept, others])[: min(max(above, self.min_boxes), self.max_boxes)]


class RegionExtractor(nn.Module):
    """The boxes of an image that `selection` keeps, with their features.

    `detector` is the name of a Faster R-CNN of torchvision, `weights` DEFAULT, random or a file of
    that model. Features are pooled from the kept boxes, not from the proposals that they come from.
    n is below `min_boxes` only if the detector proposes fewer, and may then be 0. Images are
    resized to `short_side`, at most `long_side` (None: the default of the detector).
    """

    def __init__(
        self,
        detector: str,
        weights: str,
        selection: BoxSelection,
        short_side: int | None = None,
        long_side: int | None = None,
    ) -> None:
        super().__init__()
        self.selection = selection
        sides = {"min_size": short_side, "max_size": long_side}
        options: dict[str, Any] = {k: v for k, v in sides.items() if v is not None}
        known = list_models(module=torchvision.models.detection, include="fasterrcnn*")
        _check_name(detector, known, "Faster R-CNN")
        state, description = choose_weights(detector, weights)
        if _CLASSES in state:
            options["num_classes"] = len(state[_CLASSES])
        self.model: Any = _build_model(detector, weights, weights_backbone=None, **options)
        _load_state(self.model, state, self.model, weights)
        self.settings = {"region": detector, **sides, **selection._asdict(), "weights": description}

    def forward(self, images: Tensor) -> list[ImageFeatures]:
        roi = self.model.roi_heads
        batch, _ = self.model.transform(list(images / 255))
        maps = self.model.backbone(batch.tensors)
        proposals, _ = self.model.rpn(batch, maps)
        pooled = roi.box_head(roi.box_roi_pool(maps, proposals, batch.image_sizes))
        logits, deltas = roi.box_predictor(pooled)
        counts = [len(boxes) for boxes in proposals]
        decoded = roi.box_coder.decode(deltas.float(), proposals).split(counts)
        scores = logits.float().softmax(1).split(counts)
        boxes = list(map(self._select, decoded, scores, batch.image_sizes))
        features = roi.box_head(roi.box_roi_pool(maps, boxes, batch.image_sizes))
        of_images = features.split([len(kept) for kept in boxes])
        return [
            ImageFeatures(rows, kept / kept.new_tensor([width, height, width, height]))
            for rows, kept, (height, width) in zip(of_images, boxes, batch.image_sizes, strict=True)
        ]

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, 4) out of `boxes` (P, 1 + C, 4) with `scores` (P, 1 + C); class 0 is background."""
        best, label = scores[:, 1:].max(1)
        own = boxes[torch.arange(len(boxes), device=boxes.device), label + 1]
        own = clip_boxes_to_image(own, size)
        large = remove_small_boxes(own, _MIN_SIDE)
        own, best, label = own[large], best[large], label[large]
        selected: Tensor = own[self.selection(own, best, label)]
        return selected


def _check_name(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        near = get_close_matches(name, known, 3) or sorted(known)[:3]
        raise DataError(f"{name}: is not a {what} of torchvision; there are {', '.join(near)}, ...")


def choose_weights(model: str, choice: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dictionary in the file `choice`, empty for DEFAULT and random, and a description
    of the weights, for provenance."""
    if choice == RANDOM:
        return {}, {"random": True, "seed": _SEED}
    published = get_model_weights(model)
    if choice == DEFAULT:
        return {}, {"published": str(published.DEFAULT)}
    path = Path(choice)
    state = _read_state(path)
    digest = sha256_of(path)
    for weights in published:
        # Torchvision's files are called NAME-HASH.pth. It does more than load them: it adapts the
        # preprocessing and the normalisation of some models.
        if digest.startswith(weights.url.rsplit("-", 1)[-1].removesuffix(".pth")):
            cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
            raise DataError(
                f"{path}: is {weights}, published by torchvision; move it to {cached} and use "
                "--weights DEFAULT"
            )
    return state, {"file": path.name, "sha256": digest}


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dictionary; nothing is executed."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; weights are DEFAULT, random or a file")
    reason = "something else is in it"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
    except Exception as error:  # torch raises nearly anything for damaged files.
        reason = str(error).split("\n")[0]
    raise DataError(f"{path}: not a state dictionary written by torch.save ({reason})")


def _build_model(name: str, weights: str, **options: Any) -> Any:
    """The model in evaluation mode; the state of a file is not in it yet, see `_load_state`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            chosen = DEFAULT if weights == DEFAULT else None
            return get_model(name, weights=chosen, **options).eval()
        except (OSError, RuntimeError) as error:
            raise DataError(f"{name}: its weights could not be downloaded ({error})") from error


def _load_state(part: nn.Module, state: dict[str, Tensor], model: nn.Module, file: str) -> None:
    """Load `state`, unless it is empty, into `part`, the part of `model` that is used.

    Raises `DataError` unless it has the tensors of the part, and no others than the model.
    """
    if not state:
        return
    try:
        absent = part.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise DataError(f"{file}: is not of this model: {' '.join(str(error).split())}") from None
    # Frozen batch normalisation has no counter, and evaluation needs none.
    missing = [key for key in absent if not key.endswith("num_batches_tracked")]
    unknown = state.keys() - model.state_dict().keys()
    if missing or unknown:
        problem = f"lacks '{missing[0]}'" if missing else f"has '{min(unknown)}' besides"
        raise DataError(f"{file}: is not of this model: it {problem}")
