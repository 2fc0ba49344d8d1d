"""How a mistake in a config is told: where it stands, and what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcan.errors import ConfigError

_LONGEST = 60
"""Characters of the user's own text that are quoted."""


@dataclass(frozen=True)
class Place:
    """Where a value was stated; `line` counts from 1 and is None outside YAML files."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


COMMAND_LINE = Place("command line")


def mistake(place: Place, sentence: str) -> ConfigError:
    """The error `place: sentence`, on one line whatever the user's text holds."""
    text = f"{place}: {sentence}"
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return ConfigError("".join(printable))


def show(value: Any) -> str:
    """`value` as YAML has it (strings in quotes), cut where it is long."""
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def dotted(keys: Sequence[str | int]) -> str:
    """`("a", "b", 0)` as `a.b[0]`."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{_cut(key)}" for key in keys)
    return "".join(parts).removeprefix(".") or "the config"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
