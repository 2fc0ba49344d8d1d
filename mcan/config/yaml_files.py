"""What YAML files and the command line state, and where: reading, merging, writing.

The dialect is the core schema of YAML 1.2.2 (section 10.3.2) on PyYAML's parser. PyYAML alone
follows YAML 1.1, in which `1e-4` is text and `no` is false.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import yaml

from mcan.console import expand_home
from mcan.errors import ConfigError
from mcan.section import Section, inner_sections, show

Keys: TypeAlias = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
MOST_ALIASES = 20
"""In a YAML file: aliases of aliases can stand for billions of values."""


class Place(NamedTuple):
    """Where a value was stated; `line` counts from 1 and is None outside YAML files."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def on_line(self, line: int) -> Place:
        return self if self == COMMAND_LINE else Place(self.file, line)


COMMAND_LINE = Place("command line")


def config_error(place: Place, sentence: str) -> ConfigError:
    """The error `place: sentence`, on one line whatever the user's text holds."""
    text = f"{place}: {sentence}"
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return ConfigError("".join(printable))


def dotted(keys: Keys) -> str:
    """`("a", "b", 0)` as `a.b[0]`."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key[:60]}" for key in keys)
    return "".join(parts).removeprefix(".") or "the config"


class Key(str):
    """A key of a mapping that knows where it was stated; plain text everywhere else."""

    place: Place

    def __new__(cls, text: str, place: Place) -> Key:
        key = super().__new__(cls, text)
        key.place = place
        return key


def along(stated: Any, keys: Keys, place: Place) -> list[tuple[Any, Place]]:
    """What is stated at each of `keys`, as far as it goes, after `stated` itself at `place`."""
    found = [(stated, place)]
    for key in keys:
        value, place = found[-1]
        if isinstance(value, dict) and key in value:
            own = next(each for each in value if each == key)
        elif isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            own = next(iter(value[key]), None) if isinstance(value[key], dict) else None
        else:
            break
        found.append((value[key], getattr(own, "place", place)))
    return found


class _Loader(yaml.SafeLoader):
    """YAML 1.2 into dicts with `Key`s, lists and scalars; other tags are errors."""

    source: Place
    yaml_implicit_resolvers = {}  # noqa: RUF012 (those of YAML 1.1)
    yaml_constructors = {None: yaml.SafeLoader.construct_undefined}  # noqa: RUF012

    construct_yaml_seq: Any = yaml.SafeLoader.construct_sequence

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=True)
        except (KeyError, ValueError):
            kind = node.tag.removeprefix(_TAG)
            raise _problem(node, f"{show(node.value)} is not a valid {kind}") from None

    def construct_yaml_map(self, node: yaml.MappingNode) -> Any:
        pairs: dict[Key, Any] = {}
        for key_node, value_node in node.value:
            text = self.construct_object(key_node)
            if not isinstance(text, str):
                raise _problem(key_node, f"the key {show(text)} is not text")
            if text in pairs:
                raise _problem(key_node, f"the key {show(text)} is stated twice")
            place = self.source.on_line(key_node.start_mark.line + 1)
            pairs[Key(text, place)] = self.construct_object(value_node)
        return pairs

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        return expand_home(text) if text.startswith("~/") else text  # a path

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))  # 010 is ten


def _problem(node: yaml.Node, reason: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else."""


_SCALARS = {
    "null": "null|Null|NULL|~|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for _tag, _pattern in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _tag, re.compile(rf"(?:{_pattern})\Z"), None)
for _tag in (*_SCALARS, "str", "map", "seq"):
    _Loader.add_constructor(_TAG + _tag, getattr(_Loader, f"construct_yaml_{_tag}"))
_Dumper.add_representer(  # other quotes lose line breaks such as U+0085
    str, lambda d, text: d.represent_scalar(f"{_TAG}str", text, None if text.isprintable() else '"')
)


def to_yaml(data: dict[str, Any]) -> str:
    """Dicts, lists and scalars as YAML, in their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def parse(text: str, place: Place, keys: Keys = ()) -> Any:
    """What the file at `place` states, or the value of `keys` on the command line."""
    try:
        loader = _Loader(text)
        loader.source = place
        aliases = sum(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        if aliases > MOST_ALIASES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_ALIASES} aliases")
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:
        place = place.on_line(text.count("\n", 0, error.position) + 1)
        reason = f"the character U+{ord(text[error.position]):04X} is not allowed"
    except yaml.MarkedYAMLError as error:
        if mark := error.problem_mark or error.context_mark:
            place = place.on_line(mark.line + 1)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
    except RecursionError:
        reason = "nested too deeply"
    what = f"{dotted(keys)} is not valid YAML" if keys else "not valid YAML"
    raise config_error(place, f"{what}: {reason}")


def merge(below: Any, above: Any, section: type[Section] | None = None, keys: Keys = ()) -> Any:
    """`above` laid over `below`: mappings merge key by key, everything else is replaced.

    `section` is what they state, at `keys`. An inner section of several kinds starts again if
    `above` states another `name`. Leaving a section empty is an error unless it can be null.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    merged = {key: value for key, value in below.items() if key not in above}
    for key, value in above.items():
        lower, path = below.get(key), (*keys, key)
        field = section.model_fields.get(key) if section else None
        inner = inner_sections(field.annotation) if field else []
        if field and inner and isinstance(lower, dict):
            if value is None and type(None) not in get_args(field.annotation):
                reason = "is empty, which would drop what it inherits; leave the key out"
                raise config_error(key.place, f"{dotted(path)} {reason}")
            if len(inner) > 1 and isinstance(value, dict):
                kind = lower.get("name", field.default.name)
                lower = lower if value.get("name", kind) == kind else {}
        merged[key] = merge(lower, value, inner[0] if len(inner) == 1 else None, path)
    return merged


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """What texts of the form `a.b=value` state."""
    layer: dict[str, Any] = {}
    for text in overrides:
        left, equals, right = text.partition("=")
        keys = tuple(left.strip().split("."))
        if not equals or not all(keys):
            form = "write key=value, such as train.epochs=5"
            raise config_error(COMMAND_LINE, f"{show(text)} is not an override; {form}")
        value = parse(right, COMMAND_LINE, keys)
        for key in reversed(keys):
            value = {Key(key, COMMAND_LINE): value}
        layer = merge(layer, value)
    return layer


def read_file(
    path: Path, section: type[Section], named: Place | None = None, above: Sequence[str] = ()
) -> dict[str, Any]:
    """What a YAML file states as a `section`, over what the files of its `_base_` state.

    `named` is where a file states `path` as its base; `above` are the files that led to it.
    """
    place = Place(os.path.normpath(path))
    if place.file in above:
        circle = " -> ".join([*above[above.index(place.file) :], place.file])
        raise config_error(named or place, f"_base_ goes in a circle: {circle}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        what = f"_base_ names {place}, which" if named else "the file"
        reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise config_error(named or place, f"{what} {reason}") from None
    stated = parse(text, place)
    stated = {} if stated is None else stated
    if not isinstance(stated, dict):
        raise config_error(place, f"the file is {show(stated)}; it must be a mapping")
    where = along(stated, ("_base_",), place)[-1][1]
    bases = stated.pop("_base_", [])
    paths = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in paths):
        allowed = "a path or a list of paths, relative to this file"
        raise config_error(where, f"_base_ is {show(bases)}; it must be {allowed}")
    above = [*above, place.file]
    layers = [read_file(path.parent / base, section, where, above) for base in paths]
    merged: dict[str, Any] = {}
    for layer in [*layers, stated]:
        merged = merge(merged, layer, section)
    return merged
