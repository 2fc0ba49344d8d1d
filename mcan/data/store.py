"""Image stores: region features or pixels of many images in one HDF5 file, memory-mapped.

N images, T rows of all of them, D width of a feature row. File format: data/README.md. Writer:
`mcan.preparation.store_writer`.
"""

from __future__ import annotations

import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcan.console import message, progress
from mcan.data.arrays import Ids, Index, array_to_ids
from mcan.data.integrity import content_digest, file_identity, image_checksum, map_arrays, remake
from mcan.errors import DataError, plural, shorten
from mcan.limits import free_memory, processes_here
from mcan.rows import Packed, filler_rows

FORMAT_VERSION = 2
Kind = Literal["regions", "pixels"]
Residency = Literal["disk", "memory", "device"]
TABLES = ("image_ids", "offsets", "checksums", "sizes", "grid_shapes")
"""The datasets with one entry per image, all covered by the digest."""


@dataclass(eq=False)
class ImageStore:
    """An open store. Made by `open_store`; pickles as its path and reopens there from disk.

    `image_ids` (N,) int64 or bytes; the rows of image i are `rows[offsets[i]:offsets[i + 1]]`, in
    `rows` (T, D) float16 or float32, or (N, 3, H, W) uint8 of pixels: an array, memory-mapped
    until `load` reads it, or a tensor on a device. `boxes` (T, 4) float32, normalised x1 y1 x2 y2,
    `sizes` (N, 2) int32, width and height in pixels, and `grid_shapes` (N, 2) int32, rows and
    columns, are None if the store has none. `digest` is a SHA-256 of everything that training
    reads; equal stores have equal digests. `identity` is that of the file when it was opened.
    """

    path: Path
    digest: str
    provenance: dict[str, Any]
    rows: NDArray[Any] | Tensor
    image_ids: Ids
    offsets: Index
    checksums: NDArray[np.uint32]
    boxes: NDArray[Any] | None = None
    sizes: NDArray[Any] | None = None
    grid_shapes: NDArray[Any] | None = None
    identity: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return open_store, (self.path,)

    def check_unchanged(self) -> None:
        """Raise `DataError` if the file was written to since it was opened.

        Reading rows that a file has lost ends the process with a bus error. A change is noticed
        before the next batch is read; one in the middle of a batch cannot be. If the file was
        deleted or replaced by another, the old rows can still be read.
        """
        now = file_identity(self.path)
        if self.identity and now[:1] == self.identity[:1] and now != self.identity:
            raise DataError(
                f"{self.path}: was overwritten while it is in use; write a new store under another "
                "name, and move it to its place only when no run reads the old one"
            )

    @property
    def kind(self) -> Kind:
        """`regions` (feature rows, one or more per image) or `pixels` (one row per image)."""
        return "pixels" if self.rows.ndim == 4 else "regions"

    @property
    def made_by(self) -> str:
        """What made the features, as JSON: settings of the extractor, the formats that were
        imported, or all that is known; equal for the shards of one extraction."""
        formats = sorted({source["format"] for source in self.provenance.get("sources", [])})
        how = self.provenance.get("extractor") or formats or self.provenance or "unknown"
        return how if isinstance(how, str) else json.dumps(how, sort_keys=True)

    def image(self, index: int) -> tuple[Any, Any, Any]:
        """Rows, boxes and grid shape of an image; None for what the store does not have."""
        where = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        boxes = None if self.boxes is None else self.boxes[where]
        grid_shape = None if self.grid_shapes is None else self.grid_shapes[index]
        return self.rows[where], boxes, grid_shape

    def verify(self, images: Sequence[int] | None = None) -> None:
        """Compare `images` (indices; None: all) with their checksums, at 1.3 GB/s if in memory.

        Raises `DataError` that names damaged images. Opening a store verifies 16 images only.
        """
        damaged = []
        indices = range(len(self)) if images is None else images
        for index in progress(indices, unit=" images", delay=2, desc=f"verifying {self.path.name}"):
            rows, boxes, _ = self.image(index)
            if image_checksum(np.asarray(rows), boxes) != self.checksums[index]:
                damaged.append(index)
        if damaged:
            ids = map(repr, array_to_ids(self.image_ids[damaged]))
            raise DataError(
                f"{self.path}: the rows of {plural(len(damaged), 'image')} are damaged "
                f"({shorten(ids)}); {remake(self.path, self.provenance)}"
            )

    def load(self, residency: Residency, device: torch.device | str = "cpu") -> ImageStore:
        """Move the rows to where batches take them from, and return the store itself.

        `disk` leaves them memory-mapped, `memory` reads them into this process, `device` onto
        `device`; batches must then be made in the process that owns it. Raises `DataError` if they
        do not fit.
        """
        if residency == "disk":
            return self
        source = np.asarray(self.rows)
        target = torch.device(device if residency == "device" else "cpu")
        size = f"{source.nbytes / 2**30:.1f} GiB"
        free = free_memory(target)
        remedy = "use data.residency=disk"
        full = f"{self.path}: {size} do not fit into the memory of {target}; {remedy}"
        # Linux would end the process without a word.
        if free is not None and processes_here(target) * source.nbytes > free:
            raise DataError(full)
        message(f"reading {self.path} into the memory of {target} ({size})")
        try:
            rows = torch.tensor(source, device=target)
        except (RuntimeError, MemoryError) as error:  # includes torch.OutOfMemoryError
            raise DataError(full) from error
        self.rows = rows if residency == "device" else rows.numpy()  # numpy joins rows faster
        return self


