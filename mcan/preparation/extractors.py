"""Networks that turn images into features: cells of a backbone's last map, boxes of a detector.

Both take images (B, 3, H, W) uint8 of one size and return `ImageFeatures` of each. Their `settings`
(JSON) say how: stores with equal settings may be used as one. (h, w) rows and columns of the map, P
proposals of an image, C classes without background, n boxes that are kept, D width of a row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection
from contextlib import redirect_stderr
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes
from torchvision.transforms import Compose
from torchvision.transforms.functional import normalize

from mcan.errors import DataError, need
from mcan.files import sha256_of

DEFAULT, RANDOM = "DEFAULT", "random"
TIMM = "timm:"
_SEED = 0
# Shows a model that needs squares, or whole patches.
_PROBE = (1, 3, 161, 223)
# Of all torchvision weights for classification.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_NO_MAP = "computes no map of features; choose a convolutional backbone, or a ViT of timm"
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
    or timm:NAME; `weights` DEFAULT, random or a file of that model. `transform`, an operation on
    Pillow images, makes images those that a model of timm takes: by the model's own rules, or by
    another `crop` without margin. It is None for models of torchvision, and if `any_size`.
    """

    def __init__(
        self, backbone: str, weights: str, *, crop: str | None = None, any_size: bool = False
    ) -> None:
        super().__init__()
        self.transform: Callable[[Any], Any] | None = None
        self._mean, self._std = _MEAN, _STD
        self.settings: dict[str, Any]
        if crop and (any_size or not backbone.startswith(TIMM)):
            raise DataError("--crop is for backbones of timm, without --short-side and --long-side")
        if backbone.startswith(TIMM):
            self._use_timm(backbone, weights, crop, any_size)
            return
        known = list_models(module=torchvision.models)
        _check_name(backbone, known, "classification model of torchvision")
        state, description = choose_weights(backbone, weights)
        model = _build_model(backbone, weights)
        self.layer = _last_map(backbone, model)
        trunk = create_feature_extractor(model, {self.layer: "map"}, suppress_diff_warning=True)
        _load_state(trunk.eval(), state, model.state_dict(), weights)
        self.trunk = trunk
        self._map: Callable[[Tensor], Tensor] = lambda images: trunk(images)["map"]
        self.settings = {"grid": backbone, "layer": self.layer, "weights": description}

    def _use_timm(self, backbone: str, weights: str, crop: str | None, any_size: bool) -> None:
        timm, name = _import_timm(backbone), backbone.removeprefix(TIMM)
        _check_name(name, {*timm.list_models(), *timm.list_pretrained()}, "model of timm")
        state, description = choose_weights(backbone, weights)
        model = _build_model(backbone, weights)
        known = model.state_dict().keys()
        model.reset_classifier(0)  # in a file, it may have any number of classes
        _load_state(model, state, known, weights)
        self.trunk, self._map = model, partial(_timm_map, backbone, model)
        cropped = {"crop_mode": crop, "crop_pct": 1.0} if crop else None
        how = timm.data.resolve_data_config(cropped, model=model)
        self._mean, self._std = list(how["mean"]), list(how["std"])
        probe = torch.zeros(_PROBE if any_size else (1, *how["input_size"]))
        try:
            with torch.inference_mode():
                self._map(probe)
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = "takes only images of one size; leave out --short-side and --long-side"
            raise DataError(f"{backbone}: {reason if any_size else _NO_MAP}") from error
        if not any_size:
            steps = timm.data.create_transform(**how, normalize=False).transforms
            self.transform = Compose(steps[:-1])  # the last one makes a tensor
        self.settings = {
            "grid": backbone,
            "timm": timm.__version__,
            "crop": crop,
            "preprocessing": how,
            "weights": description,
        }

    def forward(self, images: Tensor) -> list[ImageFeatures]:
        maps = self._map(normalize(images / 255, self._mean, self._std))  # (B, D, h, w)
        shape = int(maps.shape[2]), int(maps.shape[3])
        return [ImageFeatures(rows, grid_shape=shape) for rows in maps.flatten(2).transpose(1, 2)]

    def cell_boxes(self, size: tuple[int, int], shape: tuple[int, int]) -> Tensor | None:
        """The cells of a map of `shape` as boxes (h · w, 4) in an image of `size` (width, height),
        which `transform` may have cropped. Without a transform None: the cells cover the image."""
        if self.transform is None:
            return None
        how, sides = self.settings["preprocessing"], torch.tensor(size)
        shown = torch.tensor(how["input_size"][:0:-1])  # width, height
        scales = (shown / how["crop_pct"]).floor() / sides
        modes = {"squash": scales, "border": scales.min()}
        parts = shown / (sides * modes.get(how["crop_mode"], scales.max()))
        x, y = (
            (0.5 + part * (torch.arange(count + 1) / count - 0.5)).clamp(0, 1)
            for part, count in zip(parts, shape[::-1], strict=True)
        )
        y1, x1 = torch.meshgrid(y[:-1], x[:-1], indexing="ij")
        y2, x2 = torch.meshgrid(y[1:], x[1:], indexing="ij")
        return torch.stack([x1, y1, x2, y2], 2).flatten(0, 1)


