"""Files: written completely or not at all, read from archives, checksums, locks."""

from __future__ import annotations

import errno
import glob
import gzip
import hashlib
import json
import os
import platform
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from mcan.console import message
from mcan.errors import DataError, RunError, shorten

PROCESSES = Path("/proc")
_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"


def refuse_existing(path: Path | None, option: str) -> None:
    """Raise `RunError` if the file that a command-line option names exists."""
    if path is not None and path.exists():
        raise RunError(f"{path}: exists; choose another {option}")


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """A full disk or a missing permission inside the block is a `DataError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error.strerror or error}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`."""
    owner = f".{path.name}.tmp-{platform.node()}-"
    temporary = path.with_name(f"{owner}{os.getpid()}")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(owner)}*"):
            process = left.name.removeprefix(owner)
            # Of a process that was killed. Systems without /proc keep it.
            if process.isdecimal() and PROCESSES.is_dir() and not (PROCESSES / process).exists():
                with suppress(OSError):
                    left.unlink()
        try:
            with temporary.open("w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


class _KeepsError:
    """A file that never fails to be written: `error` is the first error, and nothing follows it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> Any:
        return self._try(lambda: self._file.write(data), len(data))

    # These may write what is in the buffer.
    def seek(self, *where: int) -> Any:
        return self._try(lambda: self._file.seek(*where), 0)

    def read(self, size: int = -1) -> Any:
        return self._try(lambda: self._file.read(size), b"")

    def readinto(self, buffer: Any) -> Any:
        return self._try(lambda: self._file.readinto(buffer), 0)  # type: ignore[attr-defined]

    def truncate(self, size: int | None = None) -> Any:
        return self._try(lambda: self._file.truncate(size), 0)

    def flush(self) -> None:
        self._try(self._file.flush, None)

    def _try(self, act: Callable[[], Any], otherwise: Any) -> Any:
        if self.error is None:
            try:
                return act()
            except OSError as error:
                self.error = error
        return otherwise


@contextmanager
def for_library(file: BinaryIO) -> Iterator[Any]:
    """`file` as HDF5 and torch may write to it in the block, which raises its first error.

    They would report an error of their own, without the reason, or several; it is replaced.
    """
    wrapped = _KeepsError(file)
    try:
        yield wrapped
    finally:
        wrapped.flush()
        if wrapped.error is not None:
            raise wrapped.error from None


def remove_folder(folder: Path) -> None:
    """Delete a folder of temporary files, if it is there; a warning if that is impossible."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = error.strerror or error
        message(f"warning: {folder}: could not be deleted ({reason}); delete this folder yourself")


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    if os.name == "nt" and path.is_dir():  # which Windows cannot open
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def parse_json(text: str | bytes) -> Any:
    """What JSON text states; any mistake is a `ValueError`, also nesting that is too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal (about 1 GB/s)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_on_disk(path: Path) -> Path:
    """The archive for a path through a zip archive, else `path` itself."""
    return next((parent for parent in path.parents if parent.is_file()), path)


@contextmanager
def open_packed(path: Path, suffixes: tuple[str, ...]) -> Iterator[BufferedReader]:
    """The bytes of a file, which may be gzipped or in a zip archive, whatever its suffix.

    A path goes on through the archive, as in `all.zip/train.json`; the archive's own path will do
    if it has one file with one of the `suffixes`. An error while reading in the block is a
    `DataError` too.
    """
    on_disk = file_on_disk(path)
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(on_disk.open("rb"))
            if file.peek(4).startswith(_ZIP):
                archive = stack.enter_context(zipfile.ZipFile(file))
                name = _member(archive.namelist(), on_disk, path, suffixes)
                file = stack.enter_context(archive.open(name))
            elif on_disk != path:
                raise zipfile.BadZipFile(f"{on_disk} is not a zip archive")
            if file.peek(2).startswith(_GZIP):
                file = stack.enter_context(gzip.open(file))
            yield file
    # RuntimeError: an encrypted member; its subclass NotImplementedError: an unknown compression.
    except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path}: damaged or incomplete ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _member(members: list[str], archive: Path, path: Path, suffixes: tuple[str, ...]) -> str:
    """The member that `path` means: the whole name, or the end of only one."""
    wanted = path.relative_to(archive).as_posix()
    listed = [name for name in members if not name.startswith("__MACOSX/")]
    names = [name for name in listed if name.removesuffix(".gz").endswith(suffixes)]
    if wanted in names:
        return wanted
    found = [name for name in names if wanted == "." or name.endswith(f"/{wanted}")]
    if len(found) != 1:
        raise DataError(
            f"{path}: {len(found) or 'no'} such files in the archive, expected one that ends in "
            f"{' or '.join(suffixes)}, as in {archive / 'NAME'}; it contains {shorten(listed)}"
        )
    return found[0]


def lock_file(path: Path, *, wait: bool = False) -> FileLock | None:
    """The lock on the file `path`, held until it is released or the process ends, however it ends.

    None if another process holds it, unless `wait`. Child processes do not inherit it. On a file
    system without locks, a warning is printed and nothing is locked.
    """
    path.touch()
    # The mode that the umask gave: some versions of filelock would set their own.
    lock = FileLock(path, fallback_to_soft=False, mode=stat.S_IMODE(path.stat().st_mode))
    try:
        lock.acquire(timeout=-1 if wait else 0.2)  # `is_locked` holds it for a moment
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        without_locks = (None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
        if getattr(error, "errno", None) not in without_locks:
            raise
        warning = "this file system has no locks; do not run two processes on it at once"
        message(f"warning: {path}: {warning}")
    return lock


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock on `path`; None if that cannot be known. Writes nothing."""
    try:
        import fcntl  # which Windows has not

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return None
    return False
