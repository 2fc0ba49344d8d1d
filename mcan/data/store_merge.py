"""Several region stores as one, such as the shards of an extraction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mcan.data.hdf5 import Id
from mcan.data.store import ImageStore, open_store
from mcan.data.store_writer import RegionStoreWriter
from mcan.errors import DataError
from mcan.progress import progress


def merge_stores(paths: Sequence[Path], output: Path) -> int:
    """Write the images of all stores, in their order, as `output`; returns their number.

    Raises `DataError` where two stores differ in what they hold or how it was extracted, or have
    an image in common; nothing is written then.
    """
    stores = [open_store(path) for path in paths]
    first = stores[0]
    for store in stores:
        if store.kind != "regions":
            raise DataError(f"{store.path}: holds {store.kind}; only region stores are merged")
        ours, theirs = _describe(first), _describe(store)
        for what, value in ours.items():
            if theirs[what] != value:
                raise DataError(
                    f"{store.path} and {first.path} differ in {what}: {theirs[what]} and {value}; "
                    "merged stores must be equal in it"
                )
    _check_ids(stores)
    count = sum(len(store) for store in stores)
    provenance = {
        **{k: v for k, v in first.provenance.items() if k == "extractor"},
        "merged": [{"file": str(store.path), **store.provenance} for store in stores],
    }
    writer = RegionStoreWriter(
        output,
        first.row_shape[0],
        "float16" if first.rows.dtype == np.float16 else "float32",
        boxes=first.boxes is not None,
        sizes=first.sizes is not None,
        grid=first.grid_shapes is not None,
        provenance=provenance,
    )
    with writer, progress(total=count, unit=" images", desc="merging") as bar:
        for store in stores:
            for number in range(len(store)):
                _copy(store, number, writer)
                bar.update()
    return count


def _describe(store: ImageStore) -> dict[str, object]:
    return {
        "width": store.row_shape[0],
        "dtype": str(store.rows.dtype),
        "boxes": store.boxes is not None,
        "sizes": store.sizes is not None,
        "grid shapes": store.grid_shapes is not None,
        "type of image ids": "integers" if store.image_ids.dtype == np.int64 else "text",
        "the way they were extracted": store.provenance.get("extractor"),
    }


def _check_ids(stores: Sequence[ImageStore]) -> None:
    owner: dict[Id, Path] = {}
    for store in stores:
        for image_id in store.image_ids.tolist():
            if image_id in owner:
                raise DataError(
                    f"{owner[image_id]} and {store.path}: both have the image {image_id!r}"
                )
            owner[image_id] = store.path


def _copy(store: ImageStore, number: int, writer: RegionStoreWriter) -> None:
    where = slice(*store.offsets[number : number + 2].tolist())
    sizes, shapes = store.sizes, store.grid_shapes
    writer.add(
        store.image_ids[number],
        np.asarray(store.rows)[where],
        None if store.boxes is None else store.boxes[where],
        None if sizes is None else (int(sizes[number, 0]), int(sizes[number, 1])),
        None if shapes is None else (int(shapes[number, 0]), int(shapes[number, 1])),
    )
