"""Files, overrides and dicts -> `Config`, and back to YAML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcan.config.dialect import to_yaml
from mcan.config.explain import explain
from mcan.config.layers import merge, parse_overrides, read_layers
from mcan.config.messages import Place
from mcan.config.reference import choices
from mcan.config.schema import Config
from mcan.config.source import Entry, Keys, entry_of


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file, with its bases below it and `key=value` overrides above it.

    Raises `ConfigError`: one sentence of file, line, key, what was found and what is allowed.
    """
    return _validated(merge(read_layers(Path(path)), parse_overrides(overrides), choices()))


def config_from_dict(data: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """The config of plain data, such as a checkpoint's, with `key=value` overrides above it.

    `where` names the source of the data in errors.

    Raises `ConfigError` as `load_config` does.
    """
    stated = entry_of(data, Place(where))
    if overrides:
        stated = merge(stated, parse_overrides(overrides), choices())
    return _validated(stated)


def dump_config(config: Config) -> str:
    """YAML text of every key, which `load_config` reads back as an equal config."""
    return to_yaml(config.model_dump(mode="json"))


def _validated(stated: Entry) -> Config:
    complete = _with_kinds(stated)
    try:
        return Config.model_validate(complete.plain())
    except ValidationError as error:
        raise explain(error, complete) from None


def _with_kinds(entry: Entry, keys: Keys = ()) -> Entry:
    """States the kind of sections of several kinds that leave it out: the default."""
    if not isinstance(entry.value, dict):
        return entry
    items = {key: _with_kinds(item, (*keys, key)) for key, item in entry.value.items()}
    choice = choices().get(keys)
    if choice and choice.default is not None:
        items.setdefault(choice.key, Entry(choice.default, entry.place))
    return Entry(items, entry.place)
