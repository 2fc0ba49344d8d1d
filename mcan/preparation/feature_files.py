"""Feature files of other projects, and their import: three kinds of containers of records.

What a record says of an image is found by `mcan.preparation.feature_mapping`. A layout that needs
more than names is described in `LAYOUTS`; a new kind of container is a subclass of `FeatureSource`.
n rows of an image, D width of a row, (h, w) rows and columns of a grid, N images, T rows of all.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import torch

from mcan.data.records import read_records
from mcan.errors import DataError, need, plural, shorten
from mcan.preparation.feature_mapping import (
    KNOWN,
    Axes,
    ImageFields,
    Sizes,
    SourceOptions,
    convert,
    find_entries,
    flatten,
)
from mcan.preparation.names import FEATURE_SUFFIXES, IdRule, image_id
from mcan.preparation.store_writer import BrokenImage, FillOptions, Found, fill_store

BLOCK_BYTES = 8 << 20
"""About how much one part of a large file holds."""

Entry = tuple[str, str, Callable[[], ImageFields]]
"""The name of an image, where it is, and a function that reads it."""


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


class FeatureSource:
    """Feature files of one layout at one place; pickles, and holds no open file.

    `parts` are names that mean the same from run to run as long as `identity` is the same. `note`
    says what is left out. Raises `DataError` on construction if the files are not of the layout.
    """

    parts: Sequence[str]
    identity = ""
    note: str | None = None

    def __init__(self, path: Path, layout: str, options: SourceOptions) -> None:
        self.path = path
        self.name = layout
        self.layout = LAYOUTS[layout]
        self.options = options
        self._scan()

    def _scan(self) -> None:
        """Find the parts."""
        raise NotImplementedError

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

    def _scan(self) -> None:
        path, suffix = self.path, self.layout.suffix
        files = [f.relative_to(path).as_posix() for f in sorted(path.rglob("*")) if f.is_file()]
        self.parts = [name for name in files if name.endswith(suffix)]
        if others := [name for name in files if not name.endswith(suffix)]:
            self.note = f"{path}: left out {plural(len(others), 'other file')}: {shorten(others)}"
        if path.is_file() and path.suffix == suffix:
            self.path, self.parts = path.parent, [path.name]
        if not self.parts:
            raise DataError(f"{path}: not a folder that contains {suffix} files")
        if suffix == ".safetensors":
            need("safetensors", path)

    def _entries(self, part: str) -> Iterator[Entry]:
        yield part, part, partial(self._load, self.path / part)

    def _load(self, file: Path) -> ImageFields:
        content: Any
        if file.suffix in (".npz", ".npy"):
            try:
                content = np.load(file, allow_pickle=False)
            except ValueError:
                raise ValueError("not a file of numpy, or one with Python objects") from None
            if isinstance(content, Mapping):
                return content  # each array is read when it is asked for
        elif file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
        return flatten(content if isinstance(content, (dict, list)) else {"array": content})


class TsvFile(FeatureSource):
    """Tab-separated text, a line per image, arrays as base64, also inside a column of JSON.

    The columns have the names of the layout, of a first line of names, or their numbers from 1. A
    part is a range of bytes: the lines that begin in it. No pass over the file is needed.
    """

    def _scan(self) -> None:
        size = self.path.stat().st_size if self.path.is_file() else 0
        if not size:
            raise DataError(f"{self.path}: not a file, or empty")
        with self.path.open("rb") as file:
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
            found = plural(len(values), "column")
            raise ValueError(f"the line has {found}, expected {len(self._columns)}")
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
    file, or from `NAME_info.json`: for each image the number of its `file` (`NAME_0.h5`, ...), its
    row `idx` there, and perhaps its size and number of boxes. Or a group per image.
    """

    def _scan(self) -> None:
        places = self._from_info() if self.layout.index == "info" else self._from_file()
        if not places or min(place.row for place in places) < 0:
            raise DataError(f"{self.path}: its index has no image, or a negative row")
        self._parts: dict[str, list[_Place]] = {}
        for file, group in groupby(sorted(places), lambda place: place.file):
            of_file = list(group)
            file_bytes = file.stat().st_size if file.is_file() else 0
            step = max(1, BLOCK_BYTES * len(of_file) // max(1, file_bytes))
            for first in range(0, len(of_file), step):
                self._parts[f"{file.name} row {of_file[first].row}"] = of_file[first : first + step]
        self.parts = list(self._parts)
        self.identity = hashlib.sha256(repr(places).encode()).hexdigest()

    def _find_names(self, file: h5py.File) -> dict[str, str]:
        """The datasets of all images, by the names of `KNOWN`."""
        said = ",".join(self.options.keys.values()).split(",")
        available = [n for n in dict.fromkeys([*file, *said]) if n and n in file]
        try:
            return find_entries(available, self.options.keys)
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None

    def _from_file(self) -> list[_Place]:
        with _open_hdf5(self.path) as file:
            if self.layout.index == "groups":
                arrays: list[str] = []
                file.visititems(
                    lambda n, item: arrays.append(n) if hasattr(item, "dtype") else None
                )
                groups = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
                return [_Place(self.path, row, name) for row, name in enumerate(groups)]
            names = self._find_names(file)
            count = len(file["pos_boxes" if self.layout.index == "ranges" else names["features"]])
            ids = file[names["id"]][:] if "id" in names else None
        files = [f"{self.path.stem}_imgid2idx{suffix}" for suffix in (".json", ".pkl")]
        beside = (self.path.with_name(name) for name in files)
        if index := self.options.index or next((file for file in beside if file.exists()), None):
            return [_Place(self.path, row, image) for image, row in read_index(index).items()]
        if self.options.ids == "row":
            ids = np.arange(count)
        elif ids is None:
            raise DataError(
                f"{self.path}: neither {files[0]} nor {files[1]} is beside it, and no array of it "
                "is known to hold image ids; use --keys id=NAME, --index FILE, or --ids row if the "
                "ids are the row numbers from 0"
            )
        listed = [i.decode() if isinstance(i, bytes) else str(i) for i in ids.tolist()]
        if not len(listed) == count == len(set(listed)):
            raise DataError(f"{self.path}: not {count:,} distinct image ids, one for each image")
        return [_Place(self.path, row, image) for row, image in enumerate(listed)]

    def _from_info(self) -> list[_Place]:
        found = [self.path] if self.path.is_file() else [*self.path.rglob("*_info.json")]
        if len(found) != 1:
            raise DataError(f"{self.path}: {len(found)} files end in _info.json; give one of them")
        base = found[0].name.removesuffix("_info.json")
        places = []
        try:
            for image, entry in _read_plain(found[0]).items():
                file = found[0].with_name(f"{base}_{entry['file']}.h5")
                places.append(_Place(file, int(entry["idx"]), image, entry))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"expected an object of images with file and idx ({error!r})"
            raise DataError(f"{found[0]}: {problem}") from None
        return places

    def _entries(self, part: str) -> Iterator[Entry]:
        places = self._parts[part]
        with _open_hdf5(places[0].file) as file:
            names = {} if self.layout.index == "groups" else self._find_names(file)
            for place in places:
                where = f"{place.file.name} row {place.row}"
                yield place.image, where, partial(self._load, file, names, place)

    def _load(self, file: h5py.File, names: Mapping[str, str], place: _Place) -> ImageFields:
        if self.layout.index == "groups":
            group = file[place.image]
            arrays = {k: v[()] for k, v in group.items() if isinstance(v, h5py.Dataset)}
            return {**group.attrs, **arrays}
        where: Any = place.row
        if self.layout.index == "ranges":
            where = slice(*map(int, file["pos_boxes"][place.row]))
            if not 0 <= where.start < where.stop <= len(file[names["features"]]):
                raise ValueError(f"pos_boxes are {where.start} and {where.stop}, which are no rows")
        record: dict[str, Any] = dict(place.entry or {})
        for role, joined in names.items():
            for name in joined.split(","):
                record[name] = file[name][where if role in ("features", "boxes") else place.row]
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
    if not (content and isinstance(content, dict) and {*map(type, content.values())} == {int}):
        raise DataError(f"{path}: expected an object that maps image ids to row numbers")
    return {str(key): row for key, row in content.items()}


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, numbers and strings need no global name, so none is let through."""

    def find_class(self, module: str, name: str) -> Any:
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
    # The MCAN authors' files: x (D, n), of their later extractor (n, D), bbox (n, 4) in pixels,
    # image_w, image_h. OpenVQA's: x (n, D), for GQA's objects also bbox, width, height.
    # Jiang et al. 2020, .pth: maps (1, D, h, w).
    **{
        "grid-pth" if suffix == ".pth" else suffix[1:]: Layout(FolderFiles, suffix=suffix)
        for suffix in FEATURE_SUFFIXES
    },
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
    "hdf5-groups": Layout(Hdf5Files, index="groups"),
    # NAME_0.h5, ... and NAME_info.json: objects (N, n, D) with boxes, or maps (N, D, h, w).
    "numbered-hdf5": Layout(
        Hdf5Files, suffix="_info.json", ids="stem", axes=("rows", "map"), index="info"
    ),
}


def open_source(path: Path, name: str | None, options: SourceOptions) -> FeatureSource:
    """The source at `path`, in the layout `name` or in the one that it looks like."""
    layout = name or detect_layout(path, options.keys.get("features") or "x")
    return LAYOUTS[layout].container(path, layout, options)


def detect_layout(path: Path, features: str = "x") -> str:
    """The layout of a file or folder, by its name and first bytes; `features` are called so in it.

    Raises `DataError` if it is not clear.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    names = [file.name for file in path.rglob("*")] if path.is_dir() else [path.name]
    suffixes = {layout: known.suffix for layout, known in LAYOUTS.items() if known.suffix}
    found = [n for n, suffix in suffixes.items() if any(name.endswith(suffix) for name in names)]
    if found or path.is_dir():
        problem = f"contains files of {' and '.join(found) or 'no known format'}"
    elif h5py.is_hdf5(path):
        with _open_hdf5(path) as file:
            arrays = sum(isinstance(item, h5py.Dataset) for item in file.values())
            if "pos_boxes" in file:
                found = ["adaptive-hdf5"]
            elif arrays == 1 or any(name in file for name in (features, *KNOWN["features"])):
                found = ["hdf5"]
            elif not arrays:
                found = ["hdf5-groups"]
            problem = f"contains {shorten(file)}; say which are the features: --keys features=NAME"
    else:
        with path.open("rb") as text:
            columns = text.readline(64 << 20).split(b"\t")
        found = [n for n, layout in LAYOUTS.items() if len(columns) == len(layout.columns)]
        if not found or (len(columns) == 2 and not columns[1].startswith(b"{")):
            found = ["tsv"][: len(columns) - 1]
        problem = f"text of {plural(len(columns), 'tab-separated column')}, expected several"
    if len(found) != 1:
        raise DataError(f"{path}: {problem}; give one file or folder of a known format (--help)")
    return found[0]


def import_features(
    sources: Sequence[FeatureSource], options: FillOptions, selected: frozenset[str] | None = None
) -> None:
    """Write the images of all `sources` as a store; see `fill_store`.

    `selected` are the ids, as text, to take (None: all).
    """
    files = [
        {"format": source.name, "path": str(source.path)}
        | {k: v for k, v in vars(source.options).items() if v and k not in ("index", "sizes")}
        for source in sources
    ]
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
