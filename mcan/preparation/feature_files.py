"""Feature files of other projects, and their import: three kinds of containers, known layouts.

To add a layout, describe it in `LAYOUTS`; a new kind of container is a subclass of `FeatureSource`.
n rows of an image, D width of a row, (h, w) rows and columns of a grid, N images, T rows of all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import h5py
import numpy as np
import torch

from mcan.data.arrays import Id
from mcan.data.records import read_records
from mcan.errors import DataError
from mcan.preparation.images import IdRule, image_id, name_stem
from mcan.preparation.store_writer import BrokenImage, FillOptions, Found, ImageRows, fill_store

BLOCK_BYTES = 8 << 20
"""About how much one part of a large file holds."""

ImageFields = Mapping[str, Any]
"""What a file says of one image: arrays and numbers by their names in the file."""
Entry = tuple[str, str, Callable[[], ImageFields]]
"""The name of an image, where it is, and a function that reads it."""
Sizes = Mapping[str, tuple[int, int]]
"""Width and height in pixels of images, by their id as text."""


@dataclass(frozen=True)
class Layout:
    """A known layout of feature files: what the entries of a record are called, how they lie.

    `axes` of the features: rows (n, D), columns (D, n), or a map (D, h, w). Rows and columns may be
    swapped. `size` names width and height. `suffix` of the files in a folder; `columns` of a TSV
    file; `index` of an HDF5 file: by `rows`, by `ranges` of rows, or by an `info` file.
    """

    container: type[FeatureSource]
    features: str
    boxes: str | None = None
    size: tuple[str, str] | None = None
    axes: Literal["rows", "columns", "map"] = "rows"
    boxes_in_pixels: bool = True
    ids: Literal["coco", "stem", "either"] = "coco"
    suffix: str = ""
    columns: tuple[str, ...] = ()
    index: Literal["rows", "ranges", "info"] = "rows"


@dataclass(frozen=True)
class SourceOptions:
    """What the user may say about the files: how names become ids, which file maps image ids to
    rows, and the sizes of images, for files with boxes in pixels but without sizes."""

    ids: IdRule | None = None
    index: Path | None = None
    sizes: Sizes | None = None


def convert(
    image_id: Id, record: ImageFields, layout: Layout, sizes: Sizes | None = None
) -> ImageRows:
    """The rows, boxes, size and grid shape of one image. Raises `ValueError` or `KeyError`.

    Rows that pad an image to a fixed number (features and box all zero) are left out.
    """
    features = np.asarray(record[layout.features])
    if layout.axes == "map":
        grid = features[0] if features.ndim == 4 and len(features) == 1 else features
        if grid.ndim != 3:
            raise ValueError(f"features are {features.shape}, expected (D, h, w) or (1, D, h, w)")
        height, width = grid.shape[1:]
        return ImageRows(image_id, grid.reshape(len(grid), -1).T, grid_shape=(height, width))
    if layout.boxes is None:
        return ImageRows(image_id, features)
    boxes = np.asarray(record[layout.boxes])
    if features.ndim != 2 or len(boxes) not in features.shape:
        raise ValueError(f"features are {features.shape}, expected a row per box of {len(boxes)}")
    if layout.axes == "columns":
        features = features.T
    if len(features) != len(boxes):  # Some files have the two axes swapped.
        features = features.T
    size = (sizes or {}).get(str(image_id))
    if layout.size is not None:
        size = (int(record[layout.size[0]]), int(record[layout.size[1]]))
    if layout.boxes_in_pixels:
        if size is None:
            raise ValueError("its size is not in the file given with --sizes")
        if min(size) < 1:
            raise ValueError(f"the image size is {size[0]} x {size[1]}")
        boxes = np.divide(boxes, np.array([*size, *size], np.float32), dtype=np.float32)
    kept = features.any(1) | boxes.any(1)
    if kept.any():
        features, boxes = features[kept], boxes[kept]
    return ImageRows(image_id, features, boxes, size)


class FeatureSource:
    """Feature files of one layout at one place; pickles, and holds no open file.

    `parts` are names that stay the same from run to run, and mean the same as long as `identity`
    is the same. `note` says what is left out, if anything. Raises `DataError` on construction if
    the files are not of the layout.
    """

    parts: Sequence[str]
    identity = ""
    note: str | None = None

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        self.path = path
        self.name = layout
        self.layout = LAYOUTS[layout]
        self._options = options

    def read(self, part: str, selected: Container[str] | None) -> Iterator[Found]:
        """The images of a part whose ids, as text, are `selected` (None: all).

        Features may be of any dtype. Raises `DataError` if the part cannot be read at all.
        """
        rule = self._options.ids or self.layout.ids
        for name, where, load in self._entries(part):
            label = where
            try:
                by_name: IdRule = "coco" if name.startswith("COCO_") else "stem"
                number = image_id(name, by_name if rule == "either" else rule)
                label = str(number)
                if selected is None or label in selected:
                    yield convert(number, load(), self.layout, self._options.sizes)
            except MemoryError:
                raise
            except Exception as error:  # numpy, torch and h5py raise nearly anything.
                yield BrokenImage(label, f"{where}: {error or type(error).__name__}")

    def _entries(self, part: str) -> Iterator[Entry]:
        raise NotImplementedError


class FolderFiles(FeatureSource):
    """One file per image, `.npz` or `.pth`, anywhere below a folder; a part is a file."""

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        super().__init__(path, layout, options)
        files = sorted(path.rglob(f"*{self.layout.suffix}")) if path.is_dir() else []
        self.parts = [file.relative_to(path).as_posix() for file in files]
        if not self.parts:
            raise DataError(f"{path}: not a folder that contains {self.layout.suffix} files")

    def _entries(self, part: str) -> Iterator[Entry]:
        file = self.path / part
        yield name_stem(file.name, self.layout.suffix), part, partial(self._load, file)

    def _load(self, file: Path) -> ImageFields:
        if self.layout.suffix == ".pth":
            content = torch.load(file, map_location="cpu", weights_only=True)
            return {self.layout.features: content.float().numpy()}
        with np.load(file, allow_pickle=False) as arrays:
            names = [self.layout.features, self.layout.boxes, *(self.layout.size or ())]
            return {name: arrays[name] for name in names if name is not None}


class TsvFile(FeatureSource):
    """Tab-separated text, a line per image, arrays as base64 of float32.

    A part is a range of bytes: the lines that begin in it. No pass over the file is needed.
    """

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        super().__init__(path, layout, options)
        size = path.stat().st_size if path.is_file() else 0
        if not size:
            raise DataError(f"{path}: not a file, or empty")
        firsts = range(0, size, BLOCK_BYTES)
        self.parts = [f"bytes {first}-{min(first + BLOCK_BYTES, size)}" for first in firsts]

    def _entries(self, part: str) -> Iterator[Entry]:
        first, end = map(int, part.removeprefix("bytes ").split("-"))
        with self.path.open("rb") as file:
            if first:
                file.seek(first - 1)
                file.readline()  # A line belongs to the part in which its first byte is.
            while (start := file.tell()) < end:
                line = file.readline()
                if not line.isspace():
                    values = line.rstrip(b"\r\n").split(b"\t")
                    where = f"{self.path.name} byte {start}"
                    yield values[0].decode(errors="replace"), where, partial(self._load, values)

    def _load(self, values: Sequence[bytes]) -> ImageFields:
        columns = self.layout.columns
        if len(values) != len(columns):
            raise ValueError(
                f"the line has {len(values)} columns, expected {len(columns)}; it may be cut short"
            )
        record: dict[str, Any] = dict(zip(columns, values, strict=True))
        count = int(record["num_boxes"])
        for name in ("boxes", "features"):
            content = base64.b64decode(record[name], validate=True)
            record[name] = np.frombuffer(content, "<f4").reshape(count, -1)
        return record


class _Place(NamedTuple):
    """Where an image is; `entry` is what an info file says of it."""

    file: Path
    row: int
    image: str
    entry: Mapping[str, Any] | None = None


class Hdf5Files(FeatureSource):
    """HDF5 files with the features of many images; a part is a run of images in one file.

    Which image is where comes from an index file (image id -> row), or from `NAME_info.json`, which
    gives for each image the number of its `file` (`NAME_0.h5`, ...), its row `idx` there, and for
    objects `width`, `height` and `objectsNum`, the number of rows that are not padding.
    """

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        super().__init__(path, layout, options)
        places = self._from_info() if self.layout.index == "info" else self._from_index()
        if not places or min(place.row for place in places) < 0:
            raise DataError(f"{path}: its index has no image, or a negative row")
        with _open_hdf5(places[0].file) as file:
            features = file[self.layout.features]
            image_bytes = features.nbytes // max(1, min(len(features), len(places)))
            if self.layout.index == "info" and features.ndim == 4:
                self.layout = replace(self.layout, boxes=None, axes="map")
        self._parts: dict[str, list[_Place]] = {}
        step = max(1, BLOCK_BYTES // max(1, image_bytes))
        for (file, block), run in groupby(sorted(places), lambda p: (p.file, p.row // step)):
            self._parts[f"{file.name} rows {block * step}-{(block + 1) * step - 1}"] = list(run)
        self.parts = list(self._parts)
        self.identity = hashlib.sha256(repr(places).encode()).hexdigest()

    def _from_index(self) -> list[_Place]:
        names = [f"{self.path.stem}_imgid2idx{suffix}" for suffix in (".json", ".pkl")]
        beside = (self.path.with_name(name) for name in names)
        index = self._options.index or next((file for file in beside if file.exists()), None)
        if index is None:
            raise DataError(
                f"{self.path}: neither {names[0]} nor {names[1]} is beside it; give the file that "
                "maps image ids to rows with --index"
            )
        with _open_hdf5(self.path) as file:
            if "spatial_features" in file:
                # The four coordinates, divided by the size, then width and height of the box.
                self.layout = replace(self.layout, boxes="spatial_features", boxes_in_pixels=False)
            elif "image_bb" in file and self._options.sizes is not None:
                self.layout = replace(self.layout, boxes="image_bb")
            elif "image_bb" in file:
                self.note = (
                    f"{self.path}: boxes are left out: they are in pixels, and neither the file "
                    "nor --sizes gives the sizes of the images"
                )
        return [_Place(self.path, row, image) for image, row in read_index(index).items()]

    def _from_info(self) -> list[_Place]:
        found = [self.path] if self.path.is_file() else sorted(self.path.rglob("*_info.json"))
        if len(found) != 1:
            raise DataError(
                f"{self.path}: {len(found)} files end in _info.json, expected one; give the one to "
                "import"
            )
        base = found[0].name.removesuffix("_info.json")
        places = []
        try:
            for image, entry in _read_plain(found[0]).items():
                file = found[0].with_name(f"{base}_{entry['file']}.h5")
                places.append(_Place(file, int(entry["idx"]), image, entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{found[0]}: expected an object of images with file and idx ({error!r})"
            ) from None
        return places

    def _entries(self, part: str) -> Iterator[Entry]:
        places = self._parts[part]
        with _open_hdf5(places[0].file) as file:
            for place in places:
                where = f"{place.file.name} row {place.row}"
                yield place.image, where, partial(self._load, file, place)

    def _load(self, file: h5py.File, place: _Place) -> ImageFields:
        layout = self.layout
        record: dict[str, Any] = dict(place.entry or {})
        where: Any = place.row
        if self.layout.index == "ranges":
            first, end = map(int, file["pos_boxes"][place.row])
            total = len(file[layout.features])
            if not 0 <= first < end <= total:
                raise ValueError(f"pos_boxes are {first} and {end}, which are not rows of {total}")
            where = slice(first, end)
        elif place.entry is not None and layout.axes == "rows":
            count, most = record["objectsNum"], file[layout.features].shape[1]
            if not 0 < count <= most:
                raise ValueError(f"objectsNum is {count}, expected 1 to {most}")
            where = (place.row, slice(count))
        record[layout.features] = file[layout.features][where]
        if layout.boxes is not None:
            record[layout.boxes] = file[layout.boxes][where][:, :4]
        return record


@contextmanager
def _open_hdf5(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise DataError(f"{path}: no such feature file")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    # What h5py raises for damaged files.
    except (AttributeError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a feature file ({reason})") from error


def read_index(path: Path) -> dict[str, int]:
    """Image id, as text -> row: from a `.json` object or a pickled dictionary of plain values.

    Raises `DataError`.
    """
    content = _read_plain(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected an object that maps image ids to rows")
    for key, row in content.items():
        if type(row) is not int:
            raise DataError(f"{path}: entry {key!r} is {row!r}, expected image id -> row number")
    return {str(key): row for key, row in content.items()}


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, numbers and strings need no global name; what does is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_plain(path: Path) -> Any:
    """JSON, or a `.pkl` of which nothing is executed."""
    pickled = path.suffix == ".pkl"
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load() if pickled else json.load(file)
    except Exception as error:  # The unpickler raises nearly anything for damaged files.
        what = "pickled plain numbers and strings" if pickled else "readable JSON"
        raise DataError(f"{path}: is not {what} ({error}); nothing was executed") from error


LAYOUTS: dict[str, Layout] = {
    # The MCAN authors' files: x (D, n), bbox (n, 4) in pixels, image_w, image_h.
    "npz": Layout(FolderFiles, "x", "bbox", ("image_w", "image_h"), axes="columns", suffix=".npz"),
    # Grid features of Jiang et al. 2020: a tensor (1, D, h, w) per image.
    "grid-pth": Layout(FolderFiles, "map", axes="map", suffix=".pth"),
    # Bottom-up attention (Anderson et al. 2018).
    "bottom-up-tsv": Layout(
        TsvFile,
        "features",
        "boxes",
        ("image_w", "image_h"),
        columns=("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    ),
    # LXMERT's; objects and attributes are left out; note that the height is first.
    "lxmert-tsv": Layout(
        TsvFile,
        "features",
        "boxes",
        ("image_w", "image_h"),
        ids="either",
        columns=(
            *("image_id", "image_h", "image_w", "objects_id", "objects_conf"),
            *("attrs_id", "attrs_conf", "num_boxes", "boxes", "features"),
        ),
    ),
    # The same number of boxes for each image: image_features (N, n, D).
    "hdf5": Layout(Hdf5Files, "image_features"),
    # Any number of boxes: image_features (T, D), pos_boxes (N, 2) first row and last plus one.
    "adaptive-hdf5": Layout(Hdf5Files, "image_features", index="ranges"),
    # NAME_0.h5, ... and NAME_info.json: objects (N, n, D) with boxes, or maps (N, D, h, w).
    "numbered-hdf5": Layout(
        Hdf5Files, "features", "bboxes", ("width", "height"), ids="stem", index="info"
    ),
}


def open_source(path: Path, name: str | None, options: SourceOptions) -> FeatureSource:
    """The source at `path`, in the layout `name` or in the one that it looks like."""
    layout = name or detect_layout(path)
    return LAYOUTS[layout].container(path, layout, options)


def detect_layout(path: Path) -> str:
    """The layout of a file or folder, by its name and first bytes. Raises `DataError` if it is not
    clear."""
    if path.is_dir():
        patterns = {"npz": "*.npz", "grid-pth": "*.pth", "numbered-hdf5": "*_info.json"}
        found = [name for name, pattern in patterns.items() if any(path.rglob(pattern))]
        problem = f"contains files of {' and '.join(found) or 'no known format'}"
    elif path.name.endswith("_info.json"):
        return "numbered-hdf5"
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    elif h5py.is_hdf5(path):
        with _open_hdf5(path) as file:
            names = sorted(file)
        found = ["adaptive-hdf5" if "pos_boxes" in names else "hdf5"]
        if "image_features" not in names:
            found, problem = [], f"contains {', '.join(names)}, expected image_features"
    else:
        with path.open("rb") as text:
            count = text.readline(64 << 20).count(b"\t") + 1
        found = [name for name, layout in LAYOUTS.items() if count == len(layout.columns)]
        problem = f"text of {count} tab-separated columns, expected 6 or 10"
    if len(found) != 1:
        raise DataError(f"{path}: {problem}; give one file or folder of a known format (--help)")
    return found[0]


def import_features(
    sources: Sequence[FeatureSource], options: FillOptions, selected: frozenset[str] | None = None
) -> None:
    """Write the images of all `sources` as a store; see `fill_store`.

    `selected` are the ids, as text, to take (None: all).
    """
    files = [{"format": source.name, "path": str(source.path)} for source in sources]
    digest = selected and hashlib.sha256(repr(sorted(selected)).encode()).hexdigest()
    identities = [source.identity for source in sources]
    fill_store(
        options,
        [f"{number}:{part}" for number, source in enumerate(sources) for part in source.parts],
        partial(_read_part, sources, selected),
        settings={"sources": files, "contents": identities, "selected": digest},
        provenance={"sources": files, "notes": [s.note for s in sources if s.note]},
        selected=selected or (),
    )


def _read_part(
    sources: Sequence[FeatureSource], selected: Container[str] | None, name: str
) -> list[Found]:
    """The images of a part; one that cannot be read at all is broken as a whole."""
    number, part = name.split(":", 1)
    found: list[Found] = []
    try:
        found.extend(sources[int(number)].read(part, selected))
    except (DataError, OSError) as error:
        found.append(BrokenImage(part, str(error)))
    return found


def read_sizes(path: Path) -> Sizes:
    """Width and height by image id, from a COCO file (also .gz, or a path through a .zip): its
    list `images` with id, width, height."""
    sizes = {}
    for image in read_records(path, "images"):
        size = image.get("width"), image.get("height")
        if not all(type(side) is int and side > 0 for side in size):
            raise image.error(f"width and height are {size}, expected positive integers")
        sizes[str(image.id("id"))] = size
    return sizes


def read_selected(path: Path) -> frozenset[str]:
    """Image ids, one per line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not (selected := frozenset(line.strip() for line in lines) - {""}):
        raise DataError(f"{path}: contains no image id")
    return selected
