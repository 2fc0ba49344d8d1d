"""What pydantic found wrong -> one sentence of place, key, what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from mcan.config.messages import COMMAND_LINE, Place, dotted, mistake, show
from mcan.config.reference import Node, describe, lookup, resolve, root, walk
from mcan.config.schema import Config
from mcan.config.section import ContradictionError, Section
from mcan.config.source import Entry, Keys
from mcan.errors import ConfigError

_UNKNOWN = "extra_forbidden"


def explain(error: ValidationError, stated: Entry, section: type[Section] = Config) -> ConfigError:
    """The first problem of `stated` as a `section`, and how many more there are.

    Unknown keys come first: a misspelt key is often the reason why another one is missing.
    """
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == _UNKNOWN), problems[0])
    place, sentence = _explain(first, stated, root(section))
    more = len(problems) - 1
    return mistake(place, sentence + (f" (and {more} more)" if more else ""))


def _explain(problem: Mapping[str, Any], stated: Entry, whole: Node) -> tuple[Place, str]:
    keys, node = lookup(problem["loc"], whole)
    contradiction = problem.get("ctx", {}).get("error")
    if isinstance(contradiction, ContradictionError):
        return _contradiction(contradiction, keys, stated)
    if problem["type"] == _UNKNOWN:
        return _place(stated, keys), _unknown(keys, problem["loc"][:-1], whole)
    if problem["type"] == "missing" and isinstance(keys[-1], str):
        return _place(stated, keys), f"{dotted(keys)} is missing; it must be {describe(node)}"
    if problem["type"] == "missing":  # a list that is too short
        keys, node = lookup(problem["loc"][:-1], whole)
    if problem["type"] == "union_tag_invalid":
        choice = node["discriminator"]
        keys, node = (*keys, choice["propertyName"]), {"enum": list(choice["mapping"])}
    found = stated.along(keys)[-1]
    return found.place, f"{dotted(keys)} is {_mismatch(found.plain(), node)}"


def _mismatch(found: Any, node: Node) -> str:
    sentence = f"{show(found)}; it must be {describe(node)}"
    node = resolve(node)
    if isinstance(found, str) and "enum" in node:
        return sentence + _suggestion(get_close_matches(found, map(str, node["enum"]), 1))
    if node.get("type") == "string" and "enum" not in node and isinstance(found, (int, float)):
        return f"{sentence}, so write it in quotes"
    return sentence


def _unknown(keys: Keys, location: Keys, whole: Node) -> str:
    """The last of `keys` was looked for at `location`; a name alike elsewhere is next best."""
    key, known = str(keys[-1]), resolve(lookup(location, whole)[1])["properties"]
    elsewhere = {path[-1]: dotted(path) for path, _ in walk(whole) if path[:-1] != keys[:-1]}
    near = get_close_matches(key, known, 1) or [
        elsewhere[name] for name in get_close_matches(key, elsewhere, 1, cutoff=0.8)
    ]
    kinds = [f" with {name}: {child['const']}" for name, child in known.items() if "const" in child]
    hint = _suggestion(near) or f"; its keys are {', '.join(known)}"
    section = dotted(keys[:-1]) if keys[:-1] else f"the {whole['title'].lower()}"
    return f"{dotted(keys)} is not a key of {section}{''.join(kinds)}{hint}"


def _suggestion(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""


def _contradiction(
    contradiction: ContradictionError, section: Keys, stated: Entry
) -> tuple[Place, str]:
    """Placed at the field stated last: on the command line, else in the file, else in a base."""
    fields = [(*section, *field.split(".")) for field in contradiction.fields]
    places = [
        entries[-1].place for keys in fields if len(entries := stated.along(keys)) > len(keys)
    ]
    order = (COMMAND_LINE.file, stated.place.file)
    places.sort(key=lambda place: order.index(place.file) if place.file in order else len(order))
    prefix = f"{dotted(section)}." if section else ""
    return places[0] if places else _place(stated, section), contradiction.told(prefix)


def _place(stated: Entry, keys: Keys) -> Place:
    return stated.along(keys)[-1].place
