"""Writers of image stores: one pass, bounded memory, complete or not at all.

n rows of an image, D width of a feature row. File format: data/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcan.data.hdf5 import Id, check_id, partial, publishing, saving, write_ids
from mcan.data.row_file import RowFile
from mcan.data.store import FORMAT_VERSION, Kind
from mcan.errors import DataError

_BOX_TOLERANCE = 1e-3


_Self = TypeVar("_Self", bound="_StoreWriter")


class _StoreWriter:
    """What both kinds share: ids, streams, publishing. A context manager; see the subclasses."""

    kind: Kind

    def __init__(
        self,
        path: str | Path,
        rows: Mapping[str, tuple[Any, tuple[int, ...]]],
        provenance: Mapping[str, Any] | None,
    ) -> None:
        """`rows`: dtype and row shape of each dataset that is streamed."""
        self.path = Path(path)
        self._rows = rows
        self._provenance = json.dumps(dict(provenance or {}))
        self._ids: dict[Id, None] = {}
        self._streams: dict[str, RowFile] = {}
        self._sample: Id | None = None

    def __enter__(self: _Self) -> _Self:
        if self.path.exists():
            raise DataError(f"{self.path}: already exists; delete it or choose another name")
        with saving(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for name, (dtype, row_shape) in self._rows.items():
                raw = partial(self.path.with_name(f"{self.path.name}.{name}"))
                self._streams[name] = RowFile(raw, dtype, row_shape)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exception_type is None:
                self._publish()
        finally:
            for stream in self._streams.values():
                stream.discard()

    def _check_id(self, image_id: object) -> Id:
        checked = check_id(image_id, "image id", self.path, self._sample)
        if checked in self._ids:
            raise DataError(f"{self.path}: image id {checked!r} was added before; ids are unique")
        return checked

    def _append(self, image_id: Id, rows: Mapping[str, NDArray[Any]]) -> None:
        with saving(self.path):
            for name, values in rows.items():
                self._streams[name].append(values)
        self._ids[image_id] = None
        self._sample = image_id

    def _publish(self) -> None:
        if not self._ids:
            raise DataError(f"{self.path}: no image was added, so no store was written")
        with (
            publishing(self.path) as temporary,
            saving(self.path),
            h5py.File(temporary, "x", libver=("v108", "v110")) as file,
        ):
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["kind"] = self.kind
            file.attrs["provenance"] = self._provenance
            write_ids(file, "image_ids", list(self._ids))
            for name, values in self._per_image().items():
                file[name] = values
            for name, stream in self._streams.items():
                stream.copy_into(file, name)

    def _per_image(self) -> dict[str, NDArray[Any]]:
        """Further small datasets, one entry per image."""
        return {}


class RegionStoreWriter(_StoreWriter):
    """Writes a store of region features; `with RegionStoreWriter(...) as writer: writer.add(...)`.

    Nothing appears under `path` until the block ends without an exception. Needs free disk space of
    twice the result while it ends. Raises `DataError` where `path` exists or cannot be written.
    """

    kind = "regions"

    def __init__(
        self,
        path: str | Path,
        feature_dim: int,
        dtype: Literal["float16", "float32"] = "float16",
        *,
        boxes: bool = False,
        sizes: bool = False,
        grid: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._dim = feature_dim
        self._dtype = np.dtype(dtype)
        rows: dict[str, tuple[Any, tuple[int, ...]]] = {"features": (dtype, (feature_dim,))}
        if boxes:
            rows["boxes"] = (np.float32, (4,))
        super().__init__(path, rows, provenance)
        self._wanted = {"boxes": boxes, "size": sizes, "grid_shape": grid}
        self._lengths: list[int] = []
        self._sizes: list[tuple[int, int]] = []
        self._grid_shapes: list[tuple[int, int]] = []

    def add(
        self,
        image_id: Id,
        features: ArrayLike,
        boxes: ArrayLike | None = None,
        size: tuple[int, int] | None = None,
        grid_shape: tuple[int, int] | None = None,
    ) -> None:
        """Add an image: `features` (n, D), and where the store was opened with them `boxes` (n, 4),
        normalised x1 y1 x2 y2, `size` (width, height) in pixels, `grid_shape` (rows, columns).

        Raises `DataError` that names the image; the store is then as before the call.
        """
        checked = self._check_id(image_id)
        given = {"boxes": boxes, "size": size, "grid_shape": grid_shape}
        for name, wanted in self._wanted.items():
            if wanted != (given[name] is not None):
                state = "is missing" if wanted else "is given, but the store was opened without"
                raise self._error(checked, f"{name} {state}")
        rows = {"features": self._check_features(checked, features)}
        count = len(rows["features"])
        if boxes is not None:
            rows["boxes"] = self._check_boxes(checked, boxes, count)
        if size is not None and min(size) < 1:
            raise self._error(checked, f"size is {size}, expected a positive width and height")
        if grid_shape is not None and (
            min(grid_shape) < 1 or grid_shape[0] * grid_shape[1] != count
        ):
            raise self._error(checked, f"grid_shape {grid_shape} does not make its {count} rows")
        self._append(checked, rows)
        self._lengths.append(count)
        if size is not None:
            self._sizes.append(size)
        if grid_shape is not None:
            self._grid_shapes.append(grid_shape)

    def _error(self, image_id: Id, text: str) -> DataError:
        return DataError(f"{self.path}: image {image_id!r}: {text}")

    def _check_features(self, image_id: Id, features: ArrayLike) -> NDArray[Any]:
        values = np.asarray(features)
        if values.ndim != 2 or values.shape[1] != self._dim or not len(values):
            shape = tuple(values.shape)
            raise self._error(image_id, f"features are {shape}, expected (n >= 1, {self._dim})")
        if values.dtype.kind not in "fiu":
            raise self._error(image_id, f"features are {values.dtype}, expected numbers")
        with np.errstate(over="ignore"):
            stored = values.astype(self._dtype)
        if not np.isfinite(stored).all():
            bad = values[~np.isfinite(stored)][0]
            reason = (
                f"does not fit {self._dtype}; write the store with a wider dtype"
                if np.isfinite(bad)
                else "is not finite"
            )
            raise self._error(image_id, f"a feature value of {bad} {reason}")
        return stored

    def _check_boxes(self, image_id: Id, boxes: ArrayLike, count: int) -> NDArray[Any]:
        values = np.asarray(boxes, dtype=np.float32)
        if values.shape != (count, 4):
            raise self._error(image_id, f"boxes are {values.shape}, expected ({count}, 4)")
        inside = (values >= -_BOX_TOLERANCE) & (values <= 1 + _BOX_TOLERANCE)
        right = inside.all(1) & (values[:, :2] <= values[:, 2:]).all(1)
        if not right.all():
            bad = values[~right][0].tolist()
            raise self._error(
                image_id,
                f"box {bad} is not x1 <= x2, y1 <= y2 within [0, 1]; divide pixel coordinates by "
                "the width and height of the image",
            )
        return values.clip(0, 1)

    def _per_image(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            "offsets": np.cumsum([0, *self._lengths], dtype=np.int64)
        }
        if self._sizes:
            arrays["sizes"] = np.array(self._sizes, np.int32)
        if self._grid_shapes:
            arrays["grid_shapes"] = np.array(self._grid_shapes, np.int32)
        return arrays


class PixelStoreWriter(_StoreWriter):
    """Writes a store of equally large images, `shape` (3, H, W); used as `RegionStoreWriter`."""

    kind = "pixels"

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int, int],
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(path, {"pixels": (np.uint8, shape)}, provenance)
        self._shape = shape

    def add(self, image_id: Id, pixels: ArrayLike) -> None:
        """Add an image, (3, H, W) uint8. Raises `DataError` that names the image."""
        checked = self._check_id(image_id)
        values = np.asarray(pixels)
        if values.shape != self._shape or values.dtype != np.uint8:
            raise DataError(
                f"{self.path}: image {checked!r}: pixels are {values.dtype} {values.shape}, "
                f"expected uint8 {self._shape}"
            )
        self._append(checked, {"pixels": values[None]})
