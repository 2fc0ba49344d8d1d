"""Files are written completely or not at all, whatever others do beside them."""

from __future__ import annotations

import errno
import io
import os
import platform
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mcan.errors import DataError
from mcan.files import for_library, is_locked, lock_file, save_text, write_atomically


class FullDisk(io.FileIO):
    """Of all writes, only one fails."""

    def __init__(self, path: Path, failing: int) -> None:
        super().__init__(path, "w+")
        self.failing, self.count = failing, 0

    def write(self, data: Any) -> int:
        self.count += 1
        if self.count == self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_any_write_of_hdf5_that_fails_is_reported_as_itself(tmp_path):
    """Also one that a buffer makes while HDF5 seeks or reads."""
    values = {str(size): np.arange(size) for size in (10, 5000, 300, 20000)}

    def write(failing: int) -> int:
        raw = FullDisk(tmp_path / "a.h5", failing)
        try:
            with (
                io.BufferedRandom(raw) as file,
                for_library(file) as output,
                h5py.File(output, "w") as store,
            ):
                for name, array in values.items():
                    store[name] = array
        finally:
            raw.close()
        return raw.count

    count = write(-1)
    assert count > 5
    for failing in range(1, count + 1):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write(failing)
    write(-1)
    with h5py.File(tmp_path / "a.h5") as store:
        assert all(np.array_equal(store[name], array) for name, array in values.items())


def test_what_killed_processes_left_is_deleted_and_nothing_else(tmp_path):
    gone = 2**22 + 1  # above the largest number of a process
    mine = f".a.txt.tmp-{platform.node()}-"
    others = [f"{mine}01-{gone}", f".a.txt.tmp-elsewhere-{gone}", f"{mine}{os.getppid()}"]
    others.append(f"{mine}{gone}".replace("a.txt", "b.txt"))
    for name in (*others, f"{mine}{gone}"):
        (tmp_path / name).write_text("")
    stuck = tmp_path / f"{mine}{gone + 1}"
    stuck.mkdir()
    save_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {*others, stuck.name, "a.txt"}


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(DataError, match=r"a\.txt: could not be written: Input/output error"):
        write_atomically(tmp_path / "a.txt", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_whether_a_file_is_locked(tmp_path):
    path = tmp_path / "lock"
    assert is_locked(path) is False
    assert not path.exists()
    lock = lock_file(path)
    assert lock is not None
    assert is_locked(path) is True
    assert lock_file(path) is None
    lock.release()
    assert is_locked(path) is False
