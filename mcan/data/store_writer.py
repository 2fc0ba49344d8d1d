"""Writers of image stores: one pass, bounded memory, complete or not at all.

n rows of an image, D width of a feature row. File format: data/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcan.data.hdf5 import Id, check_id, publishing, write_ids
from mcan.data.journal import Entry, Journal, Step
from mcan.data.region_checks import (
    storable_boxes,
    storable_features,
    storable_grid_shape,
    storable_size,
)
from mcan.data.spool import RowKinds, Spool
from mcan.data.store import FORMAT_VERSION, Kind
from mcan.errors import DataError
from mcan.files import saving

_Self = TypeVar("_Self", bound="_StoreWriter")


class RefusedImageError(DataError):
    """One image cannot be stored, `reason` says why; the store is as before."""

    def __init__(self, path: Path, reason: str, image_id: Id | None = None) -> None:
        named = f"image {image_id!r}: " if image_id is not None else ""
        super().__init__(f"{path}: {named}{reason}")
        self.reason = reason


class _StoreWriter:
    """What both kinds share: ids, streams, publishing. A context manager; see the subclasses.

    Without a journal, an exception leaves nothing behind. With one, what was committed stays for a
    later writer to continue, and `done` are the steps that an earlier one finished. `provenance`
    may be changed until the block ends.
    """

    kind: Kind

    def __init__(
        self,
        path: str | Path,
        rows: RowKinds,
        provenance: Mapping[str, Any] | None,
        journal: Journal | None = None,
    ) -> None:
        self.path = Path(path)
        self.provenance = dict(provenance or {})
        self.done: list[Step] = []
        self._spool = Spool(self.path, rows, journal)
        self._entries: dict[Id, Entry] = {}
        self._uncommitted: list[Entry] = []

    def __enter__(self: _Self) -> _Self:
        if self.path.exists():
            raise DataError(f"{self.path}: already exists; delete it or choose another name")
        with saving(self.path):
            self.done = self._spool.open()
        for step in self.done:
            self._entries.update((entry.image_id, entry) for entry in step.entries)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        published = False
        try:
            with saving(self.path):
                self._spool.sync()
            if exception_type is None:
                self._publish()
                published = True
        finally:
            self._spool.close(keep=not published)

    @property
    def image_ids(self) -> Collection[Id]:
        """Of all images added so far, by an earlier writer of the journal too."""
        return self._entries.keys()

    def commit(self, mark: Any) -> None:
        """With a journal: what was added since the last commit is a finished step, noted as `mark`
        (anything that JSON holds)."""
        with saving(self.path):
            self._spool.commit(Step(mark, self._uncommitted))
        self._uncommitted = []

    def _check_id(self, image_id: object) -> Id:
        other = next(iter(self._entries), None)
        try:
            checked = check_id(image_id, "image id", self.path, other)
        except DataError as error:
            reason = str(error).removeprefix(f"{self.path}: ")
            raise RefusedImageError(self.path, reason) from None
        if checked in self._entries:
            raise RefusedImageError(
                self.path, f"image id {checked!r} was added before; ids are unique"
            )
        return checked

    def _append(self, entry: Entry, rows: Mapping[str, NDArray[Any]]) -> None:
        with saving(self.path):
            self._spool.append(rows)
        self._entries[entry.image_id] = entry
        self._uncommitted.append(entry)

    def _publish(self) -> None:
        if not self._entries:
            raise DataError(f"{self.path}: no image was added, so no store was written")
        with (
            publishing(self.path, self._spool.folder / "store.h5") as temporary,
            saving(self.path),
            h5py.File(temporary, "w", libver=("v108", "v110")) as file,
        ):
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["kind"] = self.kind
            file.attrs["provenance"] = json.dumps(self.provenance)
            write_ids(file, "image_ids", list(self._entries))
            for name, values in self._per_image(list(self._entries.values())).items():
                file[name] = values
            self._spool.copy_into(file)

    def _per_image(self, entries: list[Entry]) -> dict[str, NDArray[Any]]:
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
        journal: Journal | None = None,
    ) -> None:
        self._dim = feature_dim
        self._dtype = np.dtype(dtype)
        rows: dict[str, tuple[Any, tuple[int, ...]]] = {"features": (dtype, (feature_dim,))}
        if boxes:
            rows["boxes"] = (np.float32, (4,))
        super().__init__(path, rows, provenance, journal)
        self._wanted = {"boxes": boxes, "size": sizes, "grid_shape": grid}

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

        Raises `RefusedImageError`, a `DataError`; the store is then as before the call.
        """
        checked = self._check_id(image_id)
        given = {"boxes": boxes, "size": size, "grid_shape": grid_shape}
        try:
            for name, wanted in self._wanted.items():
                if wanted != (given[name] is not None):
                    state = "is missing" if wanted else "is given, but the store was opened without"
                    raise ValueError(f"{name} {state}")
            rows: dict[str, NDArray[Any]] = {
                "features": storable_features(features, self._dim, self._dtype)
            }
            count = len(rows["features"])
            if boxes is not None:
                rows["boxes"] = storable_boxes(boxes, count)
            entry = Entry(
                checked,
                count,
                None if size is None else storable_size(size),
                None if grid_shape is None else storable_grid_shape(grid_shape, count),
            )
        except ValueError as error:
            raise RefusedImageError(self.path, str(error), checked) from None
        self._append(entry, rows)

    def _per_image(self, entries: list[Entry]) -> dict[str, NDArray[Any]]:
        lengths = [entry.rows for entry in entries]
        arrays: dict[str, NDArray[Any]] = {"offsets": np.cumsum([0, *lengths], dtype=np.int64)}
        if self._wanted["size"]:
            arrays["sizes"] = np.array([entry.size for entry in entries], np.int32)
        if self._wanted["grid_shape"]:
            arrays["grid_shapes"] = np.array([entry.grid_shape for entry in entries], np.int32)
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
        """Add an image, (3, H, W) uint8. Raises `RefusedImageError`, a `DataError`."""
        checked = self._check_id(image_id)
        values = np.asarray(pixels)
        if values.shape != self._shape or values.dtype != np.uint8:
            raise RefusedImageError(
                self.path,
                f"pixels are {values.dtype} {values.shape}, expected uint8 {self._shape}",
                checked,
            )
        self._append(Entry(checked, 1), {"pixels": values[None]})
