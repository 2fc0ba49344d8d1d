"""What YAML files and the command line state, where, and what is wrong with it.

The dialect is the core schema of YAML 1.2.2 (section 10.3.2) on PyYAML's parser. PyYAML alone
follows YAML 1.1, in which `1e-4` is text and `no` is false.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import yaml
from pydantic import ValidationError

from mcan.console import expand_home, one_line
from mcan.errors import ConfigError
from mcan.section import Section, inner_sections, show, walk

Keys: TypeAlias = tuple[str | int, ...]
Node: TypeAlias = Mapping[str, Any]  # the JSON schema of a key

_TAG = "tag:yaml.org,2002:"
MOST_ALIASES = 20
"""In a YAML file: aliases of aliases can stand for billions of values."""
_TYPES = {"string": "text", "integer": "a whole number", "number": "a number"}
_TYPES |= {"boolean": "true or false"}
_BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above"}
_BOUNDS |= {"maximum": "at most", "exclusiveMaximum": "below"}


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
    """The error `place: sentence`, with the line breaks of the user's text escaped."""
    return ConfigError(one_line(f"{place}: {sentence}"))


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
        if (path / "config.yaml").is_file():
            reason = f"is a run folder; give {path / 'config.yaml'}"
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


def describe(node: Node) -> str:
    """What values `node` allows, in words that follow "it must be"."""
    if (inner := not_null(node)) is not node:
        return f"{describe(inner)}, or null"
    if "discriminator" in node:
        return f"a mapping with name: {_alternatives(list(node['discriminator']['mapping']))}"
    if "enum" in node or "const" in node:
        return _alternatives(node.get("enum") or [node["const"]])
    if node.get("type") == "array":
        least, most = node.get("minItems", 0), node.get("maxItems")
        count = f" of at least {least} item{'s' * (least > 1)}" if least else ""
        count = count if most is None else f" of {most} items"
        return f"a list{count}, each {describe(_item(node, 0))}"
    limits = [f"{text} {node[bound]:.15g}" for bound, text in _BOUNDS.items() if bound in node]
    words = [_TYPES.get(node.get("type", ""), "a mapping"), " and ".join(limits)]
    words += [f"that matches `{node['pattern']}`"] if "pattern" in node else []
    return " ".join(filter(None, words))


def _alternatives(names: Sequence[Any]) -> str:
    *others, last = (name if isinstance(name, str) else show(name) for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def not_null(node: Node) -> Node:
    """`node` without its null alternative."""
    rest: list[Node] = [part for part in node.get("anyOf", ()) if part.get("type") != "null"]
    return rest[0] if rest else node


def _item(node: Node, index: int) -> Node:
    item: Node = node["prefixItems"][index] if "prefixItems" in node else node.get("items", {})
    return item


def explain(
    error: ValidationError, stated: Any, file: Place, section: type[Section]
) -> ConfigError:
    """The first problem of what `file` states as a `section`, and how many more there are.

    Unknown keys come first: a misspelt key is often the reason why another one is missing.
    """
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    cause, (keys, holder, node) = problem["type"], _locate(problem["loc"], section)
    if cause == "union_tag_invalid":
        keys, node = (*keys, "name"), {"enum": list(node["discriminator"]["mapping"])}
    value, place = along(stated, keys, file)[-1]
    name = dotted(keys)
    if cause == "value_error":  # fields that exclude each other, as `key=value`
        message = str(problem["ctx"]["error"])
        fields = [(*keys, *key.split(".")) for key in re.findall(r"([\w.]+)=", message)]
        chains = [(field, along(stated, field, file)) for field in fields]
        places = [chain[-1][1] for field, chain in chains if len(chain) > len(field)]
        order = {COMMAND_LINE.file: 0, file.file: 1}  # bases last
        place = min(places, key=lambda place: order.get(place.file, 2), default=place)
        sentence = f"{name}: {message}" if keys else message
    elif cause == "extra_forbidden":
        sentence = f"{name} is not a key of {_nearest(keys, holder, section)}"
    elif cause == "missing":
        if place == COMMAND_LINE:  # which states a part of the section
            place = Place(f"{file} and the command line")
        sentence = f"{name} is missing; it must be {describe(node)}"
    else:
        sentence = f"{name} is {show(value)}; it must be {describe(node)}"
        if node.get("type") == "string" and isinstance(value, int | float):
            sentence += ", so write it in quotes"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return config_error(place, sentence + more)


def _locate(location: Keys, section: type[Section]) -> tuple[Keys, type[Section], Node]:
    """The keys of a pydantic location, the section that holds the last one, and its schema."""
    keys: Keys = ()
    node: Node = {}
    holder, inner = section, [section]
    for part in location:
        if len(inner) > 1:  # pydantic puts the kind of a section behind its key
            inner = [each for each in inner if each.kind() == part]
            continue
        keys = (*keys, part)
        if isinstance(part, int):
            node = _item(not_null(node), part)
        elif inner:
            holder = inner[0]
            field = holder.model_fields.get(part)
            node = holder.model_json_schema()["properties"].get(part, {})
            inner = inner_sections(field.annotation) if field else []
        else:
            node = node.get("additionalProperties", {})
    return keys, holder, node


def _nearest(keys: Keys, holder: type[Section], section: type[Section]) -> str:
    """The section of an unknown key, and the nearest key there, else elsewhere, else all keys."""
    own, above, key = list(holder.model_fields), keys[:-1], str(keys[-1])
    deep_first = sorted((path for path, _ in walk(section)), key=len, reverse=True)
    others = {path[-1]: dotted(path) for path in deep_first if path[:-1] != above}
    near = get_close_matches(key, own, 1)
    near = near or [others[n] for n in get_close_matches(key, others, 1, cutoff=0.8)]
    title = (section.model_config.get("title") or section.__name__).lower()
    where = dotted(above) if above else f"the {title}"
    kind = f" with name: {holder.kind()}" if holder.kind() else ""
    hint = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(own)}"
    return f"{where}{kind}; {hint}"
