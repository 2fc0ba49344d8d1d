"""Checked reading of HDF5 files, and files and folders that appear complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mcan.errors import DataError
from mcan.files import saving, sync

Id = int | str
Ids = NDArray[Any]
"""(N,) int64, or (N,) objects that are all str."""

TEXT = h5py.string_dtype("utf-8")


@contextmanager
def reading(path: Path, what: str) -> Iterator[h5py.File]:
    """Open `path`, a `what`, for reading; damage met inside the block is a `DataError` too."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such {what}")
    try:
        # Without locks: the files never change once renamed, and some network drives have none.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    # What h5py raises for damaged files, as flipping bytes shows.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: this {what} cannot be read; the file is truncated, damaged or not HDF5 "
            f"({reason})"
        ) from error


def require(
    file: h5py.File, name: str, dtypes: Sequence[Any], shape: tuple[int | None, ...]
) -> h5py.Dataset:
    """The dataset `name`, whose dtype is one of `dtypes` and whose shape is `shape` (None: any)."""
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{file.filename}: dataset '{name}' is missing")
    fits = len(found.shape) == len(shape) and all(
        expected in (None, size) for size, expected in zip(found.shape, shape, strict=True)
    )
    if found.dtype not in [np.dtype(d) for d in dtypes] or not fits:
        names = " or ".join(_dtype_name(np.dtype(d)) for d in dtypes)
        raise DataError(
            f"{file.filename}: dataset '{name}' is {_dtype_name(found.dtype)} "
            f"{_shape_name(found.shape)}, expected {names} {_shape_name(shape)}"
        )
    return found


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if h5py.check_string_dtype(dtype) is not None:
        return "UTF-8 text" if dtype == TEXT else "text of another kind"
    return str(dtype)


def _shape_name(shape: tuple[int | None, ...]) -> str:
    return str(shape).replace("None", "any")


def read_array(
    file: h5py.File, name: str, dtype: Any, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """The whole of a numeric dataset."""
    return np.asarray(require(file, name, [dtype], shape)[()])


def read_strings(file: h5py.File, name: str, count: int | None = None) -> list[str]:
    """The whole of a text dataset; `count`, where given, is the length that it must have."""
    return [value.decode() for value in require(file, name, [TEXT], (count,))[()].tolist()]


def read_ids(file: h5py.File, name: str, count: int | None = None) -> Ids:
    """The whole of a dataset of ids, integers or text."""
    found = require(file, name, [np.int64, TEXT], (count,))
    if found.dtype == np.int64:
        return np.asarray(found[()])
    return _objects(read_strings(file, name))


def _objects(values: Sequence[str]) -> Ids:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def ids_array(ids: Sequence[Id]) -> Ids:
    """Ids of one type as an array."""
    if ids and isinstance(ids[0], str):
        return _objects(ids)  # type: ignore[arg-type]
    return np.array(ids, dtype=np.int64)


def ids_digest(ids: Ids) -> str:
    """SHA-256 of ids in their order, in hexadecimal."""
    text = ids.dtype == object
    content = json.dumps(ids.tolist()).encode() if text else ids.astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()


def write_strings(file: h5py.File, name: str, values: Sequence[str]) -> None:
    file.create_dataset(name, data=_objects(values), dtype=TEXT)


def write_ids(file: h5py.File, name: str, ids: Sequence[Id]) -> None:
    array = ids_array(ids)
    file.create_dataset(name, data=array, dtype=TEXT if array.dtype == object else np.int64)


def check_offsets(path: str, name: str, offsets: NDArray[np.int64], total: int, least: int) -> None:
    """Offsets start at 0, rise by at least `least` and end at `total`."""
    if offsets[0] != 0 or offsets[-1] != total or bool((np.diff(offsets) < least).any()):
        raise DataError(
            f"{path}: dataset '{name}' must start at 0, rise by at least {least} per entry and "
            f"end at {total}"
        )


def check_id(value: object, what: str, path: Path, other: Id | None) -> Id:
    """`value` as int or str; refused where HDF5 cannot hold it or its type is not `other`'s."""
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(f"{path}: {what} is {value!r}, expected an integer or a string")
    if isinstance(value, str):
        check_text(value, what, path)
    elif not -(2**63) <= value < 2**63:
        raise DataError(f"{path}: {what} is {value}, which does not fit 64 bits; use strings")
    if other is not None and type(other) is not type(value):
        raise DataError(
            f"{path}: {what} is {value!r} while an earlier one is {other!r}; ids must be all "
            "integers or all strings"
        )
    return value


def check_text(value: object, what: str, path: Path) -> None:
    """Text must be storable: UTF-8 without NUL."""
    if not isinstance(value, str):
        raise DataError(f"{path}: {what} is {value!r}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{path}: {what} is {value!r}, which is not valid Unicode") from None
    if "\0" in value:
        raise DataError(f"{path}: {what} is {value!r}, which holds a NUL character")


def partial(path: Path) -> Path:
    """The temporary name beside `path` that this process writes under."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def publishing(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there is synced and takes its name.

    On an exception it is removed and `path` stays as it was. Where `path` is a folder, that is
    replaced as a whole; an existing file is never replaced.
    """
    temporary = temporary or partial(path)
    try:
        yield temporary
        with saving(path):
            for file in [*(temporary.iterdir() if temporary.is_dir() else ()), temporary]:
                sync(file)
            if path.is_dir():
                old = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            elif path.exists():
                raise DataError(f"{path}: appeared while it was being written; it was left alone")
            else:
                temporary.rename(path)
            sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()
