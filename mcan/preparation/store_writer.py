"""Writing image stores, in the format of data/README.md; a killed write can continue.

HDF5 cannot append to a contiguous dataset, so rows are appended to a plain file behind a gap. At
the end an empty HDF5 file is put into the gap, and HDF5 adds the rows that are there to it as a
dataset, and the small tables behind them. No row is copied. n rows of an image, D width of one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import shutil
import textwrap
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import h5py
import numpy as np
import torch
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DataLoader

import mcan
from mcan.console import message, natural, progress
from mcan.data.arrays import Id, array_to_ids, ids_to_array
from mcan.data.integrity import content_digest, image_checksum
from mcan.data.records import check_id
from mcan.data.store import FORMAT_VERSION, ImageStore, open_store
from mcan.errors import DataError, shorten
from mcan.files import for_library, lock_file, parse_json, remove_folder, save_text, saving, sync

FeatureDtype = Literal["float16", "float32"]
Pair = tuple[int, int]
_SAVE_SECONDS = 30.0
"""A kill costs at most about this much work."""
_BOX_TOLERANCE = 1e-3
_LIBVER = ("v108", "v110")


class ImageRows(NamedTuple):
    """One image: `rows` (n, D) features or (3, H, W) uint8 pixels, `boxes` (n, 4), normalised
    x1 y1 x2 y2, `size` (width, height) in pixels and `grid_shape` (rows, columns). `counts` is what
    the report of `fill_store` sums over the images, such as how many rows were dropped."""

    image_id: Id
    rows: ArrayLike
    boxes: ArrayLike | None = None
    size: Pair | None = None
    grid_shape: Pair | None = None
    counts: Mapping[str, int] = {}


class StoredImage(NamedTuple):
    """An image whose rows are in the file that is being written."""

    image_id: Id
    rows: int
    checksum: int
    size: Pair | None
    grid_shape: Pair | None


class StoreWriter:
    """Writes a store; `with StoreWriter(path) as writer: writer.add(ImageRows(...))`.

    The first image says what each image has: the shape of its rows, boxes, a size, a grid shape.
    Features are stored as `dtype`, pixels as uint8. Nothing appears at `path` until the block ends
    without an exception, and an exception leaves nothing behind. With `settings` (JSON), what the
    last `save()` that was due has saved survives in `PATH.partial/`, also `parts` (JSON, for the
    caller) and the sums of all `counts`, and a later writer with `resume` and equal settings
    continues there. `provenance` (JSON) may be changed until the block ends. Memory does not grow
    with the rows.

    Raises `DataError` if `path` exists or cannot be written, or `PATH.partial/` is not to continue.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: FeatureDtype = "float16",
        *,
        provenance: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.provenance = dict(provenance or {})
        self.parts: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self._dtype: FeatureDtype = dtype
        self._resumable = settings is not None
        self._resume = resume
        self._first_byte = _first_byte()
        self._settings = {**(settings or {}), "dtype": dtype, "first_byte": self._first_byte}
        self._folder = self.path.with_name(f"{self.path.name}.partial")
        self._state = self._folder / "state.json"
        self._lock: FileLock | None = None
        self._files: dict[str, BinaryIO] = {}
        self.images: dict[Id, StoredImage] = {}
        self._traits: dict[str, Any] | None = None
        self._last_save = time.monotonic()

    def __enter__(self) -> StoreWriter:
        if self.path.exists():
            if self._folder.is_dir() and not (self._folder / "rows").exists():
                remove_folder(self._folder)  # a process was killed after it had published the store
            raise DataError(f"{self.path}: already exists; delete it or choose another name")
        with saving(self.path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_file(self._folder / "lock")
            if self._lock is None:
                raise DataError(f"{self._folder}: another process is writing there")
            try:
                self._open()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        keep = self._resumable
        try:
            with saving(self.path):
                if self._resumable and self.images:
                    self.save(now=True)
                if exception_type is None:
                    self._publish()
                    keep = False
        finally:
            self._close()
            if not keep:
                remove_folder(self._folder)

    def add(self, image: ImageRows) -> None:
        """Add an image; after a `DataError` that names it, the writer is as before."""
        try:
            self.add_checked(image)
        except ValueError as error:
            raise DataError(f"{self.path}: image {image.image_id!r}: {error}") from None

    def add_checked(self, image: ImageRows) -> None:
        """`add` that raises a `ValueError` with the reason alone."""
        number = check_id(image.image_id, "image id", next(iter(self.images), None))
        if number in self.images:
            raise ValueError(f"image id {number!r} was added before")
        rows, boxes, traits = _prepare(image, self._dtype)
        for name, value in traits.items():
            if self._traits and value != self._traits[name]:
                expected = self._traits[name]
                raise ValueError(f"{name}: {value}, but {expected} for earlier images")
        self._traits = traits
        with saving(self.path):
            self._files["rows"].write(rows.data)
            if boxes is not None:
                self._files["boxes"].write(boxes.data)
        checksum = image_checksum(rows, boxes)
        self.images[number] = StoredImage(number, len(rows), checksum, image.size, image.grid_shape)
        self.counts.update(image.counts)

    def save(self, now: bool = False) -> None:
        """Save what was added so far, so that a kill does not lose it; if `now` or if it is due."""
        if not now and time.monotonic() - self._last_save < _SAVE_SECONDS:
            return
        with saving(self.path):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        state = {
            "settings": self._settings,
            "traits": self._traits,
            "parts": self.parts,
            "counts": self.counts,
            "images": list(self.images.values()),
        }
        save_text(self._state, json.dumps(state))
        self._last_save = time.monotonic()

    @property
    def bytes(self) -> int:
        """Bytes of all images so far."""
        return sum(self._lengths().values()) - self._first_byte

    def _open(self) -> None:
        """Open the files, cut to what the state promises."""
        if self._state.exists() and not self._resume:
            raise DataError(
                f"{self._folder}: contains an interrupted run; continue it with --resume, or "
                "delete the folder"
            )
        try:
            if self._state.exists():
                state = parse_json(self._state.read_bytes())
                for key, value in json.loads(json.dumps(self._settings)).items():
                    if (earlier := state["settings"].get(key)) != value:
                        raise DataError(
                            f"{self._folder}: was begun with {key} = {json.dumps(earlier)}, now it "
                            f"is {json.dumps(value)}; continue with the same, or delete the folder"
                        )
                self._traits, self.parts = dict(state["traits"]), dict(state["parts"])
                self.counts = Counter({str(k): int(v) for k, v in state["counts"].items()})
                self.images = {image[0]: StoredImage(*image) for image in state["images"]}
            for name, length in self._lengths().items():
                self._files[name] = (self._folder / name).open("ab")
                if self.images and self._files[name].tell() < length:
                    raise ValueError("the state is ahead of the rows")
                self._files[name].truncate(length)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError):
            raise DataError(f"{self._folder}: is damaged; delete it and start again") from None

    def _lengths(self) -> dict[str, int]:
        """The bytes of both files that belong to images: an interruption may leave more."""
        if self._traits is None:
            return {"rows": self._first_byte, "boxes": 0}
        count = sum(image.rows for image in self.images.values())
        row = np.dtype(self._traits["dtype"]).itemsize * math.prod(self._traits["row shape"])
        boxes = 16 * count if self._traits["boxes"] == "given" else 0
        return {"rows": self._first_byte + count * row, "boxes": boxes}

    def _publish(self) -> None:
        """Turn the file of rows into the store and give it its name."""
        images = list(self.images.values())
        if not images or self._traits is None:
            raise DataError(f"{self.path}: no image was added, so no store was written")
        tables: dict[str, NDArray[Any]] = {
            "image_ids": ids_to_array([image.image_id for image in images]),
            "offsets": np.cumsum([0, *(image.rows for image in images)], dtype=np.int64),
            "checksums": np.array([image.checksum for image in images], np.uint32),
        }
        if self._traits["size"] == "given":
            tables["sizes"] = np.array([image.size for image in images], np.int32)
        if self._traits["grid_shape"] == "given":
            tables["grid_shapes"] = np.array([image.grid_shape for image in images], np.int32)
        for file in self._files.values():
            file.close()
        boxes, shape = None, (int(tables["offsets"][-1]), *self._traits["row shape"])
        if self._traits["boxes"] == "given":
            boxes = np.memmap(self._folder / "boxes", np.float32, "r", shape=(shape[0], 4))
        # Only the shape and the type of these matter.
        rows = np.broadcast_to(np.zeros((), self._traits["dtype"]), shape)
        with (self._folder / "rows").open("r+b") as raw:
            # A kill at this point may have left tables behind the rows.
            raw.truncate(self._first_byte + rows.nbytes)
            with for_library(raw) as file:
                note = self.provenance
                first = _write_around_rows(file, self._first_byte, rows, tables, boxes, note)
            assert first == self._first_byte
            os.fsync(raw.fileno())
        (self._folder / "rows").rename(self.path)
        sync(self.path.parent)

    def _close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):  # A full disk was reported before.
                file.close()
        if self._lock:
            self._lock.release()


