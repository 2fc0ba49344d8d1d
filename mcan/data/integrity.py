"""Whether files are as they were written: checksums, digests, and how to make them again.

Nothing has a variable length inside HDF5: damaged bytes cannot send the library into its heaps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mcan.errors import DataError
from mcan.files import parse_json, sha256_of

_FIXED = "iufS"
"""Kinds of dtypes with a fixed size: integers, floating point, bytes."""


def map_arrays(path: Path, what: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The contiguous datasets of an HDF5 file, memory-mapped read-only, and its attributes.

    Attributes are Python values, text is `bytes`. Anything of variable length, as in files of
    format version 1, is left out. `what` names the kind of file in messages. Raises `DataError` if
    the file is missing, truncated or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such {what}")
    try:
        # Without locks: the files never change once renamed, and some network drives have none.
        with h5py.File(path, "r", locking=False) as file:
            attributes = {
                name: np.asarray(file.attrs[name]).tolist()
                for name in file.attrs
                if h5py.h5a.open(file.id, name.encode()).dtype.kind in _FIXED
            }
            content = np.memmap(path, np.uint8, "r")
            arrays = {}
            for name, dataset in file.items():
                if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in _FIXED:
                    continue
                if 0 in dataset.shape:
                    arrays[name] = np.zeros(dataset.shape, dataset.dtype)
                elif (offset := dataset.id.get_offset()) is not None:
                    # Raises `TypeError` beyond the end of the file.
                    arrays[name] = np.ndarray(dataset.shape, dataset.dtype, content.data, offset)
            return arrays, attributes
    # What h5py and numpy raise for damaged files, as flipping bytes shows.
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"this {what} is truncated, damaged or not HDF5"
        if getattr(error, "errno", None) == errno.ENOMEM:
            problem = f"not enough memory to map this {what} (see ulimit -v)"
        raise DataError(f"{path}: {problem} ({' '.join(str(error).split())})") from error


def file_identity(path: Path) -> tuple[int, ...]:
    """Of a file, as it is now: which one, how large, last written when; nothing if it is gone."""
    found = path.stat() if path.exists() else None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found else ()


def image_checksum(rows: NDArray[Any], boxes: NDArray[np.float32] | None) -> int:
    """CRC-32 of the rows of an image followed by its boxes."""
    checksum = zlib.crc32(np.ascontiguousarray(rows).data)
    return checksum if boxes is None else zlib.crc32(np.ascontiguousarray(boxes).data, checksum)


def content_digest(
    rows: NDArray[Any], boxes: NDArray[Any] | None, tables: Mapping[str, NDArray[Any]]
) -> str:
    """SHA-256 of shapes, dtypes and tables. These hold a checksum of each image, so it covers all
    that training reads, at the cost of the tables alone."""
    shapes = {"rows": rows, "boxes": boxes, **tables}
    header = {k: [v.dtype.str, list(v.shape)] for k, v in shapes.items() if v is not None}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tables):
        digest.update(np.ascontiguousarray(tables[name]).data)
    return digest.hexdigest()


def remake(path: Path, provenance: Mapping[str, Any]) -> str:
    scripts = "the dataset's prepare.py, scripts/import_features.py or scripts/extract_features.py"
    command = str(provenance.get("command", scripts))
    for name, place in (("STORE", path), ("FOLDER", path.parent)):
        command = command.replace(f"--output {name}", f"--output {shlex.quote(str(place))}")
    return f"delete it and make it again with: {command}"


def read_meta(folder: Path, version: int) -> dict[str, Any]:
    """`meta.json` of a prepared folder; `DataError` if it is missing or not as written."""
    path = folder / "meta.json"
    if not path.is_file():
        raise DataError(f"{folder}: no prepared dataset (it has no meta.json); {_command(folder)}")
    content, meta = path.read_bytes(), dict[str, Any]()
    with suppress(TypeError, ValueError):
        meta.update(parse_json(content))
    meta.pop("checksum", None)
    if meta.get("format_version") != version or content != meta_text(meta).encode():
        raise _damaged(path, meta)
    return meta


def meta_text(meta: Mapping[str, Any]) -> str:
    """The content of `meta.json`: `meta`, and the SHA-256 of `meta` itself as `checksum`."""
    checksum = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    return json.dumps({**meta, "checksum": checksum}, indent=2) + "\n"


def check_file(folder: Path, name: str, meta: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.is_file() or sha256_of(path) != meta["files"][name]:
        raise _damaged(path, meta)


def _damaged(path: Path, meta: Mapping[str, Any]) -> DataError:
    found = "damaged, changed or of an older format" if path.exists() else "no such file"
    return DataError(f"{path}: {found}; {_command(path.parent, meta)}")


def _command(folder: Path, meta: Mapping[str, Any] | None = None) -> str:
    """How to make `folder` (again), by its meta or else by the dataset's folder around it."""
    meta, around = meta or {}, folder.absolute().parent
    name = meta.get("dataset") or ((around / "prepare.py").exists() and around.name)
    if not name:
        return "make it with the prepare.py of the dataset's folder in data/"
    command = meta.get("command", f"python data/{name}/prepare.py")
    force = " --force" if (folder / "meta.json").exists() else ""
    return f"make it with: {command} --output {folder}{force}"
