"""A table -> the runs that it consists of. A run's identity is its resolved config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcan.config import Config, load_config
from mcan.config.messages import COMMAND_LINE
from mcan.config.source import parse
from mcan.errors import ConfigError
from mcan.tables.spec import PLANNED_KEYS, Row, Table

RUNS = Path("runs/reproduce")


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed.

    `python train.py BASE *overrides` trains it into `folder`; `config` is what that resolves to.
    Rows of equal configs share a folder. It is evaluated on `split`, or predicted for a server with
    `submission`.
    """

    row: Row
    seed: int
    config: Config
    folder: Path
    base: Path
    overrides: tuple[str, ...]
    split: str
    submission: bool

    @property
    def title(self) -> str:
        return f"{self.row.name}, seed {self.seed}"


def counted_runs(number: int) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} run{'' if number == 1 else 's'}"


def plan(
    table: Table,
    base: Path | None = None,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    rows: Collection[str] | None = None,
    runs_folder: Path = RUNS,
) -> list[PlannedRun]:
    """The runs of a table, row by row, each with every seed.

    - `base`: another config file for all rows; runs are then evaluated on its `data.evaluate`;
    - `overrides`: laid over those of each row;
    - `seeds`: instead of the table's; `rows`: names of the rows wanted, None for all.

    Raises `ConfigError`: an unknown row, a config that does not resolve, `base` where rows have one
    of their own, or an override of a key that the plan sets.
    """
    _check_rows(table, base, rows)
    refuse_own_keys(overrides, "--set")
    wanted = [row for row in table.rows if row.runs and (rows is None or row.name in rows)]
    return [
        _planned(table, row, seed, base, overrides, runs_folder)
        for row in wanted
        for seed in dict.fromkeys(table.seeds if seeds is None else seeds)
    ]


def refuse_own_keys(overrides: Sequence[str], where: str) -> None:
    """Raise `ConfigError` for a key that is the plan's to set: `name`, `runs` or `seed`."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in PLANNED_KEYS:
            raise ConfigError(
                f"{where}: {override} cannot be set; runs are named by their config, and their "
                "folder and seeds are chosen with --runs and --seeds"
            )


def _check_rows(table: Table, base: Path | None, rows: Collection[str] | None) -> None:
    known = [row.name for row in table.rows if row.runs]
    for name in rows or ():
        if name not in known:
            raise ConfigError(f"{table.path}: no row to run is named {name!r}; there is {known}")
    own = next((row for row in table.rows if row.base != table.base), None)
    if base is not None and own is not None:
        raise ConfigError(
            f"{table.path}: the row {own.name!r} has a base of its own ({own.base}), so --base "
            f"{base} cannot take the place of all"
        )


def _planned(
    table: Table, row: Row, seed: int, base: Path | None, added: Sequence[str], runs_folder: Path
) -> PlannedRun:
    file = Path(row.base) if base is None else base
    overrides = (*row.overrides, *added, f"seed={seed}", f"runs={_yaml_text(str(runs_folder))}")
    config = _resolve(table, row, file, overrides, added)
    split, submission = row.split, row.submission
    if base is not None:
        if config.data.evaluate is None:
            raise ConfigError(f"{base}: data.evaluate is null; --set data.evaluate=SPLIT")
        split, submission = config.data.evaluate, False
    name = f"{config.name}-{_digest(config)}"
    return PlannedRun(
        row=row,
        seed=seed,
        config=config.model_copy(update={"name": name}),
        folder=runs_folder / name,
        base=file,
        overrides=(*overrides, f"name={name}"),
        split=split,
        submission=submission,
    )


def _resolve(
    table: Table, row: Row, file: Path, overrides: Sequence[str], added: Sequence[str]
) -> Config:
    try:
        return load_config(file, overrides)
    except ConfigError as error:
        load_config(file, added)  # the mistake of the file or of --set is told as theirs
        reason = f": {str(error).removeprefix('command line: ')}"
        key, missing, _ = reason.removeprefix(": ").partition(" is missing;")
        if missing:
            reason = f" needs {key}, which {file} does not state; choose a base that does"
        raise ConfigError(f"{table.path}: row {row.name!r}{reason}") from None


def _digest(config: Config) -> str:
    """Of what differs from the defaults, so that a key added later leaves runs what they are.

    So the default of a key that changes results has to stay; another one needs another key.
    """
    content = config.model_dump(mode="json", exclude={"name", "runs"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _yaml_text(text: str) -> str:
    """`text` as an override's value that is read back as text: plain, or else quoted."""
    try:
        plain = parse(text, COMMAND_LINE).value == text
    except ConfigError:
        plain = False
    return text if plain else json.dumps(text)