def _write_around_rows(
    file: BinaryIO,
    gap: int,
    rows: NDArray[Any],
    tables: Mapping[str, NDArray[Any]],
    boxes: NDArray[Any] | None,
    provenance: Mapping[str, Any],
) -> int:
    """Write all of a store but its rows; returns the byte at which HDF5 expects these."""
    empty = io.BytesIO()
    with h5py.File(empty, "w", libver=_LIBVER):
        pass
    file.seek(0)
    file.write(empty.getvalue().ljust(gap, b"\0"))
    note = json.dumps(provenance).encode()
    small = {**tables, "provenance": np.frombuffer(note, np.uint8)}
    if boxes is not None:
        small["boxes"] = boxes
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # Whole pages: rows start at a page boundary, and a header of any length fits before them.
    pages = {"alignment_threshold": 1, "alignment_interval": 4096}
    with h5py.File(file, "r+", libver=_LIBVER, **pages) as store:
        name = "features" if rows.ndim == 2 else "pixels"
        declared = store.create_dataset(name, rows.shape, rows.dtype, dcpl=options)
        for name, values in small.items():
            store.create_dataset(name, data=values, track_times=False)
        store.attrs["format_version"] = FORMAT_VERSION
        store.attrs["digest"] = np.bytes_(content_digest(rows, boxes, tables))
        store.attrs["provenance_crc32"] = zlib.crc32(note)
        return int(declared.id.get_offset())


