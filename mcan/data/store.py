"""Image stores: region features or pixels of many images in one HDF5 file, read without copying it.

N images, T rows of all of them, D width of a feature row. File format: data/README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcan.data.hdf5 import Id, Ids, check_offsets, read_array, read_ids, reading, require
from mcan.errors import DataError
from mcan.progress import progress

FORMAT_VERSION = 1
Kind = Literal["regions", "pixels"]
Residency = Literal["disk", "memory", "device"]
_BLOCK_BYTES = 64 << 20


class ImageStore:
    """An open store. Made by `open_store`; pickles as its path, and opens there again from disk.

    - `kind`: `regions`, feature rows of which an image has one or more, or `pixels`, where one row
      is the image, (3, H, W) uint8;
    - `image_ids` (N,) int64 or str objects; `offsets` (N + 1,) int64: the rows of image i are
      `rows[offsets[i]:offsets[i + 1]]`;
    - `rows` (T, D) float16 or float32, or (N, 3, H, W): memory-mapped array, array or tensor
      according to residency;
    - `boxes` (T, 4) float32, normalised x1 y1 x2 y2, `sizes` (N, 2) int32, width and height in
      pixels, and `grid_shapes` (N, 2) int64, rows and columns: None where the file has none.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        image_ids: Ids,
        offsets: NDArray[np.int64],
        rows: NDArray[Any],
        boxes: NDArray[np.float32] | None = None,
        sizes: NDArray[np.int32] | None = None,
        grid_shapes: NDArray[np.int64] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.image_ids = image_ids
        self.offsets = offsets
        self.rows: NDArray[Any] | Tensor = rows
        self.boxes = boxes
        self.sizes = sizes
        self.grid_shapes = grid_shapes
        self.provenance = provenance or {}
        self._lookup = _Lookup(image_ids, path)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return open_store, (self.path,)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(D,) or (3, H, W)."""
        return tuple(self.rows.shape[1:])

    def rows_of(self, image_ids: Ids) -> NDArray[np.int64]:
        """Position of each image in the store, -1 where it is not there."""
        return self._lookup.find(image_ids)

    def load(self, residency: Residency, device: torch.device | str = "cpu") -> ImageStore:
        """Move the rows to where batches take them from, and return the store itself.

        `disk` leaves them memory-mapped; processes share the page cache. `memory` reads them into
        this process. `device` holds them as a tensor on `device`; batches must then be made in the
        process that owns the device. Raises `DataError` where they do not fit.
        """
        if residency == "disk":
            return self
        target = torch.device(device) if residency == "device" else torch.device("cpu")
        source = np.asarray(self.rows)
        dtype = torch.from_numpy(np.empty(0, source.dtype)).dtype
        try:
            rows = torch.empty(source.shape, dtype=dtype, device=target)
        except RuntimeError as error:  # includes torch.OutOfMemoryError
            raise DataError(
                f"{self.path}: {source.nbytes / 2**30:.1f} GiB do not fit into the memory of "
                f"{target}; use residency: disk"
            ) from error
        step = max(1, _BLOCK_BYTES // max(1, source[:1].nbytes))
        with progress(
            total=source.nbytes,
            unit="B",
            unit_scale=True,
            delay=2,
            desc=f"reading {self.path.name}",
        ) as bar:
            for first in range(0, len(source), step):
                block = np.array(source[first : first + step])
                rows[first : first + step] = torch.from_numpy(block)
                bar.update(block.nbytes)
        self.rows = rows if residency == "device" else rows.numpy()
        return self


class _Lookup:
    """From image ids to positions: a sorted search for integers, a dictionary for strings."""

    def __init__(self, ids: Ids, path: Path) -> None:
        self._order: NDArray[np.int64] | None = None
        if ids.dtype == np.int64:
            self._order = np.argsort(ids, kind="stable")
            self._sorted = ids[self._order]
            twins = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
            twin: Id | None = int(self._sorted[twins[0]]) if len(twins) else None
        else:
            self._rows = {value: row for row, value in enumerate(ids.tolist())}
            twin = None
            if len(self._rows) < len(ids):
                twin = next(v for row, v in enumerate(ids.tolist()) if self._rows[v] != row)
        if twin is not None:
            raise DataError(f"{path}: image id {twin!r} occurs more than once; ids must be unique")

    def find(self, ids: Ids) -> NDArray[np.int64]:
        if (self._order is not None) != (ids.dtype == np.int64):
            return np.full(len(ids), -1, np.int64)
        if self._order is None:
            found = (self._rows.get(value, -1) for value in ids.tolist())
            return np.fromiter(found, np.int64, len(ids))
        place = np.searchsorted(self._sorted, ids).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[place] == ids, self._order[place], -1)


def open_store(path: str | Path) -> ImageStore:
    """Open and check a store; only ids and offsets are read, however large it is.

    Raises `DataError` where the file is missing, damaged, truncated or not laid out as documented.
    """
    path = Path(path)
    with reading(path, "image store") as file:
        kind = file.attrs.get("kind")
        version = file.attrs.get("format_version")
        if kind not in ("regions", "pixels"):
            raise DataError(
                f"{path}: attribute 'kind' is {kind!r}, expected 'regions' or 'pixels'; image "
                "stores are made by mcan.data.store_writer"
            )
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path}: format version is {version}, this program reads {FORMAT_VERSION}; write "
                "the store again"
            )
        ids = read_ids(file, "image_ids")
        count = len(ids)
        if count == 0:
            raise DataError(f"{path}: the store holds no image")
        provenance = _provenance(file)
        if kind == "pixels":
            pixels = require(file, "pixels", [np.uint8], (count, 3, None, None))
            rows = _map(pixels, path)
            return ImageStore(
                path, "pixels", ids, np.arange(count + 1), rows, provenance=provenance
            )
        features = require(file, "features", [np.float16, np.float32], (None, None))
        total = len(features)
        offsets = read_array(file, "offsets", np.int64, (count + 1,))
        check_offsets(str(path), "offsets", offsets, total, least=1)
        return ImageStore(
            path,
            "regions",
            ids,
            offsets,
            _map(features, path),
            _map(require(file, "boxes", [np.float32], (total, 4)), path)
            if "boxes" in file
            else None,
            read_array(file, "sizes", np.int32, (count, 2)) if "sizes" in file else None,
            _grid_shapes(file, offsets),
            provenance,
        )


def _provenance(file: h5py.File) -> dict[str, Any]:
    try:
        provenance = json.loads(file.attrs.get("provenance", "{}"))
    except (TypeError, ValueError):
        provenance = None
    if not isinstance(provenance, dict):
        raise DataError(f"{file.filename}: attribute 'provenance' is not a JSON object")
    return provenance


def _grid_shapes(file: h5py.File, offsets: NDArray[np.int64]) -> NDArray[np.int64] | None:
    if "grid_shapes" not in file:
        return None
    shapes = read_array(file, "grid_shapes", np.int32, (len(offsets) - 1, 2)).astype(np.int64)
    wrong = np.flatnonzero((shapes < 1).any(1) | (shapes.prod(1) != np.diff(offsets)))
    if len(wrong):
        row, count = int(wrong[0]), int(np.diff(offsets)[wrong[0]])
        raise DataError(
            f"{file.filename}: entry {row} of dataset 'grid_shapes' is {shapes[row].tolist()}, "
            f"which does not multiply to the image's {count} rows"
        )
    return shapes


def _map(dataset: h5py.Dataset, path: Path) -> NDArray[Any]:
    """Map a contiguous dataset into memory, straight from the HDF5 file."""
    offset = dataset.id.get_offset()
    if not Path(dataset.file.filename).samefile(path):
        raise DataError(f"{path}: dataset '{dataset.name[1:]}' is a link to another file")
    if dataset.chunks is not None or dataset.external or offset is None:
        raise DataError(
            f"{path}: dataset '{dataset.name[1:]}' is not stored contiguously, so it cannot be "
            f"memory-mapped; rewrite it without chunks and compression (h5repack -l CONTI IN OUT)"
        )
    if offset + dataset.size * dataset.dtype.itemsize > path.stat().st_size:
        raise DataError(f"{path}: the file is truncated inside dataset '{dataset.name[1:]}'")
    # As a plain array: slicing the np.memmap subclass costs several times as much.
    return np.asarray(np.memmap(path, dataset.dtype, "r", offset, dataset.shape))
