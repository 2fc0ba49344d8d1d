"""Typed configs: `load_config` reads YAML with bases and overrides, `dump_config` writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mcan.config.schema import ADDED_KEYS as ADDED_KEYS
from mcan.config.schema import SCHEMA_VERSION as SCHEMA_VERSION
from mcan.config.schema import Config as Config
from mcan.config.yaml_files import Place, explain, merge, parse_overrides, read_file, to_yaml
from mcan.section import FREE, Section, walk

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file, with its bases below it and `key=value` overrides above it.

    Raises `ConfigError`: one line of file, line, key, what was found and what is allowed.
    """
    return config_from_dict(read_file(Path(path), Config), os.path.normpath(path), overrides)


def config_from_dict(data: Any, where: str, overrides: Sequence[str] = ()) -> Config:
    """The config of plain data, such as a checkpoint's, with `key=value` overrides above it.

    `where` names the source of the data in errors. Raises `ConfigError` as `load_config` does.
    """
    if isinstance(data, dict):
        data = merge(data, parse_overrides(overrides), Config)
    return validate(data, Place(where), Config)


def validate(stated: Any, place: Place, section: type[AnySection]) -> AnySection:
    """What the file at `place` states, as a section; raises `ConfigError` as `load_config` does."""
    try:
        return section.model_validate(stated)
    except ValidationError as error:
        raise explain(error, stated, place, section) from None


def dump_config(config: Config) -> str:
    """YAML text of every key, which `load_config` reads back as an equal config."""
    return to_yaml(config.model_dump(mode="json"))


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def free_keys() -> frozenset[str]:
    """The dotted keys that a run may change without becoming another run (`mcan.section.FREE`)."""
    return frozenset(
        ".".join(path)
        for path, section in walk(Config)
        if FREE in section.model_fields[path[-1]].metadata
    )
