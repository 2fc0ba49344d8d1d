"""Layers of a config, the later over the earlier: bases, the file itself, the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcan.config.messages import COMMAND_LINE, Place, dotted, mistake, show
from mcan.config.reference import Choice, choices
from mcan.config.source import Entry, Keys, parse

_BASE = "_base_"


def merge(base: Entry, over: Entry, choices: Mapping[Keys, Choice], keys: Keys = ()) -> Entry:
    """`over` laid over `base`: mappings merge key by key, everything else is replaced.

    A section of several kinds (`choices`, by path) is replaced as a whole where `over` states
    another kind, since the keys of the one mean nothing to the other.
    """
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    choice = choices.get(keys)
    if choice and choice.key in over.value and kind(over, choice) != kind(base, choice):
        return over
    merged = dict(base.value)
    for key, entry in over.value.items():
        below = base.value.get(key)
        merged[key] = merge(below, entry, choices, (*keys, key)) if below else entry
    # A key that the section still lacks is to be added to a file, not to the command line.
    return Entry(merged, base.place if over.place == COMMAND_LINE else over.place)


def kind(section: Entry, choice: Choice) -> Any:
    """The kind that a section of several kinds states, or the default."""
    stated = section.along((choice.key,))[1:]
    return stated[0].plain() if stated else choice.default


def parse_overrides(overrides: Sequence[str]) -> Entry:
    """The layer of the command line: `a.b=value` each, with a YAML value; the last of a key counts.

    Raises `ConfigError` for text that is not of this form.
    """
    layer = Entry({}, COMMAND_LINE)
    for override in overrides:
        left, equals, right = override.partition("=")
        keys = tuple(left.strip().split("."))
        if not equals or not all(keys):
            form = "write key=value, such as train.epochs=5"
            raise mistake(COMMAND_LINE, f"{show(override)} is not an override; {form}")
        if any(re.fullmatch(r"-?\d+", key) for key in keys):
            reason = "items of a list cannot be set one by one; give the whole list, as key=[a, b]"
            raise mistake(COMMAND_LINE, f"{dotted(keys)}: {reason}")
        entry = parse(right, COMMAND_LINE, keys)
        for key in reversed(keys):
            entry = Entry({key: entry}, COMMAND_LINE)
        layer = merge(layer, entry, {})
    return layer


def read_layers(file: Path) -> Entry:
    """The config that `file` states, over that of its bases.

    Raises `ConfigError` for a file or base that cannot be read, is not YAML or no mapping, and for
    bases that form a cycle.
    """
    return _read(file, None, {}, {})


def _read(file: Path, named: Place | None, above: dict[str, str], done: dict[str, Entry]) -> Entry:
    """`named` is where a file states `file` as its base; `above` are the files on the way to it.

    `done` saves reading a base again that several files share. Both go by the file's real path.
    """
    name = os.path.normpath(file)
    text = _text(file, named)
    identity = os.path.realpath(file)
    if identity in above:
        files = list(above)
        circle = [*list(above.values())[files.index(identity) :], name]
        raise mistake(named or Place(name), f"{_BASE} goes in a circle: {' -> '.join(circle)}")
    if identity not in done:
        own = parse(text, Place(name))
        stated = {} if own.value is None else own.value
        if not isinstance(stated, dict):
            raise mistake(own.place, f"the file is {show(own.plain())}; it must be a mapping")
        merged = Entry({}, own.place)
        for base in _bases(stated.get(_BASE)):
            path = file.parent / str(base.value)
            layer = _read(path, base.place, {**above, identity: name}, done)
            merged = merge(merged, layer, choices())
        rest = {key: entry for key, entry in stated.items() if key != _BASE}
        done[identity] = merge(merged, Entry(rest, own.place), choices())
    return done[identity]


def _bases(stated: Entry | None) -> list[Entry]:
    if stated is None:
        return []
    bases = stated.value if isinstance(stated.value, list) else [stated]
    if not all(isinstance(base.value, str) for base in bases):
        allowed = "a path or a list of paths, relative to this file"
        raise mistake(stated.place, f"{_BASE} is {show(stated.plain())}; it must be {allowed}")
    return bases


def _text(file: Path, named: Place | None) -> str:
    name = os.path.normpath(file)
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = f"0x{error.object[error.start]:02x}"
        raise mistake(Place(name, line), f"the file is not UTF-8 text (byte {byte})") from None
    except FileNotFoundError:
        reason = "does not exist"
    except IsADirectoryError:
        reason = "is a folder, not a YAML file"
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if named:
        raise mistake(named, f"{_BASE} names {name}, which {reason}")
    raise mistake(Place(name), f"the file {reason}")