def open_store(path: str | Path) -> ImageStore:
    """Open a store and check its tables and 16 of its images, however large it is.

    Raises `DataError` if the file is missing, damaged, truncated or in an older format.
    """
    path = Path(path)
    arrays, attributes = map_arrays(path, "image store")
    intact, provenance = False, {}
    # Of a damaged file any of these may be missing, or of another type.
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        note = arrays["provenance"].tobytes()
        if zlib.crc32(note) == attributes["provenance_crc32"]:
            provenance = json.loads(note)
            digest = attributes["digest"].decode()
            rows = arrays["pixels" if "pixels" in arrays else "features"]
            boxes = arrays.get("boxes")
            tables = {table: np.array(arrays[table]) for table in TABLES if table in arrays}
            known = attributes["format_version"] == FORMAT_VERSION
            intact = known and content_digest(rows, boxes, tables) == digest
    if not intact:
        raise DataError(
            f"{path}: damaged, or not an image store of format {FORMAT_VERSION}; "
            f"{remake(path, provenance)}"
        )
    store = ImageStore(
        path, digest, provenance, rows, boxes=boxes, identity=file_identity(path), **tables
    )
    sample = np.linspace(0, len(store) - 1, 16).astype(int)
    store.verify(np.unique(sample).tolist())
    return store


def plain(text: str) -> str:
    """JSON as a short text for messages: `grid: resnet50, layer: layer4`."""
    return re.sub(r'[][{}"]', "", text)[:200]


class StoreGroup:
    """One or more stores of one kind that are read as one, searched in the order given.

    Images are numbered through all stores; `lengths` has the number of rows of each. Raises
    `DataError`, which names two files, if kind, row shape or dtype differ. Boxes and cells are
    given only if every store has them.
    """

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        first = stores[0]
        contents = [f"{s.kind} {tuple(s.rows.shape[1:])} {s.rows.dtype}" for s in stores]
        for store, content in zip(stores, contents, strict=True):
            if content != contents[0]:
                raise DataError(
                    f"{store.path} holds {content} while {first.path} holds {contents[0]}; stores "
                    "used together must hold the same"
                )
        self.stores = tuple(stores)
        self.kind = first.kind
        self.row_shape = tuple(first.rows.shape[1:])
        self.has_boxes = all(store.boxes is not None for store in stores)
        self.has_cells = all(store.grid_shapes is not None for store in stores)
        self.lengths = np.concatenate([np.diff(store.offsets) for store in stores])
        self._firsts = [0, *accumulate(map(len, stores))]

    def locate(self, image_ids: Ids) -> Index:
        """The number of each image, for `gather`; -1 if no store has it."""
        ids = [image_id for store in self.stores for image_id in array_to_ids(store.image_ids)]
        # Backwards, since of an image in several stores the first counts.
        numbers = {ids[number]: number for number in reversed(range(len(ids)))}
        found = (numbers.get(image_id, -1) for image_id in array_to_ids(image_ids))
        return np.fromiter(found, np.int64, len(image_ids))

    def find(self, image: int) -> tuple[ImageStore, int]:
        """The store of the image with this number, and its index there."""
        store = bisect_right(self._firsts, image) - 1
        return self.stores[store], image - self._firsts[store]

    def gather(self, images: Index) -> tuple[Packed, Tensor, Tensor | None, Tensor | None]:
        """Of the images with these numbers, in this order: which rows are whose, the rows (T, D) or
        pixels (B, 3, H, W), boxes (T, 4), and cells (T, 2) int64, row and column in the grid.

        Rows are on the device of a store that was loaded there, all else is on the CPU; nothing
        waits for the device.
        """
        for store in self.stores:
            store.check_unchanged()
        lengths = torch.from_numpy(self.lengths[images])
        layout = Packed(lengths, filler_rows(lengths))
        # A slice per image runs at memory bandwidth; an index per row does not.
        found = [store.image(index) for store, index in map(self.find, images.tolist())]
        first, boxes, cells = self.stores[0], None, None
        rows = _concatenate([image[0] for image in found], first.rows, layout.filler)
        if self.has_boxes:
            boxes = _concatenate([image[1] for image in found], first.boxes, layout.filler)
        if self.has_cells:
            grids = [np.argwhere(np.ones(image[2])) for image in found]
            cells = _concatenate(grids, np.zeros((0, 2), np.int64), layout.filler)
        return layout, rows, boxes, cells


def _concatenate(pieces: list[Any], table: Any, filler: int) -> Tensor:
    """The pieces, then `filler` rows of zeros; all like the rows of `table`, array or tensor."""
    if isinstance(table, Tensor):
        with torch.autocast(table.device.type, enabled=False):
            return torch.cat([*pieces, table.new_zeros(filler, *table.shape[1:])])
    zeros = np.zeros((filler, *table.shape[1:]), table.dtype)
    return torch.from_numpy(np.concatenate([*pieces, zeros]))