def _first_byte() -> int:
    """Where the rows begin, found with the installed HDF5 library."""
    rows = np.zeros((1, 1), np.float16)
    return _write_around_rows(io.BytesIO(), 0, rows, {"image_ids": np.zeros(1)}, None, {})


def _prepare(
    image: ImageRows, dtype: FeatureDtype
) -> tuple[NDArray[Any], NDArray[np.float32] | None, dict[str, Any]]:
    """Rows (n, D) of `dtype` or (1, 3, H, W) uint8, boxes (n, 4), and what all images of a store
    have in common. Raises `ValueError` for an image that cannot be stored."""
    rows = np.asarray(image.rows)
    if rows.ndim != 3:
        rows = _cast(rows, dtype)
    elif rows.dtype == np.uint8:
        rows = np.ascontiguousarray(rows)[None]
    else:
        raise ValueError(f"pixels are {rows.dtype}, expected uint8")
    grid = image.grid_shape
    if grid is not None and (min(grid) < 1 or math.prod(grid) != len(rows)):
        raise ValueError(f"grid_shape {grid} does not make its {len(rows)} rows")
    optional = {"boxes": image.boxes, "size": image.size, "grid_shape": image.grid_shape}
    traits = {
        "dtype": rows.dtype.name,
        "row shape": list(rows.shape[1:]),
        **{name: "missing" if value is None else "given" for name, value in optional.items()},
    }
    boxes = None if image.boxes is None else _check_boxes(image.boxes, len(rows))
    return rows, boxes, traits


