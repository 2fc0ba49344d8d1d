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
from collections import Counter
from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from mcan.console import progress
from mcan.data.arrays import Id
from mcan.errors import DataError, shorten
from mcan.files import open_packed

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_LISTS = ("data", "questions", "annotations", "records", "rows")
Item = TypeVar("Item")


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
    """The items of the JSON list that the file is or, if it is an object, has at `key`.

    Raises `DataError`, which names the file, if it is missing, damaged, not JSON or without such a
    list, possibly after some items, and for an empty list. Shows a progress bar.
    """
    with open_packed(path, (".json",)) as file:
        items = _JsonReader(_text(file)).items(key)
        yield from _checked(path, items, "JSON", f"the list '{key}'" if key else "the list")


def read_rows(path: Path) -> Iterator[tuple[int | str, Any]]:
    """The records of a file of any kind, with the number of each from 0, or its key.

    Its content says the kind. Parquet, where columns of bytes (images) are empty objects. JSON: a
    list; objects one after the other (JSON lines); an object with one list of objects (streamed if
    at a key of `_LISTS`); an object of objects, whose keys may be ids. Else a table of text whose
    first line names the columns, separated by one of tab , ; |; empty lines are skipped.
    Errors and progress as for `read_items`.
    """
    with open_packed(
        path, (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
    ) as file:
        first = file.peek(1 << 12)
        rows: Iterator[tuple[int | str, Any]]
        if first.startswith(b"PAR1"):
            kind, rows = "Parquet", _parquet_rows(path, file)
        elif first.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"[", b"{"):
            kind, rows = "JSON", _JsonReader(_text(file)).records()
        else:
            kind, rows = "table", _table_rows(_text(file))
        yield from _checked(path, rows, kind, "the list of records")


def _text(file: BufferedReader) -> io.TextIOWrapper:
    """UTF-8, or the UTF-16 of spreadsheets."""
    utf_16 = file.peek(2).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return io.TextIOWrapper(file, "utf-16" if utf_16 else "utf-8-sig", newline="")


def _checked(path: Path, items: Iterator[Item], kind: str, name: str) -> Iterator[Item]:
    empty = True
    try:
        for item in progress(items, desc=path.name, unit=" entries", delay=1, leave=False):
            empty = False
            yield item
    # ValueError: not JSON, not UTF-8, or a number of thousands of digits.
    except (ValueError, RecursionError, csv.Error) as error:
        hint = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise DataError(f"{path}: not the {kind} expected ({error}{hint})") from None
    if empty:
        raise DataError(f"{path}: {name} is empty or missing")


def _table_rows(text: TextIO) -> Iterator[tuple[int, dict[str, str]]]:
    first = text.readline()
    csv.field_size_limit(2**31 - 1)
    delimiter = max("\t,;|", key=first.count)
    lines = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
    header = [name.strip() for name in next(lines, [])]
    twice = [name for name, count in Counter(filter(None, header)).items() if count > 1]
    if twice:
        raise ValueError(f"the first line names {shorten(twice)} more than once")
    number = 0
    for cells in lines:
        if any(cells):
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if len(cells) != len(header):
                raise ValueError(
                    f"line {lines.line_num} has {len(cells)} cells, the first line {len(header)}; "
                    "a text with separators or line breaks needs quotes"
                )
            yield number, dict(zip(header, cells, strict=True))
            number += 1


def _parquet_rows(path: Path, file: BufferedReader) -> Iterator[tuple[int, dict[str, Any]]]:
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
    number = 0
    for batch in table.iter_batches(1 << 12, columns=kept):
        for row in batch.to_pylist():
            yield number, images | row
            number += 1


def read_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """The objects of a JSON list; see `read_items`."""
    for number, value in enumerate(read_items(path, key)):
        yield Record(path, number, value)


class Record:
    """A JSON object with checked access; its errors name the file, the entry and the question."""

    __slots__ = ("_fields", "path", "place")

    def __init__(self, path: Path, place: int | str, value: Any) -> None:
        self.path = path
        self.place = place
        if not isinstance(value, dict):
            raise DataError(f"{path}: entry {place} is {value!r:.60}, expected an object")
        self._fields = value

    def error(self, text: str) -> DataError:
        known = self._fields.get("question_id")
        about = f" (question {known!r})" if isinstance(known, (int, str)) else ""
        return DataError(f"{self.path}: entry {self.place}{about}: {text}")

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        """A field; `a.b` is field b of the object a."""
        value: Any = self._fields
        for part in [name] if name in value else name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise self.error(f"'{name}' is missing")
            value = value[part]
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default`, if given, stands in for a missing field."""
        value = self.get(name) if default is None else self._fields.get(name, default)
        if not isinstance(value, str):
            raise self.error(f"'{name}' is {value!r:.60}, expected text")
        return value

    def id(self, name: str, earlier: Id | None = None) -> Id:
        """An integer or a string, of the same type as an `earlier` one."""
        try:
            return check_id(self.get(name), f"'{name}'", earlier)
        except ValueError as error:
            raise self.error(str(error)) from None


def _are_objects(values: Collection[Any]) -> bool:
    return len(values) > 0 and all(isinstance(value, dict) for value in values)


class _JsonReader:
    """Decodes a text value by value, with only a window of it in memory."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._window = ""
        self._before = 0
        """Characters of the text before the window."""
        self._at = 0

    def items(self, key: str | None) -> Iterator[Any]:
        is_object = key is not None and self._peek() == "{"
        yield from self._list_at(key) if is_object else self._list()
        if self._peek():
            raise self._error("more text follows its end")

    def records(self) -> Iterator[tuple[int | str, Any]]:
        if self._peek() == "[":
            yield from enumerate(self._list())
            if self._peek():
                raise self._error("more text follows its end")
        line = 0
        while self._peek():
            yield from self._record(line)
            line += 1

    def _record(self, line: int) -> Iterator[tuple[int | str, Any]]:
        """An object: a record itself, or one that holds the records."""
        fields: dict[str, Any] = {}
        listed = False
        for _ in self._entries("{", "}"):
            name = self._value()
            self._take(":")
            if name in _LISTS and self._peek() == "[":
                listed = True
                yield from enumerate(self._list())
            else:
                fields[name] = self._value()
        lists = [v for v in fields.values() if isinstance(v, list) and _are_objects(v)]
        if listed:
            return
        if _are_objects(fields.values()):
            yield from fields.items()
        elif line == 0 and len(lists) == 1 and not self._peek():
            yield from enumerate(lists[0])
        else:
            yield line, fields

    def _list_at(self, key: str | None) -> Iterator[Any]:
        for _ in self._entries("{", "}"):
            name = self._value()
            self._take(":")
            if self._peek() == "[":
                # Also a list at another key is read item by item: it may be large.
                for item in self._list():
                    if name == key:
                        yield item
            else:
                self._value()

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
