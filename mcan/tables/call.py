"""What a command changes of a table: how that is told, and which folder the table goes to then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcan.config import load_config
from mcan.config.layers import parse_overrides
from mcan.tables.plan import PlannedRun
from mcan.tables.spec import Table


@dataclass(frozen=True)
class Call:
    """`--base`, `--set` and `--seeds`, which hold for every row."""

    base: Path | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None

    @classmethod
    def of(cls, base: Path | None, overrides: Sequence[str], seeds: Sequence[int] | None) -> Call:
        """The same for arguments of the same effect, whatever their order.

        Raises `ConfigError` for an override that is not `key=value`.
        """
        held = in_force(overrides)
        ordered = tuple(sorted(held, key=lambda text: text.partition("=")[0]))
        same = parse_overrides(ordered) == parse_overrides(held)
        chosen = None if seeds is None else tuple(sorted(set(seeds)))
        return cls(base, ordered if same else held, chosen)

    @property
    def told(self) -> str:
        """`on CONFIG with key=value and seeds 0, 1`; empty where nothing is changed."""
        changes = [" ".join(self.overrides)] if self.overrides else []
        if self.seeds is not None:
            numbers = ", ".join(map(str, self.seeds))
            changes.append(f"seed{'' if len(self.seeds) == 1 else 's'} {numbers}")
        base = [] if self.base is None else [f"on {self.base}"]
        return " ".join([*base, f"with {' and '.join(changes)}"] if changes else base)


AS_STATED = Call()
"""Nothing is changed."""


def in_force(overrides: Sequence[str]) -> tuple[str, ...]:
    """Those that later ones do not replace, in their order."""
    held = list(overrides)
    whole = parse_overrides(held)
    for text in overrides:
        rest = held.copy()
        rest.remove(text)
        if parse_overrides(rest) == whole:
            held = rest
    return tuple(held)


def table_folder(table: Table, call: Call, runs: Sequence[PlannedRun], runs_folder: Path) -> Path:
    """Where the table of `runs` goes unless told otherwise; other runs never share the folder of a
    table that was called as its file states it.
    """
    name = table.name
    if call.base is not None:
        name += f"_{load_config(call.base, call.overrides).name}"
    if call.overrides or call.seeds is not None:
        names = sorted({f"{run.folder.name} {run.split}" for run in runs})
        name += f"-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
    return runs_folder / "tables" / name