def _cast(features: NDArray[Any], dtype: FeatureDtype) -> NDArray[Any]:
    """(n, D) features as C-contiguous `dtype`, if they are finite and fit."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features are {features.shape}, expected (n >= 1, D >= 1)")
    if features.dtype.kind not in "fiu":
        raise ValueError(f"features are {features.dtype}, expected numbers")
    for extreme in (features.max(), features.min()):  # not a number if any value is not
        if not abs(float(extreme)) <= float(np.finfo(dtype).max):
            raise ValueError(f"a feature value of {extreme} does not fit {dtype}")
    if features.dtype == np.float32 and dtype == "float16":
        # torch rounds as numpy does, ten times as fast.
        return torch.from_numpy(np.require(features, requirements=["C", "W"])).half().numpy()
    return features.astype(dtype, order="C", copy=False)


def _check_boxes(boxes: ArrayLike, count: int) -> NDArray[np.float32]:
    """(count, 4) boxes x1 y1 x2 y2 within [0, 1]; what is a little outside is clipped."""
    values = np.asarray(boxes, dtype=np.float32)
    if values.shape != (count, 4):
        raise ValueError(f"boxes are {values.shape}, expected ({count}, 4)")
    inside = (values >= -_BOX_TOLERANCE) & (values <= 1 + _BOX_TOLERANCE)
    valid = inside.all(1) & (values[:, :2] <= values[:, 2:]).all(1)
    if not valid.all():
        raise ValueError(
            f"box {values[~valid][0].tolist()} is not x1 <= x2, y1 <= y2 within [0, 1]; divide "
            "pixel coordinates by the width and height of the image"
        )
    return np.ascontiguousarray(values.clip(0, 1))


class BrokenImage(NamedTuple):
    """An image (its id, or its file if the id is unknown) that cannot be stored, and why."""

    image: str
    reason: str


Found = ImageRows | BrokenImage


@dataclass(frozen=True)
class FillOptions:
    """The options of commands that fill a store; `command` makes the store again."""

    output: Path
    dtype: FeatureDtype = "float16"
    workers: int = 0
    resume: bool = False
    skip_broken: bool = False
    command: str | None = None


def add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that leave the content of a store as it is, and `--skip-broken`."""
    add = parser.add_argument
    add("--output", type=Path, required=True, help="store to write (.h5)")
    cores = min(8, os.cpu_count() or 1)
    add("--workers", type=natural, default=cores, help="processes that read images, 0 for none")
    add("--resume", action="store_true", help="continue a run that was cut short")
    add("--skip-broken", action="store_true", help="leave broken and missing images out")


def read_fill_options(
    args: argparse.Namespace, script: str, arguments: Sequence[str] | None
) -> FillOptions:
    """The options, and the command that makes the store again, in which STORE is the output."""
    free = argparse.ArgumentParser()
    add_fill_arguments(free)
    kept = free.parse_known_args(arguments)[1] + ["--skip-broken"] * args.skip_broken
    command = shlex.join(["python", f"scripts/{script}", *kept, "--output", "STORE"])
    dtype: FeatureDtype = "float32" if vars(args).get("float32") else "float16"
    return FillOptions(args.output, dtype, args.workers, args.resume, args.skip_broken, command)


def fill_store(
    options: FillOptions,
    parts: Sequence[str],
    read: Callable[[Any], Any],
    make: Callable[[Any], Iterable[Found]] = iter,
    *,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    selected: Collection[str] = (),
) -> None:
    """Write a region store from the images of `parts`, whose names stay the same.

    `read` reads a part in a worker process; `make` turns what it returns into images, in this
    process. Finished parts survive a kill in `OUTPUT.partial/`; `resume` continues there if
    `settings` are the same, and tries parts with broken images again. Images that are broken, and
    `selected` ones (ids as text) that no part has, are listed in `OUTPUT.broken.tsv`. Raises
    `DataError` if there are any, unless `skip_broken`; nothing is published then. Prints a summary.
    """
    output, start = options.output, time.perf_counter()
    listing = output.with_name(f"{output.name}.broken.tsv")
    with StoreWriter(
        output,
        options.dtype,
        provenance={"mcan": mcan.__version__, "command": options.command, **provenance},
        settings=settings,
        resume=options.resume,
    ) as writer:
        earlier = len(writer.images)
        broken = _add_parts(writer, parts, read, make, options.workers)
        found = {str(image_id) for image_id in writer.images} | {item.image for item in broken}
        missing = [BrokenImage(i, "is not in the source") for i in sorted(set(selected) - found)]
        problems = [*broken, *missing]
        counts = f"{len(broken):,} broken and {len(missing):,} missing images, listed in {listing}"
        if problems:
            save_text(listing, "".join(f"{item.image}\t{item.reason}\n" for item in problems))
            writer.provenance["skipped"] = {item.image: item.reason for item in problems}
        else:
            listing.unlink(missing_ok=True)
        if problems and not options.skip_broken:
            first = "; ".join(f"{item.image}: {item.reason}" for item in problems[:5])
            raise DataError(
                f"{output}: not written: {counts} ({first}); repair them and use --resume, or "
                "leave them out with --resume --skip-broken"
            )
    seconds, store = time.perf_counter() - start, open_store(output)
    shape = " x ".join(map(str, store.rows.shape[1:]))
    rows = f"{len(store.rows):,} rows of {shape} {store.rows.dtype}"
    rate = (len(store) - earlier) / seconds
    print(f"{output}: {len(store):,} images, {rows}; {rate:,.1f} images/s")
    if problems:
        print(f"left out: {counts}")
    counted = [f"{label}: {count:,}" for label, count in writer.counts.items()]
    for line in (*counted, *report(store)):
        (message if line.startswith("warning") else print)(line)


