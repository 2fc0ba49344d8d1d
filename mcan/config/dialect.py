"""The YAML of configs: the core schema of YAML 1.2.2 (section 10.3.2), read and written by PyYAML.

PyYAML alone follows YAML 1.1, where `1e-4` is text, `no` is false and `2024-01-01` is a date.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml

TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """Composes nodes; its resolvers are those of `SCALARS` alone."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's way to state them)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else; lists on one line."""


class Scalar(NamedTuple):
    """One scalar type: what its text looks like, how it may begin, how it is read."""

    pattern: re.Pattern[str]
    first: list[str]
    read: Callable[[str], Any]


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", text.lower()))


def _boolean(text: str) -> bool:
    return text.lower() == "true"


def _scalar(pattern: str, first: str, read: Callable[[str], Any]) -> Scalar:
    return Scalar(re.compile(rf"(?:{pattern})\Z"), list(first), read)


SCALARS = {
    f"{TAG}null": _scalar("null|Null|NULL|~|", "nN~", lambda _: None),
    f"{TAG}bool": _scalar("true|True|TRUE|false|False|FALSE", "tTfF", _boolean),
    f"{TAG}int": _scalar("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", _integer),
    f"{TAG}float": _scalar(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        _float,
    ),
    f"{TAG}str": _scalar(r"[\s\S]*", "", str),
}

for _tag, _type in SCALARS.items():
    if _type.first:
        # PyYAML files resolvers by the first character; that of empty text is "".
        _first = [*_type.first, ""] if _type.pattern.match("") else _type.first
        Loader.add_implicit_resolver(_tag, _type.pattern, _first)
        _Dumper.add_implicit_resolver(_tag, _type.pattern, _first)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Other quotes do not keep line breaks such as U+0085 in PyYAML.
    return dumper.represent_scalar(f"{TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence(f"{TAG}seq", items, flow_style=True)
)


def to_yaml(data: dict[str, Any]) -> str:
    """YAML text of dicts, lists and scalars, in their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
