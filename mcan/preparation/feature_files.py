"""Feature files of other projects, and their import: three kinds of containers, one mapping.

A container gives a record per image: arrays and numbers by name. `KNOWN` and the user say which of
them are the features, boxes and so on. A layout that needs more than names is described in
`LAYOUTS`; a new kind of container is a subclass of `FeatureSource`. n rows of an image, D width of
a row, (h, w) rows and columns of a grid, N images, T rows of all.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import math
import pickle
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mcan.data.arrays import Id
from mcan.data.records import read_records
from mcan.errors import DataError, shorten
from mcan.preparation.image_ids import FEATURE_SUFFIXES, IdRule, image_id
from mcan.preparation.store_writer import BrokenImage, FillOptions, Found, ImageRows, fill_store

BLOCK_BYTES = 8 << 20
"""About how much one part of a large file holds."""

ImageFields = Mapping[str, Any]
"""What a file says of one image: arrays and numbers by their names in the file."""
Entry = tuple[str, str, Callable[[], ImageFields]]
"""The name of an image, where it is, and a function that reads it."""
Sizes = Mapping[str, tuple[int, int]]
"""Width and height in pixels of images, by their id as text."""
Axes = Literal["rows", "columns", "map"]
AXES: tuple[str, ...] = get_args(Axes)

KNOWN: dict[str, tuple[str, ...]] = {
    "features": ("x", "features", "image_features", "feature", "feats", "feat"),
    "boxes": ("bbox", "boxes", "bboxes", "image_bb"),
    "size": (
        *("image_w,image_h", "width,height", "widths,heights", "img_w,img_h"),
        *("image_width,image_height", "w,h"),
    ),
    "count": ("num_bbox", "num_boxes", "objectsNum"),
    "id": ("image_id", "image_ids", "img_id", "img_ids", "ids", "id"),
}
"""The names that need no `--keys`, by what they mean; the first that a record has counts."""


@dataclass(frozen=True)
class Layout:
    """A known layout of feature files.

    `axes`: rows (n, D), columns (D, n) or a map (D, h, w), if the layout says so and the shapes do
    not. `suffix` of the files in a folder; `columns` of a TSV file; `index` of an HDF5 file: by
    `rows`, by `ranges` of rows, by an `info` file, or a group per image (`groups`).
    """

    container: type[FeatureSource]
    ids: Literal["coco", "stem", "either"] = "coco"
    axes: tuple[Axes, ...] = ()
    suffix: str = ""
    columns: tuple[str, ...] = ()
    index: Literal["rows", "ranges", "info", "groups"] = "rows"


@dataclass(frozen=True)
class SourceOptions:
    """What the user may say about the files: how names become ids (`row`: the ids are the numbers
    of the rows of an HDF5 file), which file maps image ids to rows, the sizes of images, for files
    with boxes in pixels but without sizes, what the entries of a record are called, by the names of
    `KNOWN` (empty: there is none), how features lie, and their width."""

    ids: IdRule | Literal["row"] | None = None
    index: Path | None = None
    sizes: Sizes | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    axes: Axes | None = None
    feature_size: int | None = None

    def said(self) -> dict[str, Any]:
        """What changes how the files are read, as JSON."""
        said = {"ids": self.ids, "axes": self.axes, "feature_size": self.feature_size}
        return {k: v for k, v in (said | {"keys": dict(self.keys)}).items() if v}


def find_names(available: Collection[str], keys: Mapping[str, str]) -> dict[str, str]:
    """What the entries of a record are called, by the names of `KNOWN`. Raises `ValueError`."""
    names = {}
    for role, known in KNOWN.items():
        said = keys.get(role)
        if said == "":
            continue
        present = [n for n in ([said] if said else known) if {*n.split(",")} <= {*available}]
        if said and not present:
            raise ValueError(f"there is no {said!r} for {role} among {shorten(available)}")
        if role == "features" and len(present) != 1:
            if len(available) != 1:
                raise ValueError(
                    f"which of {shorten(available)} are the features? Say so with --keys "
                    "features=NAME boxes=NAME size=WIDTH,HEIGHT"
                )
            present = list(available)
        if present:
            names[role] = present[0]
    return names


def convert(
    image_id: Id, record: ImageFields, options: SourceOptions, certain: Collection[Axes] = ()
) -> ImageRows:
    """The rows, boxes, size and grid shape of one image. Raises `ValueError` or `KeyError`.

    Rows that fill an image up to a fixed number (features and box all zero, or beyond the number of
    boxes) are left out and counted. `certain` are the axes that the layout is known to have.
    """
    names = find_names(record.keys(), options.keys)
    count = int(np.asarray(record[names["count"]]).item()) if "count" in names else None
    boxes, size = None, (options.sizes or {}).get(str(image_id))
    counts: dict[str, int] = {}
    if "boxes" in names:
        boxes = _decode(record[names["boxes"]], count, 4, "boxes").astype(np.float32)
        if boxes.ndim != 2 or 4 not in boxes.shape:
            raise ValueError(f"boxes are {boxes.shape}, expected (n, 4)")
        upright = (boxes[:, :2] <= boxes[:, 2:4]).all() or len(boxes) != 4
        boxes = boxes if boxes.shape[1] == 4 and upright else boxes.T
    n = count if boxes is None else len(boxes)
    features = _decode(record[names["features"]], n, options.feature_size, "features")
    if boxes is None and n not in features.shape:  # filled up to a fixed number
        n = None
    features, grid_shape = _arrange(features, n, options, certain)
    if boxes is not None and len(features) != len(boxes):
        raise ValueError(f"features are {features.shape}, expected a row per box of {len(boxes)}")
    if "size" in names:
        sides = [np.asarray(record[name]).ravel() for name in names["size"].split(",")]
        if sum(map(len, sides)) != 2:
            raise ValueError(f"{names['size']} are {sides}, expected width and height")
        width, height = map(int, np.concatenate(sides))
        size = width, height
    if size is not None and min(size) < 1:
        raise ValueError(f"the image size is {size[0]} x {size[1]}")
    if not features.any():
        raise ValueError("all its features are zero")
    if grid_shape is None:
        if count is not None and not 0 < count <= len(features):
            raise ValueError(f"{names['count']} is {count}, expected 1 to {len(features)}")
        zero: Any = ~features.any(1)
        filler = zero if boxes is None else zero & ~boxes.any(1)
        filler[count:] |= count is not None
        counts["filler rows dropped (all zero, or beyond the number of boxes)"] = filler.sum()
        counts["regions kept for their box, though their features are zero"] = (zero > filler).sum()
        features, boxes = features[~filler], boxes if boxes is None else boxes[~filler]
    if boxes is not None and boxes.max() > 1.5:  # a box of pixels is larger
        if size is None:
            raise ValueError(
                "its boxes are in pixels and its size is not in the file given with --sizes; or "
                "name the fields of it (--keys size=WIDTH,HEIGHT), or leave boxes out (--keys "
                "boxes=)"
            )
        boxes = np.divide(boxes, np.array([*size, *size], np.float32), dtype=np.float32)
    elif boxes is not None and "size" in names:
        counts["images whose boxes were divided by their size already"] = 1
    counts = {label: int(number) for label, number in counts.items() if number}
    return ImageRows(image_id, features, boxes, size, grid_shape, counts)


def _decode(value: Any, n: int | None, width: int | None, what: str) -> NDArray[Any]:
    """An array; if it is base64, n rows of a width, of float32 or of what the width says."""
    if isinstance(value, list) and value and isinstance(value[0], str):  # one for each region
        return np.stack([_decode(row, 1, width, what)[0] for row in value])
    if not isinstance(value, (bytes, str)):
        if (array := np.asarray(value)).dtype.kind not in "fiu":
            raise ValueError(f"{what} are {array.dtype}, expected numbers")
        return array
    content = base64.b64decode(value, validate=True)
    if n is None and width:
        n = len(content) // (4 * width)
    if n is None:
        raise ValueError("how many boxes? Say so with --keys count=NAME, or --feature-size")
    if not n or len(content) % n:
        raise ValueError(f"{what} have {len(content)} bytes, which are not those of {n} boxes")
    numbers = width or len(content) // n // 4
    kind = {2: "float16", 4: "float32", 8: "float64"}.get(len(content) // n // max(1, numbers))
    if kind is None or len(content) != n * numbers * np.dtype(kind).itemsize:
        raise ValueError(
            f"{what} have {len(content)} bytes, expected {n} rows x {width or 'width'} x 4 bytes "
            "(float32); if they are float16, say the width with --feature-size"
        )
    seen = _number_type(content)
    if what == "features" and kind != seen and (kind, seen) != ("float16", "float32"):
        raise ValueError(
            f"{what} look like {seen}, not {kind}; say how wide a row is with --feature-size "
            f"({len(content) // n // np.dtype(seen).itemsize}?)"
        )
    return np.frombuffer(content, np.dtype(kind).newbyteorder("<")).reshape(n, numbers)


def _number_type(content: bytes) -> str:
    """What the bytes seem to be; float32 unless the pattern of another type is clear.

    The lower half of a float32 is noise, unless it was rounded: as float16 it would be huge or not
    a number now and then. The lower half of a float64 is noise as float32.
    """
    halves = np.frombuffer(content, "<u2")
    noise = int(np.count_nonzero(halves[::2] & 0x1FFF))
    if noise >= 48 and ((halves & 0x7C00) < 0x6400).all():  # all are below 1,024
        return "float16"
    words = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
    exponents = (words >> 23) & 0xFF
    wild = (exponents > 127 + 40) | ((exponents < 127 - 60) & (exponents > 0))
    low = np.count_nonzero(words[::2])
    is_double = low > 16 and wild[::2].sum() > 0.3 * low and not wild[1::2].any()
    return "float64" if is_double else "float32"


def _arrange(
    features: NDArray[Any], n: int | None, options: SourceOptions, certain: Collection[Axes]
) -> tuple[NDArray[Any], tuple[int, int] | None]:
    """Rows (n, D), and the shape of the grid of a map, by what fits. Raises `ValueError`."""
    shape = features.shape
    if 0 in shape or not shape:
        raise ValueError(f"features are {shape}, which holds nothing")
    while features.ndim > 2 and len(features) == 1:
        features = features[0]
    features = np.atleast_2d(features)
    sides = features.shape
    # The position of the width D in the shape, for each way that features may lie.
    widths = {2: {"rows": 1, "columns": 0}, 3: {"map": 0, "rows": 2}}.get(features.ndim, {})
    fit: list[Any] = [
        axes
        for axes, at in widths.items()
        if (features.ndim == 3 or n in (None, sides[1 - at]))
        and options.feature_size in (None, sides[at])
    ]
    if options.axes:
        fit = [axes for axes in fit if axes == options.axes]
    if not fit:
        wanted = f"width {options.feature_size}" if options.feature_size else "(n, D) or (D, h, w)"
        wanted = f"a row per box of {n}" if n and features.ndim == 2 else wanted
        wanted += f" and --axes {options.axes}" if options.axes else ""
        raise ValueError(f"features are {shape}, expected {wanted}")
    if len(fit) > 1:
        fit = [axes for axes in certain if axes in fit][-1:] or fit
    if len(fit) > 1 and features.ndim == 3:  # the width is the longest side
        fit = [a for a in fit if sides[widths[a]] == max(sides) and sides.count(max(sides)) == 1]
    elif len(fit) > 1 and n is None and sides[0] <= sides[1]:
        fit = ["rows"]
    if len(fit) != 1:
        either = " or ".join(widths)
        raise ValueError(f"features are {shape}: which is the width? Say it with --axes {either}")
    features = np.moveaxis(features, widths[fit[0]], -1)
    grid_shape = (features.shape[0], features.shape[1]) if features.ndim == 3 else None
    return features.reshape(math.prod(features.shape[:-1]), features.shape[-1]), grid_shape


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A record without nesting: {"a": {"b": 1}} -> {"a.b": 1}; a list of objects becomes a list for
    each of their keys, a tensor an array."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        flat = [flatten(item, prefix) for item in value]
        return {key: [item.get(key) for item in flat] for key in flat[0]}
    if isinstance(value, torch.Tensor):  # numpy has no bfloat16
        value = (value.float() if value.is_floating_point() else value).detach().numpy()
    if not isinstance(value, dict):
        return {prefix: value}
    merged: dict[str, Any] = {}
    for key, inner in value.items():
        merged |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return merged


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
        self.options = options

    def read(self, part: str, selected: Container[str] | None) -> Iterator[Found]:
        """The images of a part whose ids, as text, are `selected` (None: all).

        Features may be of any dtype. Raises `DataError` if the part cannot be read at all.
        """
        rule = self.options.ids or self.layout.ids
        for name, where, load in self._entries(part):
            label, record = where, None
            try:
                if id_name := self.options.keys.get("id"):
                    record = load()
                    value = np.asarray(record[id_name]).item()
                    name = value.decode() if isinstance(value, bytes) else str(value)
                by_name: IdRule = "coco" if name.startswith("COCO_") else "stem"
                chosen = by_name if rule == "either" else rule
                number = int(name) if chosen == "row" else image_id(name, chosen)
                label = str(number)
                if selected is None or label in selected:
                    record = load() if record is None else record
                    yield convert(number, record, self.options, self.layout.axes)
            except MemoryError:
                raise
            except Exception as error:  # numpy, torch and h5py raise nearly anything.
                yield BrokenImage(label, f"{where}: {error or type(error).__name__}")

    def _entries(self, part: str) -> Iterator[Entry]:
        raise NotImplementedError


class FolderFiles(FeatureSource):
    """One file per image, anywhere below a folder, or a single file; a part is a file."""

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        super().__init__(path, layout, options)
        files = [f.relative_to(path).as_posix() for f in sorted(path.rglob("*")) if f.is_file()]
        self.parts = [name for name in files if name.endswith(self.layout.suffix)]
        if others := [name for name in files if not name.endswith(self.layout.suffix)]:
            self.note = f"{path}: {len(others):,} other files are left out: {shorten(others)}"
        if path.is_file() and path.suffix == self.layout.suffix:
            self.path, self.parts = path.parent, [path.name]
        if not self.parts:
            raise DataError(f"{path}: not a folder that contains {self.layout.suffix} files")
        if self.layout.suffix == ".safetensors" and find_spec("safetensors") is None:
            raise DataError(f"{path}: needs safetensors: pip install 'mcan[safetensors]'")

    def _entries(self, part: str) -> Iterator[Entry]:
        yield part, part, partial(self._load, self.path / part)

    def _load(self, file: Path) -> ImageFields:
        if file.suffix == ".npz":
            arrays: ImageFields = np.load(file, allow_pickle=False)
            return arrays  # each is read when it is asked for
        content: Any
        if file.suffix == ".npy":
            content = _read_npy(file)
        elif file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            with torch.serialization.safe_globals(_NUMPY):
                content = torch.load(file, map_location="cpu", weights_only=True)
        return flatten(content if isinstance(content, (dict, list)) else {"array": content})


class TsvFile(FeatureSource):
    """Tab-separated text, a line per image, arrays as base64, also inside a column of JSON.

    The columns have the names of the layout, of a first line of names, or their numbers from 1. A
    part is a range of bytes: the lines that begin in it. No pass over the file is needed.
    """

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        super().__init__(path, layout, options)
        size = path.stat().st_size if path.is_file() else 0
        if not size:
            raise DataError(f"{path}: not a file, or empty")
        with path.open("rb") as file:
            line = file.readline(64 << 20)
        first = line.decode(errors="replace").rstrip("\r\n").split("\t")
        named = {name for names in KNOWN.values() for text in names for name in text.split(",")}
        self._header = len(line) if len(named & set(first)) > 1 else 0
        numbers = tuple(map(str, range(1, len(first) + 1)))
        self._columns = tuple(first) if self._header else self.layout.columns or numbers
        firsts = range(0, size, BLOCK_BYTES)
        self.parts = [f"bytes {first}-{min(first + BLOCK_BYTES, size)}" for first in firsts]

    def _entries(self, part: str) -> Iterator[Entry]:
        first, end = map(int, part.removeprefix("bytes ").split("-"))
        at = next((self._columns.index(n) for n in KNOWN["id"] if n in self._columns), 0)
        with self.path.open("rb") as file:
            if first:
                file.seek(first - 1)
                file.readline()  # A line belongs to the part in which its first byte is.
            while (start := file.tell()) < end:
                line = file.readline()
                if not line.isspace() and start >= self._header:
                    values = line.rstrip(b"\r\n").split(b"\t")
                    where = f"{self.path.name} byte {start}"
                    name = values[min(at, len(values) - 1)].decode(errors="replace")
                    yield name, where, partial(self._load, values)

    def _load(self, values: Sequence[bytes]) -> ImageFields:
        if len(values) != len(self._columns):
            raise ValueError(
                f"the line has {len(values)} columns, expected {len(self._columns)}; it may be cut "
                "short"
            )
        record: dict[str, Any] = dict(zip(self._columns, values, strict=True))
        if self.options.keys:
            record |= {str(number): value for number, value in enumerate(values, 1)}
        for value in values:
            if value.startswith((b"{", b"[{")):
                record |= flatten(json.loads(value))
        return record


class _Place(NamedTuple):
    """Where an image is; `entry` is what an info file says of it."""

    file: Path
    row: int
    image: str
    entry: Mapping[str, Any] | None = None


class Hdf5Files(FeatureSource):
    """HDF5 files with the features of many images; a part is a run of images in one file.

    Arrays of all images: which is where comes from an index file (image id -> row), from ids in the
    file, or from `NAME_info.json`, which gives for each image the number of its `file`
    (`NAME_0.h5`, ...), its row `idx` there, and for objects `width`, `height` and `objectsNum`, the
    number of rows that are not padding. Or a group (else an array) per image, called by its id.
    """

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        super().__init__(path, layout, options)
        self._names: dict[str, str] = {}
        places = self._from_info() if self.layout.index == "info" else self._from_file()
        if not places or min(place.row for place in places) < 0:
            raise DataError(f"{path}: its index has no image, or a negative row")
        with _open_hdf5(places[0].file) as file:
            if self.layout.index == "info":
                self._names = self._find_names(file)
            if self._names:
                features = file[self._names["features"]]
                image_bytes = features.nbytes // max(1, min(len(features), len(places)))
            else:
                first = self._load(file, places[0]).values()
                image_bytes = sum(np.asarray(value).nbytes for value in first)
        self._parts: dict[str, list[_Place]] = {}
        step = max(1, BLOCK_BYTES // max(1, image_bytes))
        for (file, block), run in groupby(sorted(places), lambda p: (p.file, p.row // step)):
            self._parts[f"{file.name} rows {block * step}-{(block + 1) * step - 1}"] = list(run)
        self.parts = list(self._parts)
        self.identity = hashlib.sha256(repr(places).encode()).hexdigest()

    def _find_names(self, file: h5py.File) -> dict[str, str]:
        """The datasets of all images, by the names of `KNOWN`."""
        try:
            said = ",".join(self.options.keys.values()).split(",")
            available = [n for n in dict.fromkeys([*file, *said]) if n and n in file]
            available = [n for n in available if n != "spatial_features"]
            return find_names(available, self.options.keys)
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None

    def _from_file(self) -> list[_Place]:
        with _open_hdf5(self.path) as file:
            if self.layout.index == "groups":
                return [_Place(self.path, row, name) for row, name in enumerate(_images(file))]
            names = self._names = self._find_names(file)
            count = len(file["pos_boxes" if self.layout.index == "ranges" else names["features"]])
            if "spatial_features" in file and "boxes" not in self.options.keys:
                # The four coordinates, divided by the size, then width and height of the box.
                names["boxes"] = "spatial_features"
                names.pop("size", None)
            elif "boxes" in names and "size" not in names and self.options.sizes is None:
                boxes = file[names["boxes"]]
                if max((boxes[row].max() for row in range(min(9, len(boxes)))), default=0) > 1.5:
                    del names["boxes"]
                    self.note = (
                        f"{self.path}: boxes are left out: they are in pixels, and neither the "
                        "file nor --sizes gives the sizes of the images"
                    )
            index = self._find_index(count, file[names["id"]][:] if "id" in names else None)
        return [_Place(self.path, row, image) for image, row in index.items()]

    def _find_index(self, count: int, ids: Any) -> Mapping[str, int]:
        """Image id -> row."""
        names = [f"{self.path.stem}_imgid2idx{suffix}" for suffix in (".json", ".pkl")]
        beside = (self.path.with_name(name) for name in names)
        index = self.options.index or next((file for file in beside if file.exists()), None)
        if index is not None and index.suffix != ".txt":
            return read_index(index)
        if index is not None:
            ids = np.array(index.read_text(encoding="utf-8").splitlines())
        elif self.options.ids == "row":
            ids = np.arange(count)
        elif ids is None:
            raise DataError(
                f"{self.path}: neither {names[0]} nor {names[1]} is beside it, and no array of it "
                "is known to hold image ids; name the array with --keys id=NAME, or give a file "
                "that maps ids to rows, or lists them in the order of the rows, with --index, or "
                "use --ids row if the ids are the row numbers from 0"
            )
        listed = [i.decode() if isinstance(i, bytes) else str(i) for i in ids.tolist()]
        if len(listed) != count or len(set(listed)) < count:
            distinct = f"{len(set(listed)):,} distinct image ids"
            raise DataError(f"{self.path}: {distinct} for {count:,} images")
        return {image: row for row, image in enumerate(listed)}

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
        if self.layout.index == "groups":
            group = file[place.image]
            if isinstance(group, h5py.Dataset):
                return {"features": group[()]}
            arrays = {k: v[()] for k, v in group.items() if isinstance(v, h5py.Dataset)}
            return {**group.attrs, **arrays}
        where: Any = place.row
        if self.layout.index == "ranges":
            first, end = map(int, file["pos_boxes"][place.row])
            total = len(file[self._names["features"]])
            if not 0 <= first < end <= total:
                raise ValueError(f"pos_boxes are {first} and {end}, which are not rows of {total}")
            where = slice(first, end)
        record: dict[str, Any] = dict(place.entry or {})
        for role, names in self._names.items():
            for name in names.split(","):
                values = file[name][where if role in ("features", "boxes") else place.row]
                spatial = name == "spatial_features"
                record["boxes" if spatial else name] = values[:, :4] if spatial else values
        return record


def _images(file: h5py.File) -> list[str]:
    """The groups that hold arrays, or else the arrays, of a file with one for each image."""
    arrays: list[str] = []
    file.visititems(lambda name, item: arrays.append(name) if hasattr(item, "dtype") else None)
    return list(dict.fromkeys(name.rsplit("/", 1)[0] for name in arrays if "/" in name)) or arrays


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
    """Dictionaries, lists, numbers and strings need no global name; only those of numpy's arrays
    are let through."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = module.split(".")[0] == "numpy" and name in _ARRAYS
        if not arrays and (module, name) != ("_codecs", "encode"):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