def report(store: ImageStore) -> list[str]:
    """Counts that show what may have gone wrong with a store, and warnings if they are suspicious.

    Checksums find images with equal rows; of the others at most 1,000 are read.
    """
    ids, lines, warnings, equal = array_to_ids(store.image_ids), [], [], []
    first: dict[tuple[int, int], int] = {}
    for index, key in enumerate(zip(store.checksums.tolist(), np.diff(store.offsets), strict=True)):
        other = first.setdefault(key, index)
        # Of 200,000 images a few have the same CRC-32 by chance.
        if other < index and np.array_equal(store.image(other)[0], store.image(index)[0]):
            equal.append(f"{ids[index]!r} as {ids[other]!r}")
    lines.append(f"images with the rows of an earlier image: {len(equal):,}")
    if equal:
        warnings.append(f"images with the same rows: {shorten(equal)}")
    if store.kind == "regions":
        sample = np.unique(np.linspace(0, len(store) - 1, 1000).astype(int))
        images = [np.asarray(store.image(index)[0]) for index in sample.tolist()]
        constant = int(np.all([(rows == images[0][0]).all(0) for rows in images], 0).sum())
        largest = max(float(abs(rows).max()) for rows in images)
        width = images[0].shape[1]
        lines += [f"constant columns: {constant:,} of {width:,}", f"largest feature: {largest:.4g}"]
        if constant > width / 2 and len(store) > 1:
            warnings.append("most columns of the features never change")
        if largest > 1e6:
            warnings.append("features are huge; are they of another type, such as float64?")
    if store.boxes is not None:
        largest = float(store.boxes.max())
        lines.append(f"largest coordinate of a box: {largest:.3f} of the side of its image")
        if largest < 0.5:
            warnings.append("all boxes lie in a corner; were they divided twice?")
    return [*lines, *(f"warning: {store.path}: {warning}" for warning in warnings)]


def _add_parts(
    writer: StoreWriter,
    parts: Sequence[str],
    read: Callable[[Any], Any],
    make: Callable[[Any], Iterable[Found]],
    workers: int,
) -> list[BrokenImage]:
    """Add what is not there yet; returns the broken images."""
    broken: list[BrokenImage] = []
    # A finished part is None, an unfinished one has the ids of its images in the store.
    todo: Any = [part for part in parts if writer.parts.get(part, []) is not None]
    # Arrays stay arrays: tensors go through shared memory, of which containers have little.
    contents = DataLoader[Any](todo, batch_size=None, num_workers=workers, collate_fn=read)
    pairs, before = zip(todo, contents, strict=True), len(parts) - len(todo)
    try:
        for done, (part, content) in enumerate(
            progress(pairs, total=len(parts), initial=before, unit=" parts"), start=before + 1
        ):
            stored = [i for i in writer.parts.get(part, []) if i in writer.images]
            writer.parts[part], earlier, known = stored, set(stored), len(broken)
            for image in make(content):
                if isinstance(image, BrokenImage):
                    reason = textwrap.shorten(image.reason, 200)
                    broken.append(BrokenImage(image.image, reason))
                elif image.image_id in earlier:
                    earlier.remove(image.image_id)  # once: a second one is a duplicate
                elif np.ndim(image.rows) == 2 and not np.any(image.rows):
                    broken.append(BrokenImage(str(image.image_id), "all its features are zero"))
                else:
                    stored.append(image.image_id)  # before it is: an interruption may come between
                    try:
                        writer.add_checked(image)
                    except ValueError as error:
                        stored.pop()
                        broken.append(BrokenImage(str(image.image_id), str(error)))
            if len(broken) == known:
                writer.parts[part] = None
            writer.save()
            if done == before + max(1, len(parts) // 100):
                needed = writer.bytes // done * (len(parts) - done)
                if needed > (free := shutil.disk_usage(writer.path.parent).free):
                    need, have = (f"{size / 2**30:.1f} GiB" for size in (needed, free))
                    message(
                        f"warning: {writer.path}: about {need} are still to be written, but {have} "
                        "are free; if the disk is full, make room and continue with --resume"
                    )
    except RuntimeError as error:
        # torch notices a dead worker by a signal, so that this comes from anywhere in the block.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            "a worker process died; if memory ran out, continue with --resume and fewer "
            f"--workers ({' '.join(str(error).split())})"
        ) from error
    return broken
