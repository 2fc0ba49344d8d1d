"""What values a key allows, in words, and what is wrong with a stated config in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from pydantic import ValidationError

from mcan.config.yaml_files import COMMAND_LINE, Keys, Place, along, config_error, dotted
from mcan.errors import ConfigError
from mcan.section import Section, inner_sections, show, walk

Node: TypeAlias = Mapping[str, Any]  # the JSON schema of a key

_TYPES = {"string": "text", "integer": "a whole number", "number": "a number"}
_TYPES |= {"boolean": "true or false"}
_BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above"}
_BOUNDS |= {"maximum": "at most", "exclusiveMaximum": "below"}


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
    others = {path[-1]: dotted(path) for path, _ in walk(section) if path[:-1] != above}
    near = get_close_matches(key, own, 1)
    near = near or [others[n] for n in get_close_matches(key, others, 1, cutoff=0.8)]
    title = (section.model_config.get("title") or section.__name__).lower()
    where = dotted(above) if above else f"the {title}"
    kind = f" with name: {holder.kind()}" if holder.kind() else ""
    hint = f"did you mean {near[0]}?" if near else f"its keys are {', '.join(own)}"
    return f"{where}{kind}; {hint}"
