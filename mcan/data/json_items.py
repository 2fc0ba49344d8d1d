"""The entries of a list in a large JSON file, one after the other, in bounded memory.

A file may be plain, gzipped (.gz), or a member of a zip archive, which is never unpacked to disk:
its path goes on through the archive, as in `questions.zip/train.json`. An archive that holds a
single .json member needs no member name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

from mcan.errors import DataError
from mcan.progress import progress

_CHUNK = 1 << 20
# Far more than an entry needs; damage must not make the rest of the file one entry.
_LONGEST_VALUE = 1 << 26
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_items(path: Path, key: str | None = None) -> Iterator[Any]:
    """The entries of the list that the file is or, where it is an object, has at `key`.

    Raises `DataError`, which names the file, where it is missing, damaged, no JSON or has no such
    list, possibly after some entries, and for an empty list. Shows a progress bar.
    """
    empty = True
    for item in progress(_items(path, key), desc=path.name, unit=" entries", delay=1, leave=False):
        empty = False
        yield item
    if empty:
        raise DataError(f"{path}: {_the_list(key)} is empty")


def file_sha256(path: Path) -> str:
    """SHA-256, in hexadecimal, of the file on disk: of the archive for a member."""
    path = file_on_disk(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


def file_on_disk(path: Path) -> Path:
    """The archive for a path through a zip archive, else `path` itself."""
    inside = (parent for parent in path.parents if parent.suffix == ".zip" and parent.is_file())
    return next(inside, path)


def _items(path: Path, key: str | None) -> Iterator[Any]:
    with _reading(path), _open_text(path) as text:
        yield from _Reader(text).items(key)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not the JSON expected ({error.msg})") from None
    except RecursionError:
        raise DataError(f"{path}: not valid JSON (nested too deeply)") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not JSON (not UTF-8 text)") from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise DataError(f"{path}: damaged or incomplete ({error})") from None
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    # RuntimeError: an encrypted member; NotImplementedError: an unknown compression.
    except (EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{path}: damaged or incomplete ({error})") from None


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    with ExitStack() as stack:
        on_disk = file_on_disk(path)
        file: IO[bytes]
        if on_disk.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(on_disk))
            file = stack.enter_context(archive.open(_member(archive, on_disk, path)))
        elif path.suffix == ".gz":
            file = cast(IO[bytes], stack.enter_context(gzip.open(path)))
        else:
            file = stack.enter_context(path.open("rb"))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))


def _member(archive: zipfile.ZipFile, on_disk: Path, path: Path) -> str:
    wanted = path.relative_to(on_disk).as_posix()
    names = [
        name
        for name in archive.namelist()
        if name.endswith(".json") and not name.startswith("__MACOSX/")
    ]
    if wanted == ".":
        found = names
    else:
        exact = [name for name in names if name == wanted]
        found = exact or [name for name in names if name.endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0]
    if wanted == "." and found:
        raise DataError(
            f"{on_disk}: holds {len(names)} JSON files; say which, as in {on_disk / names[0]} "
            f"(it holds {', '.join(names)})"
        )
    about = "no JSON file" if wanted == "." else f"{len(found) or 'no'} {wanted}"
    raise DataError(f"{on_disk}: holds {about} (it holds {', '.join(archive.namelist())})")


def _the_list(key: str | None) -> str:
    return "the list" if key is None else f"the list '{key}'"


class _Reader:
    """Parses a text of which only a window is in memory."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._window = ""
        self._before = 0
        self._at = 0

    def items(self, key: str | None) -> Iterator[Any]:
        if self._take("[" if key is None else "[{") == "[":
            yield from self._list()
        else:
            yield from self._list_at(key)
        if self._peek():
            raise self._error("more text follows its end")

    def _list_at(self, key: str | None) -> Iterator[Any]:
        found = False
        closed = self._peek() == "}"
        while not closed:
            name = self._value()
            self._take(":")
            if name == key and self._peek() != "[":
                raise self._error(f"'{key}' is no list")
            if self._peek() == "[":
                self._take("[")
                for item in self._list():
                    if name == key:
                        yield item
            else:
                self._value()
            found = found or name == key
            closed = self._take(",}") == "}"
        if not found:
            raise self._error(f"it has no list '{key}'")

    def _list(self) -> Iterator[Any]:
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            yield self._value()
            if self._take(",]") == "]":
                return

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                too_long = len(self._window) - self._at > _LONGEST_VALUE
                if too_long or not self._extend():
                    raise self._error(error.msg, error.pos) from None
                continue
            # A number near the end of the window may go on: `1` may be the start of `1e-5`.
            if end + 2 < len(self._window) or not self._extend():
                self._at = end
                return value

    def _take(self, allowed: str) -> str:
        found = self._peek()
        if not found or found not in allowed:
            raise self._error(f"expected {' or '.join(allowed)}, found {found or 'the end'}")
        self._at += 1
        return found

    def _peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._window, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._extend():
                return ""

    def _extend(self) -> bool:
        """Drop what was read and read on, ever more for a long value; False at the end."""
        left = len(self._window) - self._at
        more = self._text.read(max(_CHUNK, left))
        if not more:
            return False
        self._before += self._at
        self._window, self._at = self._window[self._at :] + more, 0
        return True

    def _error(self, message: str, at: int | None = None) -> json.JSONDecodeError:
        where = self._before + (self._at if at is None else at)
        return json.JSONDecodeError(f"{message}; at character {where:,}", "", 0)
