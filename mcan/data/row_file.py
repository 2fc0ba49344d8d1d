"""Rows on their way into a contiguous HDF5 dataset, which cannot grow."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mcan.progress import progress

_BLOCK_BYTES = 16 << 20


class RowFile:
    """A raw temporary file of rows, (rows, *row_shape), copied block by block in the end.

    An earlier file is continued after its first `rows`; what follows them is cut off.
    """

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...], rows: int = 0) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.row_shape = row_shape
        self.rows = rows
        self.row_bytes = int(np.prod(row_shape)) * self.dtype.itemsize
        self._file = path.open("ab")
        self._file.truncate(rows * self.row_bytes)

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def copy_into(self, file: h5py.File, name: str) -> None:
        self._file.close()
        target = file.create_dataset(name, (self.rows, *self.row_shape), self.dtype)
        row_items = int(np.prod(self.row_shape))
        step = max(1, _BLOCK_BYTES // self.row_bytes)
        bar = progress(
            total=self.rows * self.row_bytes,
            unit="B",
            unit_scale=True,
            delay=2,
            desc=f"storing {name}",
        )
        with bar, self.path.open("rb") as raw:
            for first in range(0, self.rows, step):
                count = min(step, self.rows - first)
                block = np.fromfile(raw, self.dtype, count * row_items)
                target[first : first + count] = block.reshape(count, *self.row_shape)
                bar.update(count * self.row_bytes)

    def close(self) -> None:
        with suppress(OSError):  # A full disk was told of before.
            self._file.close()
