"""What a table file may leave unsaid is filled in: rows of a loop, what a row has of its table."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcan.config.messages import mistake, show
from mcan.config.source import Entry

_IN_BRACES = re.compile(r"\{(\w+)\}")
_SHARED = ("base", "split", "submission", "verified")
"""What a row has of its table, unless it states its own."""


def complete(stated: Entry) -> Entry:
    """The table that a file states, every row by itself and complete.

    - A row with `for: {L: [1, 2]}` becomes a row per combination, `{L}` replaced in its texts;
    - rows have base, split, submission and verified of the table, unless they state their own;
    - bases, stated from the folder of their file, become paths from the working directory.

    Raises `ConfigError` for a malformed loop, for `{L}` without one, and for a base that does not
    exist.
    """
    table = dict(stated.value) if isinstance(stated.value, dict) else {}
    if isinstance(entry := table.get("base"), Entry):
        table["base"] = _base(entry)
    table.setdefault("submission", Entry(False, stated.place))
    rows = table.get("rows")
    if rows is not None and isinstance(rows.value, list):
        shared = {key: table[key] for key in _SHARED if key in table}
        items = [
            _completed(row, shared)
            for number, template in enumerate(rows.value)
            for row in _expanded(template, number)
        ]
        table["rows"] = Entry(items, rows.place)
    return Entry(table, stated.place)


def _completed(row: Entry, shared: dict[str, Entry]) -> Entry:
    if not isinstance(row.value, dict):
        return row
    own = dict(row.value)
    if "base" in own:
        own["base"] = _base(own["base"])
    return Entry({**shared, **own}, row.place)


def _base(stated: Entry) -> Entry:
    if not isinstance(stated.value, str):
        return stated
    base = os.path.normpath(Path(stated.place.file).parent / stated.value)
    if not Path(base).is_file():
        raise mistake(stated.place, f"base names {base}, which does not exist")
    return Entry(base, stated.place)


def _expanded(row: Entry, number: int) -> Iterator[Entry]:
    """The rows that a row with `for` stands for; any other row as it is."""
    where = f"rows[{number}]"
    if not isinstance(row.value, dict) or "for" not in row.value:
        yield _filled(row, {}, where)
        return
    loops = row.value["for"]
    lists = loops.value
    if not isinstance(lists, dict) or not lists or not all(map(_values, lists.values())):
        allowed = "a mapping of names to lists of values, such as {L: [1, 2]}"
        raise mistake(loops.place, f"{where}.for is {show(loops.plain())}; it must be {allowed}")
    if "published" in row.value:
        reason = f"{where} has `for`; state figures in rows of their own"
        raise mistake(row.value["published"].place, f"{reason}, without `for`")
    rest = Entry({key: item for key, item in row.value.items() if key != "for"}, row.place)
    for values in itertools.product(*map(_values, lists.values())):
        yield _filled(rest, dict(zip(lists, values, strict=True)), where)


def _values(entry: Entry) -> list[Any]:
    """The scalars of a list; none where it is anything else."""
    items = entry.plain() if isinstance(entry.value, list) else []
    return [] if any(isinstance(item, (list, dict)) for item in items) else items


def _filled(entry: Entry, values: dict[str, Any], where: str) -> Entry:
    """`entry` with `{L}` replaced in its texts; a text that is `{L}` alone becomes the value."""
    value = entry.value
    if isinstance(value, dict):
        items = {key: _filled(item, values, where) for key, item in value.items()}
        return Entry(items, entry.place)
    if isinstance(value, list):
        return Entry([_filled(item, values, where) for item in value], entry.place)
    if not isinstance(value, str):
        return entry
    for name in _IN_BRACES.findall(value):
        if name not in values:
            given = f"its `for` gives {', '.join(values)}" if values else "the row has no `for`"
            raise mistake(entry.place, f"{where} has {{{name}}} in {show(value)}, but {given}")
    if alone := _IN_BRACES.fullmatch(value):
        return Entry(values[alone[1]], entry.place)
    return Entry(_IN_BRACES.sub(lambda match: str(values[match[1]]), value), entry.place)