_ARRAYS = ("_reconstruct", "scalar", "ndarray", "dtype")
_MAKERS: Any = (np.empty(0).__reduce__()[0], np.float32().__reduce__()[0])
_NUMPY: list[Any] = [
    *(np.ndarray, np.dtype, codecs.encode, *(type(np.dtype(kind)) for kind in "?bBhHiIlLefd")),
    *((f, f"numpy.{core}.multiarray.{f.__name__}") for core in ("core", "_core") for f in _MAKERS),
]
"""The same for torch, which wants every type of number, and both names of numpy's own package."""


def _read_npy(path: Path) -> Any:
    """An array, or the dictionary that an array of one object holds; nothing is executed."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = f"read_array_header_{'1' if version[0] == 1 else '2'}_0"
        if not getattr(np.lib.format, header)(file)[2].hasobject:
            return np.load(path, allow_pickle=False)
        return _PlainUnpickler(file, encoding="latin1").load().item()


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
    # The MCAN authors' files: x (D, n), of their later extractor (n, D), bbox (n, 4) in pixels,
    # image_w, image_h. OpenVQA's: x (n, D), for GQA's objects also bbox, width, height.
    "npz": Layout(FolderFiles, suffix=".npz"),
    "npy": Layout(FolderFiles, suffix=".npy"),
    "pt": Layout(FolderFiles, suffix=".pt"),
    # Grid features of Jiang et al. 2020: a tensor (1, D, h, w) per image.
    "grid-pth": Layout(FolderFiles, suffix=".pth"),
    "safetensors": Layout(FolderFiles, suffix=".safetensors"),
    # Bottom-up attention (Anderson et al. 2018).
    "bottom-up-tsv": Layout(
        TsvFile,
        axes=("rows",),
        columns=("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    ),
    # LXMERT's; objects and attributes are left out; note that the height is first.
    "lxmert-tsv": Layout(
        TsvFile,
        ids="either",
        axes=("rows",),
        columns=(
            *("image_id", "image_h", "image_w", "objects_id", "objects_conf"),
            *("attrs_id", "attrs_conf", "num_boxes", "boxes", "features"),
        ),
    ),
    # VinVL's: a JSON object with num_boxes, features and perhaps more.
    "vinvl-tsv": Layout(TsvFile, axes=("rows",), columns=("image_id", "json")),
    "tsv": Layout(TsvFile, axes=("rows",)),
    # Arrays of all images: (N, n, D), or maps (N, D, h, w).
    "hdf5": Layout(Hdf5Files),
    # Any number of boxes: image_features (T, D), pos_boxes (N, 2) first row and last plus one.
    "adaptive-hdf5": Layout(Hdf5Files, axes=("rows",), index="ranges"),
    # A group or array per image, named by its id.
    "hdf5-groups": Layout(Hdf5Files, index="groups"),
    # NAME_0.h5, ... and NAME_info.json: objects (N, n, D) with boxes, or maps (N, D, h, w).
    "numbered-hdf5": Layout(Hdf5Files, ids="stem", axes=("rows", "map"), index="info"),
}


def open_source(path: Path, name: str | None, options: SourceOptions) -> FeatureSource:
    """The source at `path`, in the layout `name` or in the one that it looks like."""
    if path.is_dir():  # that holds one file of many images stands for it
        large = [f for f in path.rglob("*") if f.suffix in (".tsv", ".h5", ".hdf5")]
        others = [f for f in path.rglob("*") if f.name.endswith((*FEATURE_SUFFIXES, "_info.json"))]
        path = large[0] if len(large) == 1 and not others else path
    layout = name or detect_layout(path, options)
    return LAYOUTS[layout].container(path, layout, options)


def detect_layout(path: Path, options: SourceOptions | None = None) -> str:
    """The layout of a file or folder, by its name and first bytes. Raises `DataError` if it is not
    clear."""
    options = options or SourceOptions()
    by_suffix = {k.suffix: name for name, k in LAYOUTS.items() if k.suffix}
    if path.is_dir():
        names = [file.name for file in path.rglob("*") if file.is_file()]
        found = [by_suffix[s] for s in FEATURE_SUFFIXES if any(n.endswith(s) for n in names)]
        if any(name.endswith("_info.json") for name in names):
            found.append("numbered-hdf5")
        problem = f"contains files of {' and '.join(found) or 'no known format'}"
    elif path.name.endswith("_info.json"):
        return "numbered-hdf5"
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    elif path.suffix in by_suffix:
        return by_suffix[path.suffix]
    elif h5py.is_hdf5(path):
        with _open_hdf5(path) as file:
            names = sorted(file)
            arrays = [file[name] for name in names if isinstance(file[name], h5py.Dataset)]
            said = options.keys.get("features", "")
            known = {*KNOWN["features"]} & set(names) or (said and said in file)
            found = ["adaptive-hdf5" if "pos_boxes" in names else "hdf5"]
            if not known and len(arrays) != 1:  # a group for each image, or an array (n, D)
                widths = {array.shape[1:] for array in arrays}
                flat = len(widths) == 1 and len(next(iter(widths))) == 1
                found = ["hdf5-groups"] if flat or not arrays else []
            problem = f"contains {shorten(names)}; say which are the features: --keys features=NAME"
    else:
        with path.open("rb") as text:
            columns = text.readline(64 << 20).split(b"\t")
        found = [n for n, layout in LAYOUTS.items() if len(columns) == len(layout.columns)]
        if not found or (len(columns) == 2 and not columns[1].startswith(b"{")):
            found = ["tsv"][: len(columns) - 1]
        problem = f"text of {len(columns)} tab-separated columns, expected several"
    if len(found) != 1:
        raise DataError(f"{path}: {problem}; give one file or folder of a known format (--help)")
    return found[0]


def import_features(
    sources: Sequence[FeatureSource], options: FillOptions, selected: frozenset[str] | None = None
) -> None:
    """Write the images of all `sources` as a store; see `fill_store`.

    `selected` are the ids, as text, to take (None: all).
    """
    files = [{"format": s.name, "path": str(s.path), **s.options.said()} for s in sources]
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
