"""The records of a large file (JSON, CSV, TSV, Parquet), one after the other, in bounded memory.

A file may be plain, compressed or in an archive; see `mcan.files.open_packed`.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mcan.console import progress
from mcan.data.arrays import Id
from mcan.errors import DataError
from mcan.files import open_packed

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_LISTS = ("data", "questions", "annotations")


def check_id(value: object, what: str, earlier: Id | None) -> Id:
    """`value` as int or str; `ValueError` if it cannot be stored together with an `earlier` id."""
    if isinstance(value, np.integer):
        value = int(value)
    text = value.encode("utf-8", "replace") if isinstance(value, str) else b""
    is_text = 0 < len(text) <= 255 and b"\0" not in text and text.decode() == value
    is_number = type(value) is int and -(2**63) <= value < 2**63
    if not (isinstance(value, (int, str)) and (is_text or is_number)):
        raise ValueError(
            f"{what} is {value!r:.60}, expected an integer of 64 bits, or text of 1 to 255 bytes"
        )
    if earlier is not None and type(earlier) is not type(value):
        raise ValueError(f"{what} is {value!r} while an earlier one is {earlier!r}; use one type")
    return value


def read_items(path: Path, key: str | None = None) -> Iterator[Any]:
    """The entries of a file of any kind; its content says which.

    - JSON: a list, an object with a list at `key` (None: at a well-known one), or objects one after
      the other (JSON lines);
    - Parquet, where columns of bytes (images) are empty objects;
    - a table of text: its first line names the columns, separated by one of tab, comma, semicolon.

    Raises `DataError`, which names the file, if it is missing, damaged or of no such kind, possibly
    after some entries, and if there is none. Shows a progress bar.
    """
    empty = True
    with open_packed(path, (".json", ".jsonl", ".csv", ".tsv", ".parquet")) as file:
        first = file.peek(1 << 12)
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        if first.startswith(b"PAR1"):
            kind, items = "Parquet", _parquet_rows(path, file)
        elif first.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith((b"[", b"{")):
            kind, items = "JSON", _JsonReader(text).items(_LISTS if key is None else (key,))
        else:
            kind, items = "table", _table_rows(text)
        try:
            for item in progress(items, desc=path.name, unit=" entries", delay=1, leave=False):
                empty = False
                yield item
        # ValueError: not JSON, not UTF-8, or a number of thousands of digits.
        except (ValueError, RecursionError, csv.Error) as error:
            raise DataError(f"{path}: not the {kind} expected ({error})") from None
    if empty:
        raise DataError(f"{path}: there are no entries")


class _TableRow(dict[str, str]):
    """A row of a table, and the line of the file that it begins in."""

    line: int


def _table_rows(text: TextIO) -> Iterator[_TableRow]:
    first = text.readline()
    delimiter = max("\t,;", key=first.count)
    rows = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
    names, before = next(rows, []), rows.line_num
    for cells in rows:
        line, before = before + 1, rows.line_num
        if any(cells):
            if len(cells) != len(names):
                raise ValueError(
                    f"line {line} has not as many cells as the first line; a text with separators "
                    "or line breaks needs quotes"
                )
            row = _TableRow(zip(names, cells, strict=True))
            row.line = line
            yield row


def _parquet_rows(path: Path, file: BufferedReader) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from None
    table = parquet.ParquetFile(file)
    leaves = [table.schema.column(index) for index in range(len(table.schema))]
    kept = [
        leaf.path
        for leaf in leaves
        if (leaf.physical_type, leaf.logical_type.type) != ("BYTE_ARRAY", "NONE")
    ]
    images: dict[str, Any] = {name: {} for name in table.schema_arrow.names}
    for batch in table.iter_batches(1 << 12, columns=kept):
        for row in batch.to_pylist():
            yield images | row


def read_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """The objects of a file; see `read_items`."""
    for number, value in enumerate(read_items(path, key)):
        where = f"line {value.line}" if isinstance(value, _TableRow) else f"entry {number}"
        yield Record(path, number, value, where)


class Record:
    """An object of a file with checked access; errors name file, line or entry, and question.

    `number` counts the objects of the file, from 0.
    """

    __slots__ = ("fields", "number", "path", "where")

    def __init__(self, path: Path, number: int, value: Any, where: str) -> None:
        self.path = path
        self.number = number
        self.where = where
        if not isinstance(value, dict):
            raise DataError(f"{path}: {where} is {value!r:.60}, expected an object")
        self.fields = value

    @property
    def name(self) -> str:
        """What is called after its place in a file: FILE/NUMBER."""
        return f"{self.path.stem}/{self.number}"

    def error(self, text: str) -> DataError:
        known = self.fields.get("question_id")
        about = f" (question {known!r})" if isinstance(known, (int, str)) else ""
        return DataError(f"{self.path}: {self.where}{about}: {text}")

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def get(self, name: str) -> Any:
        if name not in self.fields:
            raise self.error(f"'{name}' is missing")
        return self.fields[name]

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default`, if given, stands in for a missing field."""
        value = self.get(name) if default is None else self.fields.get(name, default)
        if not isinstance(value, str):
            raise self.error(f"'{name}' is {value!r:.60}, expected text")
        return value

    def id(self, name: str, earlier: Id | None = None) -> Id:
        """An integer or a string, of the same type as an `earlier` one."""
        try:
            return check_id(self.get(name), f"'{name}'", earlier)
        except ValueError as error:
            raise self.error(str(error)) from None


class _JsonReader:
    """Decodes a text value by value, with only a window of it in memory."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._window = ""
        self._before = 0
        """Characters of the text before the window."""
        self._at = 0

    def items(self, keys: Collection[str]) -> Iterator[Any]:
        """The values of a list, or of objects: those of a list at one of `keys`, or they."""
        if self._peek() == "[":
            yield from self._list()
            if self._peek():
                raise self._error("more text follows its end")
        while self._peek():
            fields: dict[str, Any] = {}
            listed = False
            for _ in self._entries("{", "}"):
                name = self._value()
                self._take(":")
                if name in keys and self._peek() == "[":
                    listed = True
                    yield from self._list()
                else:
                    fields[name] = self._value()
            if not listed:
                yield fields

    def _list(self) -> Iterator[Any]:
        for _ in self._entries("[", "]"):
            yield self._value()

    def _entries(self, opening: str, closing: str) -> Iterator[None]:
        """Yield before each entry of a list or object; the caller then reads the entry."""
        self._take(opening)
        found = "," if self._peek() != closing else self._take(closing)
        while found != closing:
            yield
            found = self._take(f",{closing}")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                if not self._extend():
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
        """The next character that is not white space; empty at the end."""
        while True:
            space = _SPACE.match(self._window, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._extend():
                return ""

    def _extend(self) -> bool:
        """Drop what was read and read on, more each time for a long value; False at the end."""
        left = len(self._window) - self._at
        more = self._text.read(max(_CHUNK, left))
        if not more:
            return False
        self._before += self._at
        self._window, self._at = self._window[self._at :] + more, 0
        return True

    def _error(self, message: str, at: int | None = None) -> ValueError:
        where = self._before + (self._at if at is None else at)
        return ValueError(f"{message}; at character {where:,}")
