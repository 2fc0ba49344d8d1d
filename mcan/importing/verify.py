"""Compare a store with what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcan.data.hdf5 import ids_array
from mcan.data.store import ImageStore, open_store
from mcan.data.store_filling import Broken, ImageRows
from mcan.errors import DataError
from mcan.importing.convert import part_names, read_part
from mcan.importing.source import Source

# Rounding to halves: a relative error of 2 ** -11, and 2 ** -25 among the smallest.
_TOLERANCE = {"float16": (2.0**-11, 2.0**-25), "float32": (0.0, 0.0)}
_BOX_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Verified:
    """How many images were compared, and the largest difference of a feature value."""

    images: int
    difference: float


def verify_store(
    path: Path, sources: Sequence[Source], count: int, wanted: frozenset[str] | None = None
) -> Verified:
    """Compare about `count` images, from parts of the sources drawn at random, with the store.

    Features may differ by what rounding to the store's dtype makes, boxes by 1e-6 once clipped to
    the image. Raises `DataError` that names the first image that differs or is not in the store.
    """
    store = open_store(path)
    if store.kind != "regions":
        raise DataError(f"{path}: holds {store.kind}, expected regions")
    skipped = store.provenance.get("skipped", {})
    names = part_names(sources)
    images, largest = 0, 0.0
    for number in np.random.default_rng(0).permutation(len(names)):
        for image in read_part(sources, names[number], wanted):
            name = image.image if isinstance(image, Broken) else str(image.image_id)
            if name in skipped:
                continue
            if isinstance(image, Broken):
                raise DataError(f"{path}: image {name} is now broken in the source: {image.reason}")
            largest = max(largest, _compare(store, image))
            images += 1
        if images >= count:
            break
    if not images:
        raise DataError(f"{path}: the source holds no image to compare with")
    return Verified(images, largest)


def _compare(store: ImageStore, image: ImageRows) -> float:
    """The largest difference of a feature value."""
    (row,) = store.rows_of(ids_array([image.image_id])).tolist()
    label = f"{store.path}: image {image.image_id!r}"
    if row < 0:
        raise DataError(f"{label} of the source is not in the store")
    where = slice(*store.offsets[row : row + 2].tolist())
    stored = np.asarray(store.rows)[where]
    source = np.asarray(image.features)
    if stored.shape != source.shape:
        raise DataError(f"{label} is {stored.shape} in the store and {source.shape} in the source")
    difference = np.abs(stored.astype(np.float64) - source)
    relative, absolute = _TOLERANCE[stored.dtype.name]
    if not (difference <= relative * np.abs(source.astype(np.float64)) + absolute).all():
        raise DataError(f"{label} differs from the source by up to {np.nanmax(difference):.3g}")
    if store.boxes is not None and image.boxes is not None:
        apart = np.abs(store.boxes[where] - np.clip(image.boxes, 0, 1)).max()
        if not apart <= _BOX_TOLERANCE:
            raise DataError(f"{label} has boxes that differ from the source by up to {apart:.3g}")
    for what, held, given in (
        ("size", store.sizes, image.size),
        ("grid shape", store.grid_shapes, image.grid_shape),
    ):
        if held is not None and given is not None and held[row].tolist() != list(given):
            raise DataError(
                f"{label} has {what} {held[row].tolist()} in the store and {list(given)} in the "
                "source"
            )
    return float(difference.max())
