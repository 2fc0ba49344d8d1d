"""HDF5 files with the features of many images, and a table of which row is whose.

N images, n rows of an image, T rows of all images, D width, (h, w) rows and columns of a grid.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mcan.data.hdf5 import Id, reading, require
from mcan.data.store_filling import Broken, Found, ImageRows
from mcan.errors import DataError
from mcan.importing.source import BLOCK_BYTES, Options, Source, normalised
from mcan.importing.tables import read_index, read_json

_FLOATS = (np.float32, np.float16, np.float64)
_WHAT = "feature file"


class _Place(NamedTuple):
    file: Path
    row: int
    image: str


class _Hdf5Source(Source):
    """A part is a run of images in one file, in the order of their rows."""

    unit = "blocks"

    def _divide(self, places: list[_Place], image_bytes: int) -> None:
        """Make the parts out of where the images are."""
        step = max(1, BLOCK_BYTES // max(1, image_bytes))
        self._parts: dict[str, list[_Place]] = {}
        for place in sorted(places):
            block = place.row // step
            name = f"{place.file.name} rows {block * step}-{(block + 1) * step - 1}"
            self._parts.setdefault(name, []).append(place)
        self.parts = list(self._parts)
        self.identity = hashlib.sha256(repr(places).encode()).hexdigest()

    def read(self, part: str, wanted: Container[str] | None) -> Iterator[Found]:
        places = self._parts[part]
        with reading(places[0].file, _WHAT) as file:
            for place in places:
                name = place.image
                try:
                    image_id = self.image_id(place.image)
                    name = str(image_id)
                    if wanted is None or name in wanted:
                        yield self._image(file, place, image_id)
                except (ValueError, OSError) as error:
                    yield Broken(name, f"{place.file.name} row {place.row}: {error}")

    @abstractmethod
    def _image(self, file: h5py.File, place: _Place, image_id: Id) -> ImageRows:
        """Raises `ValueError`, and `OSError` from damaged data."""


class _BoxesSource(_Hdf5Source):
    """`image_features`, with `image_bb` in pixels and `spatial_features`, which begin with the same
    boxes divided by the size of the image; and beside it a file that maps image ids to rows."""

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        index = options.index or _index_beside(path)
        self._sizes = options.sizes
        with reading(path, _WHAT) as file:
            count, image_bytes = self._check(file)
            self._boxes = _boxes_dataset(file, self._sizes)
            if self._boxes:
                features = file["image_features"]
                width = (4 if self._boxes == "image_bb" else 6,)
                require(file, self._boxes, _FLOATS, (*features.shape[:-1], *width))
            elif "image_bb" in file:
                self.note = (
                    f"{path}: boxes are left out: they are in pixels, and neither the file nor "
                    "--sizes tells the sizes of the images"
                )
        places = [_Place(path, row, image) for image, row in read_index(index).items()]
        for place in places:
            if not 0 <= place.row < count:
                raise DataError(
                    f"{index}: image {place.image!r} is at row {place.row}, but {path} has the "
                    f"rows 0 to {count - 1}"
                )
        self._divide(places, image_bytes)

    @abstractmethod
    def _check(self, file: h5py.File) -> tuple[int, int]:
        """Number of images, and about how many bytes one has."""

    @abstractmethod
    def _select(self, file: h5py.File, row: int) -> Any:
        """Where an image is in the datasets."""

    def _image(self, file: h5py.File, place: _Place, image_id: Id) -> ImageRows:
        where = self._select(file, place.row)
        features = file["image_features"][where]
        if self._boxes == "spatial_features":
            return ImageRows(image_id, features, file["spatial_features"][where][:, :4])
        if self._boxes is None:
            return ImageRows(image_id, features)
        size = (self._sizes or {}).get(str(image_id))
        if size is None:
            raise ValueError("its size is not in the file given with --sizes")
        return ImageRows(image_id, features, normalised(file["image_bb"][where], size), size)


class FixedHdf5(_BoxesSource):
    """The same number of boxes for each image (N, n, D), as `train36.hdf5` of hengyuan-hu."""

    def _check(self, file: h5py.File) -> tuple[int, int]:
        features = require(file, "image_features", _FLOATS, (None, None, None))
        return len(features), features[:0].itemsize * int(np.prod(features.shape[1:]))

    def _select(self, file: h5py.File, row: int) -> Any:
        return row


class AdaptiveHdf5(_BoxesSource):
    """Any number of boxes (T, D), with `pos_boxes` (N, 2): first row and the one after the last."""

    def _check(self, file: h5py.File) -> tuple[int, int]:
        features = require(file, "image_features", _FLOATS, (None, None))
        ends = require(file, "pos_boxes", (np.int32, np.int64, np.uint32), (None, 2))
        return len(ends), features.nbytes // max(1, len(ends))

    def _select(self, file: h5py.File, row: int) -> Any:
        first, end = map(int, file["pos_boxes"][row])
        total = len(file["image_features"])
        if not 0 <= first < end <= total:
            raise ValueError(f"pos_boxes are {first} and {end}, which are not rows of {total}")
        return slice(first, end)


class NumberedHdf5(_Hdf5Source):
    """Files `NAME_0.h5`, `NAME_1.h5`, ... and `NAME_info.json`, which tells of each image its
    `file` and row `idx`. Either objects: `features` (N, n, D) and `bboxes` (N, n, 4) in pixels, of
    which the first `objectsNum` count; or a grid: `features` (N, D, h, w), h * w rows.
    """

    default_ids = "stem"

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self._info_path = _info_file(path)
        info = read_json(self._info_path)
        if not isinstance(info, dict) or not info:
            raise DataError(f"{self._info_path}: expected an object with an entry per image")
        self._info: dict[str, Any] = info
        shapes: dict[Path, tuple[int, ...]] = {}
        places = []
        for image in info:
            try:
                number, row = self._integers(image, "file", "idx")
                file = self._numbered(number)
                if file not in shapes:
                    shapes[file] = _numbered_shape(file)
                if not 0 <= row < shapes[file][0]:
                    raise ValueError(f"idx is {row}, but {file.name} has {shapes[file][0]} rows")
            except ValueError as error:
                raise DataError(f"{self._info_path}: image {image!r}: {error}") from None
            places.append(_Place(file, row, image))
        self._divide(places, 4 * int(np.prod(next(iter(shapes.values()))[1:])))

    def _numbered(self, number: int) -> Path:
        base = self._info_path.name.removesuffix("_info.json")
        return self._info_path.with_name(f"{base}_{number}.h5")

    def _image(self, file: h5py.File, place: _Place, image_id: Id) -> ImageRows:
        features = file["features"]
        if features.ndim == 4:
            grid = features[place.row]
            return ImageRows(image_id, grid.reshape(len(grid), -1).T, grid_shape=grid.shape[1:])
        width, height, count = self._integers(place.image, "width", "height", "objectsNum")
        if not 0 < count <= features.shape[1]:
            raise ValueError(f"objectsNum is {count}, expected 1 to {features.shape[1]}")
        boxes = normalised(file["bboxes"][place.row, :count], (width, height))
        return ImageRows(image_id, features[place.row, :count], boxes, (width, height))

    def _integers(self, image: str, *keys: str) -> list[int]:
        entry = self._info[image]
        values = [entry.get(key) for key in keys] if isinstance(entry, dict) else []
        integers = [value for value in values if type(value) is int]
        if len(integers) < len(keys):
            raise ValueError(f"expected integers {', '.join(keys)}")
        return integers


def _numbered_shape(path: Path) -> tuple[int, ...]:
    with reading(path, _WHAT) as file:
        grid = isinstance(file.get("features"), h5py.Dataset) and file["features"].ndim == 4
        features = require(file, "features", _FLOATS, (None,) * (4 if grid else 3))
        if not grid:
            require(file, "bboxes", _FLOATS, (*features.shape[:2], 4))
        return tuple(features.shape)


def _info_file(path: Path) -> Path:
    """The `NAME_info.json` that `path` is or that its folder holds."""
    if path.is_file():
        return path
    found = sorted(path.rglob("*_info.json"))
    if len(found) != 1:
        raise DataError(
            f"{path}: {len(found)} files end in _info.json, expected one; give the one to import"
        )
    return found[0]


def _index_beside(path: Path) -> Path:
    names = [f"{path.stem}_imgid2idx{suffix}" for suffix in (".json", ".pkl")]
    for name in names:
        if (beside := path.with_name(name)).exists():
            return beside
    raise DataError(
        f"{path}: neither {names[0]} nor {names[1]} is beside it; give the file that maps "
        "image ids to rows with --index"
    )


def _boxes_dataset(file: h5py.File, sizes: object) -> str | None:
    if "spatial_features" in file:
        return "spatial_features"
    return "image_bb" if sizes is not None and "image_bb" in file else None
