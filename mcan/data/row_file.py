"""Rows on their way into a contiguous HDF5 dataset, which cannot grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

_BLOCK_BYTES = 16 << 20


class RowFile:
    """A raw temporary file of rows, (rows, *row_shape), copied block by block in the end."""

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.row_shape = row_shape
        self.rows = 0
        self._file = path.open("wb")

    def append(self, rows: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += len(rows)

    def copy_into(self, file: h5py.File, name: str) -> None:
        self._file.close()
        target = file.create_dataset(name, (self.rows, *self.row_shape), self.dtype)
        row_items = int(np.prod(self.row_shape))
        row_bytes = row_items * self.dtype.itemsize
        step = max(1, _BLOCK_BYTES // row_bytes)
        bar = tqdm(
            total=self.rows * row_bytes, unit="B", unit_scale=True, delay=2, desc=f"storing {name}"
        )
        with bar, self.path.open("rb") as raw:
            for first in range(0, self.rows, step):
                count = min(step, self.rows - first)
                block = np.fromfile(raw, self.dtype, count * row_items)
                target[first : first + count] = block.reshape(count, *self.row_shape)
                bar.update(count * row_bytes)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)
