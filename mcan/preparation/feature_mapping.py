"""From a record of an image, arrays and numbers by name, to its features, boxes and size.

`KNOWN` and the user say which entry is what; the shapes say how the arrays lie. n rows of an image,
D width of a row, (h, w) rows and columns of a grid.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mcan.data.arrays import Id
from mcan.errors import shorten
from mcan.preparation.names import IdRule, find_names
from mcan.preparation.store_writer import ImageRows

ImageFields = Mapping[str, Any]
"""What a file says of one image: arrays and numbers by their names in the file."""
Sizes = Mapping[str, tuple[int, int]]
"""Width and height in pixels of images, by their id as text."""
Axes = Literal["rows", "columns", "map"]
AXES: tuple[str, ...] = get_args(Axes)

KNOWN: dict[str, tuple[str, ...]] = {
    "features": ("x", "features", "image_features", "feature", "feats", "feat"),
    # Of spatial_features (n, 6) the first four: boxes, divided already.
    "boxes": ("spatial_features", "bbox", "boxes", "bboxes", "image_bb"),
    "size": (
        *("image_w,image_h", "width,height", "widths,heights", "img_w,img_h"),
        *("image_width,image_height", "w,h"),
    ),
    "count": ("num_bbox", "num_boxes", "objectsNum"),
    "id": ("image_id", "image_ids", "img_id", "img_ids", "ids", "id"),
}
"""The names that need no `--keys`, by what they mean; the first that a record has counts."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user may say about the files: how names become ids (`row`: the ids are the numbers
    of the rows of an HDF5 file), which file maps image ids to rows, the sizes of images, for files
    with boxes in pixels but without sizes, what the entries of a record are called, by the names of
    `KNOWN` (empty: there is none), how features lie, and their width."""

    ids: IdRule | Literal["row"] | None = None
    index: Path | None = None
    sizes: Sizes | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    axes: Axes | None = None
    feature_size: int | None = None


def find_entries(available: Collection[str], keys: Mapping[str, str]) -> dict[str, str]:
    """What the entries of a record are called, by the names of `KNOWN`; see `find_names`.

    Raises `ValueError`, also if several or none may be the features. A single entry is.
    """
    names = find_names(available, KNOWN, keys)
    likely = {name.lower() for name in available} & {*KNOWN["features"]}
    if not keys.get("features") and len(likely) != 1:
        if len(available) != 1:
            raise ValueError(
                f"which of {shorten(available)} are the features? Say so with --keys "
                "features=NAME boxes=NAME size=WIDTH,HEIGHT"
            )
        names["features"] = next(iter(available))
    return names


def convert(
    image_id: Id, record: ImageFields, options: SourceOptions, certain: Collection[Axes] = ()
) -> ImageRows:
    """The rows, boxes, size and grid shape of one image. Raises `ValueError` or `KeyError`.

    Rows that fill an image up to a fixed number (features and box all zero, or beyond the number of
    boxes) are left out and counted. `certain` are the axes that the layout is known to have.
    """
    names = find_entries(record.keys(), options.keys)
    count = int(np.asarray(record[names["count"]]).item()) if "count" in names else None
    boxes, size = None, (options.sizes or {}).get(str(image_id))
    counts: dict[str, int] = {}
    if "boxes" in names:
        boxes = _decode(record[names["boxes"]], count, 4).astype(np.float32)
        boxes = boxes[:, :4] if names["boxes"] == "spatial_features" else boxes
        if boxes.ndim != 2 or 4 not in boxes.shape:
            raise ValueError(f"boxes are {boxes.shape}, expected (n, 4)")
        upright = boxes.shape[1] == 4 and (len(boxes) != 4 or (boxes[:, :2] <= boxes[:, 2:]).all())
        boxes = boxes if upright else boxes.T
    n = count if boxes is None else len(boxes)
    features = _decode(record[names["features"]], n, options.feature_size)
    if boxes is None and n not in features.shape:  # filled up to a fixed number
        n = None
    features, grid_shape = _arrange(features, n, options, certain)
    if boxes is not None and len(features) != len(boxes):
        raise ValueError(f"features are {features.shape}, expected a row per box of {len(boxes)}")
    if "size" in names:
        sides = [np.ravel(record[name]) for name in names["size"].split(",")]
        width, height = map(int, np.concatenate(sides))
        size = width, height
    if size is not None and not all(0 < side < 2**31 for side in size):
        raise ValueError(f"the image size is {size[0]} x {size[1]}")
    if not features.any():
        raise ValueError("all its features are zero")
    if grid_shape is None:
        if count is not None and not 0 < count <= len(features):
            raise ValueError(f"{names['count']} is {count}, expected 1 to {len(features)}")
        zero: Any = ~features.any(1)
        filler = zero if boxes is None else zero & ~boxes.any(1)
        if count is not None:
            filler[count:] = True
        counts["filler rows dropped (all zero, or beyond the number of boxes)"] = filler.sum()
        counts["regions kept for their box, though their features are zero"] = (zero > filler).sum()
        features, boxes = features[~filler], boxes if boxes is None else boxes[~filler]
    if boxes is not None and boxes.max() > 1.5:  # a box of pixels is larger
        if size is None:
            raise ValueError(
                "its boxes are in pixels and its size is not in the file given with --sizes; give "
                "it, or --keys size=WIDTH,HEIGHT, or leave boxes out with --keys boxes="
            )
        boxes = np.divide(boxes, np.array([*size, *size], np.float32), dtype=np.float32)
    elif boxes is not None and "size" in names:
        counts["images whose boxes were divided by their size already"] = 1
    counts = {label: int(number) for label, number in counts.items() if number}
    return ImageRows(image_id, features, boxes, size, grid_shape, counts)


def _decode(value: Any, n: int | None, width: int | None) -> NDArray[Any]:
    """An array; if it is base64, n rows of float32, or of float16 if the `width` says so."""
    if isinstance(value, list) and value and isinstance(value[0], str):  # one for each region
        return np.concatenate([_decode(row, 1, width) for row in value])
    if not isinstance(value, (bytes, str)):
        return np.asarray(value)
    content = base64.b64decode(value, validate=True)
    if n is None and width is None:
        raise ValueError("how many boxes? Say so with --keys count=NAME, or --feature-size")
    n = len(content) // (4 * (width or 1)) if n is None else n
    numbers = width or len(content) // max(4, 4 * n)
    kinds = {2 * n * numbers: "<f2", 4 * n * numbers: "<f4"}
    if not content or len(content) not in kinds:
        raise ValueError(
            f"{len(content)} bytes are not {n} rows x {width or 'width'} x 4 bytes (float32)"
        )
    halves = np.frombuffer(content, "<f2")
    # The lower half of a float32, as float16, is often huge or not a number; if rounded, zero.
    if width is None and len(np.unique(halves[::2])) > 48 and (abs(halves) < 1000).all():
        raise ValueError(
            "features look like float16; say how wide a row is with --feature-size "
            f"({2 * numbers}?)"
        )
    return np.frombuffer(content, kinds[len(content)]).reshape(n, numbers)


def _arrange(
    features: NDArray[Any], n: int | None, options: SourceOptions, certain: Collection[Axes]
) -> tuple[NDArray[Any], tuple[int, int] | None]:
    """Rows (n, D), and the shape of the grid of a map, by what fits. Raises `ValueError`."""
    shape = features.shape
    while features.ndim > 2 and len(features) == 1:
        features = features[0]
    features = np.atleast_2d(features)
    sides = features.shape
    # The position of the width D in the shape, for each way that features may lie.
    widths: dict[Axes, int] = (
        {"rows": 1, "columns": 0} if len(sides) == 2 else {"map": 0, "rows": 2}
    )
    fit = [
        axes
        for axes, at in widths.items()
        if options.axes in (None, axes)
        and options.feature_size in (None, sides[at])
        and (len(sides) == 3 or n in (None, sides[1 - at]))
    ]
    if len(fit) > 1:
        fit = [axes for axes in certain if axes in fit][-1:] or fit
    usual = fit[0] if fit else "rows"
    if len(fit) > 1 and sides[widths[usual]] > sorted(sides)[-2] and (n is None or len(sides) == 3):
        fit = [usual]  # the width is the longest side
    if len(fit) != 1 or len(sides) > 3:
        expected = f"{n or 'n'} rows of width {options.feature_size or 'D'}"
        raise ValueError(
            f"features are {shape}, expected {expected}; say how they lie with --axes: rows "
            "(n, D), columns (D, n) or map (D, h, w)"
        )
    features = np.moveaxis(features, widths[fit[0]], -1)
    grid_shape = (features.shape[0], features.shape[1]) if features.ndim == 3 else None
    return features.reshape(math.prod(features.shape[:-1]), features.shape[-1]), grid_shape


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A record without nesting: {"a": {"b": 1}} -> {"a.b": 1}; a list of objects becomes a list for
    each of their keys, a tensor an array."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        flat = [flatten(item, prefix) for item in value]
        return {key: [item.get(key) for item in flat] for key in flat[0]}
    if isinstance(value, torch.Tensor):  # numpy has no bfloat16
        value = (value.float() if value.is_floating_point() else value).detach().numpy()
    if not isinstance(value, dict):
        return {prefix: value}
    merged: dict[str, Any] = {}
    for key, inner in value.items():
        merged |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return merged
