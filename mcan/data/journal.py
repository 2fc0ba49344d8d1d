"""The finished steps of a long write, so that one that was killed can continue."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from mcan.data.hdf5 import Id
from mcan.errors import DataError
from mcan.files import sync


class Entry(NamedTuple):
    """An image in a store that is being written: its rows and what else is known of it."""

    image_id: Id
    rows: int
    size: tuple[int, int] | None = None
    grid_shape: tuple[int, int] | None = None


class Step(NamedTuple):
    """A unit of work that is finished: what the caller noted about it, and the images it added."""

    mark: Any
    entries: list[Entry]


class Journal:
    """A folder beside the store, `STORE.partial`, with the rows so far and `journal.jsonl`.

    The first line of the journal holds `settings`, which a continued write must share; each further
    line is a `Step` whose rows are on the disk. The folder goes when the store is complete.
    """

    def __init__(self, store: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.folder = store.with_name(f"{store.name}.partial")
        self._settings = json.loads(json.dumps(dict(settings)))
        self._resume = resume
        self._path = self.folder / "journal.jsonl"
        self._file: FileIO | None = None

    def open(self, fits: Callable[[int], bool]) -> list[Step]:
        """The steps to keep: those of an earlier write as long as their rows together `fits`.

        Raises `DataError` where there is an earlier write but `resume` was not asked for, its
        settings differ, it is damaged, or another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b", buffering=0)
        try:
            self._lock()
            steps = self._read(fits)
            if not steps:
                self._file.truncate(0)
                self._write([self._settings])
                sync(self.folder)
        except BaseException:
            self.close()
            raise
        return steps

    def append(self, steps: list[Step]) -> None:
        """Add steps whose rows are on the disk."""
        self._write([[step.mark, step.entries] for step in steps])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _lock(self) -> None:
        assert self._file is not None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self.folder}: another process is writing there") from None
        except OSError:
            pass  # Some network drives have no locks.

    def _write(self, lines: list[Any]) -> None:
        assert self._file is not None
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def _read(self, fits: Callable[[int], bool]) -> list[Step]:
        assert self._file is not None
        self._file.seek(0)
        settings = self._file.readline()
        steps: list[Step] = []
        rows, end = 0, self._file.tell()
        # A line without its end is one that a kill cut short.
        while (line := self._file.readline()).endswith(b"\n"):
            step = self._step(line)
            rows += sum(entry.rows for entry in step.entries)
            if not fits(rows):
                break
            steps.append(step)
            end = self._file.tell()
        if steps:
            if not self._resume:
                raise DataError(
                    f"{self.folder}: holds a run that was cut short; continue it with --resume, "
                    "or delete the folder"
                )
            self._compare(settings)
            self._file.truncate(end)
        return steps

    def _step(self, line: bytes) -> Step:
        try:
            mark, entries = json.loads(line)
            return Step(mark, [_entry(*values) for values in entries])
        except (TypeError, ValueError):
            raise self._damaged() from None

    def _damaged(self) -> DataError:
        return DataError(f"{self._path}: is damaged; delete the folder and start again")

    def _compare(self, settings: bytes) -> None:
        try:
            earlier = dict(json.loads(settings))
        except (TypeError, ValueError):
            raise self._damaged() from None
        for key in {**earlier, **self._settings}:
            before, now = earlier.get(key), self._settings.get(key)
            if before != now:
                raise DataError(
                    f"{self.folder}: was begun with {key} = {_short(before)}, now it is "
                    f"{_short(now)}; continue with the same, or delete the folder"
                )


def _entry(image_id: Id, rows: int, size: Any, grid_shape: Any) -> Entry:
    return Entry(image_id, rows, size and tuple(size), grid_shape and tuple(grid_shape))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
