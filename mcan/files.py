"""Files that are either complete or absent: temporary name, fsync, rename."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mcan.errors import DataError


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """A full disk or a missing permission inside the block is a `DataError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error.strerror or error}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    On any error the temporary file is removed and what was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Atomically write UTF-8 text; `OSError` where it cannot be written."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_text(path: Path, text: str) -> None:
    """Atomically write UTF-8 text, making its folder; `DataError` where it cannot be written."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
