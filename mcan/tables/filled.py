"""Figures that an evaluation server gave for a table's submissions, kept beside the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from mcan.errors import ConfigError, RunError
from mcan.files import save_text
from mcan.tables.spec import Table

Filled: TypeAlias = dict[str, dict[str, float]]
"""Row name -> column -> percent."""


def read_filled(folder: Path) -> Filled:
    """What was filled in so far; nothing without a file. Raises `RunError` for a damaged one."""
    path = _path(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or not all(map(_is_figures, content.values())):
        raise RunError(f"{path}: expected rows with figures by column, as --fill writes them")
    return content


def fill(folder: Path, table: Table, texts: Sequence[str]) -> Filled:
    """Add `ROW=70.63` (the first column) and `ROW:COLUMN=86.82` to what is kept in `folder`.

    Raises `ConfigError` for an unknown row or column and for a figure that is no percentage;
    nothing is written then.
    """
    filled = read_filled(folder)
    for text in texts:
        row, column, figure = _parse(table, text)
        filled.setdefault(row, {})[column] = figure
    save_text(_path(folder), json.dumps(filled, indent=2, ensure_ascii=False) + "\n")
    return filled


def _parse(table: Table, text: str) -> tuple[str, str, float]:
    target, _, figure = text.rpartition("=")
    rows = [row.name for row in table.rows if row.runs]
    # Names may hold colons themselves.
    row, column = (target, table.columns[0]) if target in rows else _split(target)
    if row not in rows:
        raise ConfigError(
            f"--fill {text!r}: {table.path} has no row to fill named {row!r}; there is {rows}"
        )
    if column not in table.columns:
        raise ConfigError(
            f"--fill {text!r}: {table.path} has no column {column!r}; there is "
            f"{', '.join(table.columns)}"
        )
    try:
        value = float(figure)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ConfigError(f"--fill {text!r}: {figure!r} is no percentage")
    return row, column, value


def _split(target: str) -> tuple[str, str]:
    row, colon, column = target.rpartition(":")
    return (row, column) if colon else (column, "")


def _is_figures(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values())


def _path(folder: Path) -> Path:
    return folder / "filled.json"
