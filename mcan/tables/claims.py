"""Claims: of all processes that work on a folder, one does each thing.

A claim is a lock on a file. Children inherit it: a training whose runner was killed still holds its
run, and when the last process that holds it ends, however it ends, the claim is free.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcan.errors import RunError

# What file systems without locks answer.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def claim(folder: Path) -> Iterator[int | None]:
    """Claim the run `folder` without waiting: a descriptor for its children, None where another
    process holds it.

    Raises `RunError` where the claim's file cannot be written.
    """
    path = folder.parent / ".claims" / folder.name
    with _opened(path) as descriptor:
        yield descriptor if _lock(descriptor, path, wait=False) else None


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process has its turn on what is in `folder`, and have it.

    Raises `RunError` where the claim's file, `.lock` in it, cannot be written.
    """
    path = folder / ".lock"
    with _opened(path) as descriptor:
        _lock(descriptor, path, wait=True)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    """False where another process holds it and is not waited for."""
    try:
        # Not lockf: its locks are not inherited.
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"{path}: cannot be locked ({error.strerror})") from error
        warning = "this file system has no locks; do not run this table twice at once"
        sys.stderr.write(f"warning: {path}: {warning}\n")
    return True
