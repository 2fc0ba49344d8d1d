"""From images to a store of features or pixels: decoded by worker processes, batched by shape.

B images of a batch, H, W their height and width, n rows of an image, D width of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from PIL import Image

from mcan.data.arrays import Id
from mcan.data.store import plain
from mcan.errors import DataError, plural
from mcan.files import sha256_of
from mcan.preparation.extractors import (
    DEFAULT,
    RANDOM,
    BoxSelection,
    GridExtractor,
    RegionExtractor,
    published_weights,
)
from mcan.preparation.images import (
    MAX_PIXELS,
    ImageSource,
    Resize,
    Resizing,
    read_image,
    resize_image,
)
from mcan.preparation.store_writer import BrokenImage, FillOptions, Found, ImageRows, fill_store

_PART = 32
"""Images that a worker decodes at a time, and that are done again at most after a kill."""


def extract_features(
    extractor: GridExtractor | RegionExtractor | None,
    images: Mapping[Id, ImageSource],
    options: FillOptions,
    *,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    batch_size: int = 8,
    resize: Resizing = None,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write the features of all `images`, in their order, as a store; see `fill_store`.

    Without an extractor, the pixels. Images are resized while decoding if `resize` is given; see
    `read_image`. Images of one shape are processed together, so none is padded.
    """
    items = list(images.items())
    parts = {str(i // _PART): items[i : i + _PART] for i in range(0, len(items), _PART)}
    make: Callable[[Any], Iterable[Found]] = iter
    how: dict[str, Any] = {"pixels": resize}
    if extractor is not None:
        extractor, device = extractor.to(device).eval(), torch.device(device)
        make = partial(_extract, extractor, device, precision, batch_size)
        sides = resize._asdict() if isinstance(resize, Resize) else None
        how = {**extractor.settings, "resize": sides, "precision": precision}
    digest = hashlib.sha256(repr(list(images)).encode()).hexdigest()
    fill_store(
        options,
        list(parts),
        partial(_decode, parts, resize, max_pixels),
        make,
        settings={"extractor": how, "images": digest},
        provenance={"torchvision": torchvision.__version__, "extractor": how},
    )


def extractor_of(
    made_by: str, weights: Path | None, device: torch.device
) -> Callable[[Image.Image], ImageRows]:
    """A function that extracts an image's features in the same way as those of a store.

    `made_by` is `ImageStore.made_by`; `weights` is the weights file, if one was used. Nothing is
    downloaded. Raises `DataError` with the remedy.
    """
    settings, choice = {}, RANDOM
    resize: Resizing = None
    with suppress(ValueError):
        settings = dict(json.loads(made_by))
    name = settings.get("grid") or settings.get("region")
    if name is None:
        raise DataError(
            f"the model's features were made by {plain(made_by)}, not by extract_features.py, so "
            "none can be made of a picture; give an image id of a store, or (features, boxes)"
        )
    if sides := settings["resize"]:
        resize = Resize(**sides) if isinstance(sides, dict) else (sides[0], sides[1])
    origin = settings["weights"]
    if weights is not None and "sha256" not in origin:
        kind = "published" if "published" in origin else "random"
        raise DataError(f"the model's features were made with {kind} weights; give no file")
    if "published" in origin:
        choice = DEFAULT
        published, file = published_weights(name)
        if published != origin["published"] or not file.is_file():
            raise DataError(
                f"pictures need {origin['published']}, and {file} is not on this machine; "
                "extract_features.py --weights DEFAULT downloads it"
            )
    elif "sha256" in origin:
        if weights is None or not weights.is_file() or sha256_of(weights) != origin["sha256"]:
            raise DataError(
                f"pictures need the extractor's weights, {origin['file']} of SHA-256 "
                f"{origin['sha256']}; give that file as weights"
            )
        choice = str(weights)
    extractor: GridExtractor | RegionExtractor
    if "grid" in settings:
        any_size = resize is not None
        extractor = GridExtractor(name, choice, crop=settings.get("crop"), any_size=any_size)
        resize = resize or extractor.transform
    else:
        boxes = BoxSelection(*(settings[key] for key in BoxSelection._fields))
        extractor = RegionExtractor(name, choice, boxes, settings["min_size"], settings["max_size"])
    # `random` weights are drawn with a fixed seed.
    extractor = extractor.to(device).eval()

    def extract(picture: Image.Image) -> ImageRows:
        try:
            pixels = ImageRows(0, resize_image(picture, resize), size=picture.size)
        except ValueError as error:
            raise DataError(f"the image: {error}") from error
        found = _extract(extractor, device, settings["precision"], 1, [pixels])[0]
        if isinstance(found, BrokenImage):
            raise DataError(f"the image: {found.reason}")
        return found

    return extract


def _decode(
    parts: Mapping[str, Sequence[tuple[Id, ImageSource]]],
    resize: Resizing,
    max_pixels: int,
    part: str,
) -> list[Found]:
    decoded: list[Found] = []
    for image_id, source in parts[part]:
        try:
            decoded.append(read_image(source, image_id, resize, max_pixels))
        except ValueError as error:
            decoded.append(BrokenImage(str(image_id), f"{source}: {error}"))
    return decoded


def _extract(
    extractor: GridExtractor | RegionExtractor,
    device: torch.device,
    precision: str,
    batch_size: int,
    decoded: Sequence[Found],
) -> list[Found]:
    """The features of each image, in the order given."""
    found = list(decoded)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(decoded):
        if isinstance(image, ImageRows):
            shapes.setdefault(np.shape(image.rows), []).append(number)
    for same in shapes.values():
        for first in range(0, len(same), batch_size):
            numbers = same[first : first + batch_size]
            images: list[Any] = [decoded[number] for number in numbers]
            pixels = torch.from_numpy(np.stack([image.rows for image in images]))
            bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
            try:
                with torch.inference_mode(), bf16:
                    results = extractor(pixels.to(device))
            except torch.OutOfMemoryError as error:
                raise DataError(
                    f"{plural(len(pixels), 'image')} of {pixels.shape[3]} x {pixels.shape[2]} "
                    f"pixels: more than fits into the memory of {device}; continue with --resume "
                    "and a smaller --batch-size"
                ) from error
            for number, image, result in zip(numbers, images, results, strict=True):
                if isinstance(extractor, GridExtractor):
                    boxes = extractor.cell_boxes(image.size, result.grid_shape)
                    result = result._replace(boxes=boxes)
                features = result.features.float().cpu().numpy()
                boxes = None if result.boxes is None else result.boxes.float().cpu().numpy()
                found[number] = image._replace(
                    rows=features, boxes=boxes, grid_shape=result.grid_shape
                )
                if not len(features):
                    reason = "the detector proposes no region"
                    found[number] = BrokenImage(str(image.image_id), reason)
    return found
