"""The records of a list in a large JSON file, one after the other, in bounded memory.

A file may be plain, gzipped or in an archive; see `mcan.files.open_packed`.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
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
    """The items of the list that the file is or, if it is an object, has at `key`.

    Raises `DataError`, which names the file, if it is missing, damaged, not JSON or without such a
    list, possibly after some items, and for an empty list. Shows a progress bar.
    """
    empty = True
    with open_packed(path, (".json",)) as file:
        items = _JsonReader(io.TextIOWrapper(file, "utf-8-sig", newline="")).items(key)
        try:
            for item in progress(items, desc=path.name, unit=" entries", delay=1, leave=False):
                empty = False
                yield item
        # ValueError: not JSON, not UTF-8, or a number of thousands of digits.
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not the JSON expected ({error})") from None
    if empty:
        name = f"the list '{key}'" if key else "the list"
        raise DataError(f"{path}: {name} is empty or missing")


def read_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """The objects of a JSON list; see `read_items`."""
    for number, value in enumerate(read_items(path, key)):
        yield Record(path, number, value)


class Record:
    """A JSON object with checked access; its errors name the file, the entry and the question."""

    __slots__ = ("_fields", "_path", "_place")

    def __init__(self, path: Path, place: int | str, value: Any) -> None:
        self._path = path
        self._place = place
        if not isinstance(value, dict):
            raise DataError(f"{path}: entry {place} is {value!r:.60}, expected an object")
        self._fields = value

    def error(self, text: str) -> DataError:
        known = self._fields.get("question_id")
        about = f" (question {known!r})" if isinstance(known, (int, str)) else ""
        return DataError(f"{self._path}: entry {self._place}{about}: {text}")

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        if name not in self._fields:
            raise self.error(f"'{name}' is missing")
        return self._fields[name]

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

    def answers(self) -> tuple[str, ...]:
        """The strings of the field `answers`, a list of at least one {"answer"}."""
        value = self.get("answers")
        try:
            answers = tuple([sys.intern(item["answer"]) for item in value])
        except (TypeError, LookupError):
            answers = ()
        if not answers:
            raise self.error(
                f"'answers' is {value!r:.60}, expected a list of at least one {{\"answer\": text}}"
            )
        return answers


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