def _import_timm(backbone: str) -> Any:
    need("timm", backbone)
    import timm

    return timm


def _timm_map(backbone: str, model: Any, images: Tensor) -> Tensor:
    """What `forward_features` of a model of timm returns, as a map (B, D, h, w).

    Tokens (B, n, D) are the patches row by row, after those of class and registers.
    """
    found = model.forward_features(images)
    if isinstance(found, Tensor) and found.ndim == 3:
        found = found[:, getattr(model, "num_prefix_tokens", 0) :]
        ratio = images.shape[3] / images.shape[2]
        h = max(1, round(math.sqrt(found.shape[1] / ratio)))
        if h * round(h * ratio) == found.shape[1]:
            found = found.reshape(len(found), h, -1, found.shape[2])
    if isinstance(found, Tensor) and found.ndim == 4 and model.num_features in found.shape[1::2]:
        maps = found if found.shape[1] == model.num_features else found.movedim(3, 1)
        if maps[0, 0].numel() > 1:
            return maps
    raise DataError(f"{backbone}: {_NO_MAP}")


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
    raise DataError(f"{name}: {_NO_MAP}")


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
        _check_name(detector, known, "Faster R-CNN of torchvision")
        state, description = choose_weights(detector, weights)
        if _CLASSES in state:
            options["num_classes"] = len(state[_CLASSES])
        self.model: Any = _build_model(detector, weights, weights_backbone=None, **options)
        _load_state(self.model, state, self.model.state_dict(), weights)
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
        raise DataError(f"{name}: is not a {what}; there are {', '.join(near)}, ...")


def choose_weights(model: str, choice: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dictionary in the file `choice`, empty for DEFAULT and random, and a description
    of the weights, for provenance."""
    if choice == RANDOM:
        return {}, {"random": True, "seed": _SEED}
    if choice == DEFAULT:
        return {}, {"published": published_weights(model)[0]}
    path = Path(choice)
    state = _read_state(path)
    digest = sha256_of(path)
    for weights in () if model.startswith(TIMM) else get_model_weights(model):
        # Torchvision's files are called NAME-HASH.pth. It does more than load them: it adapts the
        # preprocessing and the normalisation of some models.
        if digest.startswith(weights.url.rsplit("-", 1)[-1].removesuffix(".pth")):
            cached = _cache(weights.url)
            raise DataError(
                f"{path}: is {weights}, published by torchvision; move it to {cached} and use "
                "--weights DEFAULT"
            )
    return state, {"file": path.name, "sha256": digest}


def published_weights(model: str) -> tuple[str, Path]:
    """The name of a model's default weights, and the file that a download makes."""
    if not model.startswith(TIMM):
        default = get_model_weights(model).DEFAULT
        return str(default), _cache(default.url)
    config = _import_timm(model).get_pretrained_cfg(model.removeprefix(TIMM))
    if config and config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        file = config.hf_hub_filename or "model.safetensors"
        return config.hf_hub_id, Path(str(try_to_load_from_cache(config.hf_hub_id, file) or file))
    if config and config.url:
        return config.url, _cache(config.url)
    # timm would take random ones.
    raise DataError(f"{model}: timm publishes no weights for it; give a file")


def _cache(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dictionary; nothing is executed."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; weights are DEFAULT, random or a file")
    reason = "something else is in it"
    if binary := path.suffix == ".safetensors":
        need("safetensors", path)
    try:
        if binary:
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return dict(content)
    except Exception as error:  # torch raises nearly anything for damaged files.
        reason = str(error).split("\n")[0]
    raise DataError(
        f"{path}: not a state dictionary written by torch.save or safetensors ({reason})"
    )


def _build_model(name: str, weights: str, **options: Any) -> Any:
    """The model in evaluation mode; the state of a file is not in it yet, see `_load_state`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            if name.startswith(TIMM):
                model = name.removeprefix(TIMM)
                return _import_timm(name).create_model(model, pretrained=weights == DEFAULT).eval()
            chosen = DEFAULT if weights == DEFAULT else None
            return get_model(name, weights=chosen, **options).eval()
        except (OSError, RuntimeError) as error:
            raise DataError(f"{name}: its weights could not be downloaded ({error})") from error


def _load_state(
    part: nn.Module, state: dict[str, Tensor], known: Collection[str], file: str
) -> None:
    """Load `state`, unless it is empty, into `part`, the part of a model that is used.

    Raises `DataError` unless it has the tensors of the part, and no others than the model: `known`.
    """
    if not state:
        return
    try:
        absent = part.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise DataError(f"{file}: is not of this model: {' '.join(str(error).split())}") from None
    # Frozen batch normalisation has no counter, and evaluation needs none.
    missing = [key for key in absent if not key.endswith("num_batches_tracked")]
    unknown = state.keys() - set(known)
    if missing or unknown:
        problem = f"lacks '{missing[0]}'" if missing else f"has '{min(unknown)}' besides"
        raise DataError(f"{file}: is not of this model: it {problem}")
