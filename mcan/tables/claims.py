"""Claims on runs: of all processes that run a table's runs, one does each.

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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield descriptor if _lock(descriptor, path) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        # Not lockf: its locks are not inherited.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"{path}: cannot be locked ({error.strerror})") from error
        warning = "this file system has no locks; do not run this table twice at once"
        sys.stderr.write(f"warning: {path}: {warning}\n")
    return True
