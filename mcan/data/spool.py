"""The rows of a store on their way: raw files in a folder, with or without a journal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mcan.data.journal import Journal, Step
from mcan.data.row_file import RowFile

_SYNC_BYTES = 256 << 20
"""A kill costs at most this much work; syncing more often slows the disk down."""

RowKinds = Mapping[str, tuple[Any, tuple[int, ...]]]
"""Dtype and row shape of each dataset that is streamed."""


class Spool:
    """Streams of rows beside `store`, in a folder of this process or of the journal."""

    def __init__(self, store: Path, kinds: RowKinds, journal: Journal | None = None) -> None:
        self.folder = (
            journal.folder if journal else store.with_name(f".{store.name}.{os.getpid()}.rows")
        )
        self._kinds = kinds
        self._journal = journal
        self._streams: dict[str, RowFile] = {}
        self._unsynced: list[Step] = []
        self._unsynced_bytes = 0

    def open(self) -> list[Step]:
        """Start, or continue after the steps that the journal holds, which are returned."""
        self.folder.mkdir(parents=True, exist_ok=True)
        steps = self._journal.open(self._on_disk) if self._journal else []
        kept = sum(entry.rows for step in steps for entry in step.entries)
        for name, (dtype, row_shape) in self._kinds.items():
            self._streams[name] = RowFile(self._path(name), dtype, row_shape, kept)
        return steps

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        for name, values in rows.items():
            self._streams[name].append(values)
            self._unsynced_bytes += values.nbytes

    def commit(self, step: Step) -> None:
        """Note that a step is finished; it survives a kill once it is synced."""
        self._unsynced.append(step)
        if self._unsynced_bytes >= _SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        if self._journal and self._unsynced:
            for stream in self._streams.values():
                stream.sync()
            self._journal.append(self._unsynced)
        self._unsynced, self._unsynced_bytes = [], 0

    def copy_into(self, file: h5py.File) -> None:
        for name, stream in self._streams.items():
            stream.copy_into(file, name)

    def close(self, keep: bool) -> None:
        """Close the files; they go, unless a journal knows them and they are to be kept."""
        for stream in self._streams.values():
            stream.close()
        if self._journal:
            self._journal.close()
        if not (keep and self._journal):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def _on_disk(self, rows: int) -> bool:
        """After a power failure the journal may be ahead of the rows."""
        needed = {
            self._path(name): rows * int(np.prod(row_shape)) * np.dtype(dtype).itemsize
            for name, (dtype, row_shape) in self._kinds.items()
        }
        return all(path.exists() and path.stat().st_size >= n for path, n in needed.items())
