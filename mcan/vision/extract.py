"""From a folder of pictures to a store: decoded by worker processes, batched by shape.

B pictures, H, W their height and width, n rows of a picture, D width of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor

import mcan
from mcan.data.hdf5 import Id
from mcan.data.parts import read_parts
from mcan.data.store_filling import Broken, Filled, Found, ImageRows, StoreLayout, fill_store
from mcan.errors import DataError
from mcan.vision.extractor import Described, Extractor
from mcan.vision.pictures import Picture, PictureParts, Resize

_PART = 32
"""Pictures that a worker decodes at a time, and that are done again at most after a kill."""


@dataclass(frozen=True)
class Running:
    """How pictures are processed; only `precision` changes the result, by rounding."""

    device: torch.device
    precision: Literal["float32", "bf16"] = "float32"
    batch_size: int = 8
    workers: int = 0

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def shard_of(pictures: Mapping[Id, Path], number: int, count: int) -> dict[Id, Path]:
    """Every `count`-th picture, beginning with the `number`-th, which counts from 1."""
    return dict(list(pictures.items())[number - 1 :: count])


def extract_features(
    extractor: Extractor,
    pictures: Mapping[Id, Path],
    output: Path,
    running: Running,
    *,
    resize: Resize | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    provenance: Mapping[str, Any],
    resume: bool = False,
    skip_broken: bool = False,
) -> Filled:
    """Write the features of all `pictures`, in their order, as the store `output`.

    Pictures are resized while decoding if `resize` is given. Pictures of one shape are processed
    together, so none is padded. Raises `DataError`; for what happens then: `fill_store`.
    """
    extractor = extractor.to(running.device).eval()
    items = list(pictures.items())
    parts = {str(i // _PART): items[i : i + _PART] for i in range(0, len(items), _PART)}
    settings = {
        **extractor.settings,
        "resize": resize and asdict(resize),
        "precision": running.precision,
    }

    def produce(todo: Sequence[str]) -> Iterator[tuple[str, list[Found]]]:
        dataset = PictureParts([(name, parts[name]) for name in todo], resize)
        for name, decoded in read_parts(dataset, running.workers):
            yield name, _describe(extractor, decoded, running)

    return fill_store(
        output,
        StoreLayout(
            extractor.feature_dim,
            dtype,
            boxes=extractor.gives_boxes,
            sizes=True,
            grid=not extractor.gives_boxes,
        ),
        list(parts),
        produce,
        settings={
            "extractor": settings,
            "pictures": hashlib.sha256(repr(list(pictures)).encode()).hexdigest(),
        },
        provenance={
            "made_by": "extract_features",
            "mcan": mcan.__version__,
            "torchvision": torchvision.__version__,
            "extractor": settings,
            **provenance,
        },
        unit=f"parts of {_PART}",
        resume=resume,
        skip_broken=skip_broken,
    )


def _describe(
    extractor: Extractor, decoded: Sequence[Picture | Broken], running: Running
) -> list[Found]:
    """The features of each picture, in the order given."""
    found: list[Found | None] = [item if isinstance(item, Broken) else None for item in decoded]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, item in enumerate(decoded):
        if isinstance(item, Picture):
            shapes.setdefault(item.pixels.shape, []).append(number)
    for numbers in shapes.values():
        for first in range(0, len(numbers), running.batch_size):
            batch = numbers[first : first + running.batch_size]
            pictures = [item for i in batch if isinstance(item := decoded[i], Picture)]
            pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
            described = _run(extractor, pixels, running)
            for number, picture, result in zip(batch, pictures, described, strict=True):
                found[number] = _image_rows(picture, result)
    return [item for item in found if item is not None]


def _run(extractor: Extractor, pixels: Tensor, running: Running) -> list[Described]:
    try:
        with torch.inference_mode(), running.autocast():
            described: list[Described] = extractor(pixels.to(running.device))
        return described
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"{len(pixels)} pictures of {pixels.shape[3]} x {pixels.shape[2]} pixels do not fit "
            f"into the memory of {running.device}; continue with --resume and a smaller "
            "--batch-size"
        ) from error


def _image_rows(picture: Picture, described: Described) -> Found:
    if not len(described.features):
        return Broken(str(picture.image_id), "the detector proposes no region")
    return ImageRows(
        picture.image_id,
        described.features.float().cpu().numpy(),
        None if described.boxes is None else described.boxes.float().cpu().numpy(),
        picture.size,
        described.grid_shape,
    )
