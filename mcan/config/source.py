"""YAML text -> a tree of entries, each of which knows where it was stated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from mcan.config.dialect import SCALARS, TAG, Loader
from mcan.config.messages import COMMAND_LINE, Place, dotted, mistake, show

Value: TypeAlias = "dict[str, Entry] | list[Entry] | str | int | float | bool | None"
Keys: TypeAlias = tuple[str | int, ...]

_LARGEST = 10_000
"""Values in one text, an alias counted wherever it is used: far above any config."""


@dataclass(frozen=True)
class Entry:
    """A value and where it was stated: for a value in a mapping, the place of its key."""

    value: Value
    place: Place

    def plain(self) -> Any:
        """The value alone, as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def along(self, keys: Keys) -> list[Entry]:
        """This entry and those below it on the way of `keys`, as far as they are stated."""
        found = [self]
        for key in keys:
            value = found[-1].value
            below: Any = dict(enumerate(value)) if isinstance(value, list) else value
            if not isinstance(below, dict) or key not in below:
                break
            found.append(below[key])
        return found


def entry_of(value: Any, place: Place, keys: Keys = ()) -> Entry:
    """The tree of dicts, lists and scalars that all stand at `place`.

    Raises `ConfigError` for a key that is not text.
    """
    if isinstance(value, dict):
        items = ((_text_key(key, place, keys), item) for key, item in value.items())
        return Entry({key: entry_of(item, place, (*keys, key)) for key, item in items}, place)
    if isinstance(value, (list, tuple)):
        return Entry([entry_of(item, place, (*keys, i)) for i, item in enumerate(value)], place)
    return Entry(value, place)


def parse(text: str, place: Place, keys: Keys = ()) -> Entry:
    """The tree of a YAML text that is the file at `place`, or an override's value of `keys`.

    Raises `ConfigError` for malformed YAML, tags that are not of YAML's core schema, keys that are
    repeated or not text, and aliases that contain themselves or multiply without bound.
    """
    prefix = f"{dotted(keys)} is not valid YAML" if keys else "not valid YAML"
    try:
        node = yaml.compose(text, Loader=Loader)
        return Entry(None, place) if node is None else _Reader(place).read(node, place, keys)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = f"U+{ord(text[error.position]):04X}"
        raise mistake(
            _on_line(place, line), f"{prefix}: the character {code} is not allowed"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        line_place = _on_line(place, mark.line + 1) if mark else place
        raise mistake(line_place, f"{prefix}: {reason}") from None
    except RecursionError:
        reason = "nested too deeply, or an alias that contains itself"
        raise mistake(place, f"{prefix}: {reason}") from None


@dataclass
class _Reader:
    """Turns nodes into entries and counts them, since aliases let a short text grow enormous."""

    source: Place
    count: int = 0

    def read(self, node: yaml.Node, place: Place, keys: Keys) -> Entry:
        self.count += 1
        if self.count > _LARGEST:
            raise mistake(
                self.source, f"more than {_LARGEST} values, counting each use of an alias"
            )
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return Entry(dict(self._items(node, keys)), place)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            items = enumerate(node.value)
            return Entry([self.read(item, self._at(item), (*keys, i)) for i, item in items], place)
        if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
            return Entry(self._scalar(node, keys), place)
        raise mistake(self._at(node), f"{dotted(keys)} has the tag {node.tag}, which is not known")

    def _items(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, Entry]]:
        first: dict[str, Place] = {}
        for key_node, value_node in node.value:
            place = self._at(key_node)
            key = _text_key(self.read(key_node, place, keys).plain(), place, keys)
            if key in first:
                where = f", first in line {line}" if (line := first[key].line) else ""
                raise mistake(place, f"{dotted((*keys, key))} is stated twice{where}")
            first[key] = place
            yield key, self.read(value_node, place, (*keys, key))

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Value:
        kind = SCALARS[node.tag]
        try:
            if kind.pattern.match(node.value):
                value: Value = kind.read(node.value)
                return value
        except ValueError:  # more digits than Python turns into a number
            pass
        name = node.tag.removeprefix(TAG)
        raise mistake(self._at(node), f"{dotted(keys)} is {show(node.value)}, which is no {name}")

    def _at(self, node: yaml.Node) -> Place:
        return _on_line(self.source, node.start_mark.line + 1)


def _on_line(place: Place, line: int) -> Place:
    return place if place == COMMAND_LINE else Place(place.file, line)


def _text_key(key: Any, place: Place, keys: Keys) -> str:
    if not isinstance(key, str):
        raise mistake(place, f"{dotted(keys)} has the key {show(key)}; keys must be text")
    return key
