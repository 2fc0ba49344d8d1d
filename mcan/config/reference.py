"""What the schema says of each key, for messages and documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from mcan.config.schema import Config
from mcan.config.section import Section

Node: TypeAlias = dict[str, Any]
"""A JSON schema, in which references are the schemas that they refer to."""


class Choice(NamedTuple):
    """A section of several kinds: the key that names its kind, and the kind it has by default."""

    key: str
    default: str | None


@cache
def root(section: type[Section] = Config) -> Node:
    """The whole schema of a section, such as the config."""
    schema = section.model_json_schema()
    linked: Node = _link(schema, schema.get("$defs", {}))
    return linked


def _link(node: Any, definitions: Node) -> Any:
    if isinstance(node, list):
        return [_link(item, definitions) for item in node]
    if isinstance(node, dict):
        return {key: _link(item, definitions) for key, item in node.items() if key != "$defs"}
    if isinstance(node, str) and node.startswith("#/$defs/"):
        return _link(definitions[node.removeprefix("#/$defs/")], definitions)
    return node


def resolve(node: Node) -> Node:
    """`node` without its null alternative, a reference replaced by what it refers to."""
    for alternative in node.get("anyOf", ()):
        if alternative.get("type") != "null":
            node = alternative
    referred: Node = node.get("$ref", node)
    return referred


def kinds(node: Node) -> dict[str | None, Node]:
    """The sections that `node` may be, by kind; one of kind None; none where it is a value."""
    node = resolve(node)
    if "discriminator" in node:
        mapping: dict[str | None, Node] = node["discriminator"]["mapping"]
        return dict(mapping)
    return {None: node} if "properties" in node else {}


def walk(
    node: Node | None = None, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every key of the config, as a path, and its schema: a section before what is in it."""
    for section in kinds(root() if node is None else node).values():
        for key, child in section["properties"].items():
            yield (*keys, key), child
            yield from walk(child, (*keys, key))


@cache
def choices() -> dict[tuple[str | int, ...], Choice]:
    """The sections of several kinds, by path."""
    return {
        keys: Choice(key, node.get("default", {}).get(key))
        for keys, node in walk()
        if (key := node.get("discriminator", {}).get("propertyName"))
    }


def lookup(location: Sequence[str | int], node: Node) -> tuple[tuple[str | int, ...], Node]:
    """The path and schema below `node` of a pydantic error location, which also holds kinds of
    sections.

    The schema of a key that does not exist is empty.
    """
    keys: list[str | int] = []
    for part in location:
        sections = kinds(node)
        if part in sections:
            node = sections[str(part)]
            continue
        keys.append(part)
        node = resolve(node)
        if isinstance(part, int):
            node = node["prefixItems"][part] if "prefixItems" in node else node.get("items", {})
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return tuple(keys), node


def describe(node: Node) -> str:
    """What values `node` allows, in words that follow "it must be"."""
    nullable = any(alternative.get("type") == "null" for alternative in node.get("anyOf", ()))
    return _describe(resolve(node)) + (", or null" if nullable else "")


def _describe(node: Node) -> str:
    if "enum" in node or "const" in node:
        *others, last = map(str, node.get("enum") or [node["const"]])
        return f"{', '.join(others)} or {last}" if others else last
    if "discriminator" in node:
        names = _describe({"enum": list(node["discriminator"]["mapping"])})
        return f"a mapping with {node['discriminator']['propertyName']}: {names}"
    if node["type"] == "array":
        return f"a list{_count(node)}, each {describe(node.get('items') or node['prefixItems'][0])}"
    words = {
        "object": "a mapping",
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
    }
    pattern = f" that matches `{node['pattern']}`" if "pattern" in node else ""
    return words[node["type"]] + pattern + _range(node)


def _range(node: Node) -> str:
    bounds = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    # Bounds of numbers are 0 or 0.0, as the version of pydantic has it.
    stated = [
        f"{words} {node[bound] if node[bound] % 1 else int(node[bound])}"
        for bound, words in bounds.items()
        if bound in node
    ]
    return " " + " and ".join(stated) if stated else ""


def _count(node: Node) -> str:
    least, most = node.get("minItems", 0), node.get("maxItems")
    if most is not None:
        return f" of {most} items"
    return f" of at least {least} item{'s' * (least > 1)}" if least else ""
