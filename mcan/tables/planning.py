"""The runs that a table needs. A run is identified by its resolved config, not by its row."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from mcan.config import ADDED_KEYS, SCHEMA_VERSION, Config, flatten, free_keys, load_config
from mcan.config.yaml_files import parse_overrides, to_yaml
from mcan.errors import ConfigError
from mcan.tables.spec import Row, Table

RUNS = Path("runs/reproduce")
_SET_BY_TABLE = ("name", "runs", "seed")
_DATA_KEYS = {"data.prepared", "data.images", "data.grid", "model.question.word_vectors.path"}
"""Free keys, since data may move; but a row that states one of them means other data."""


@dataclass(frozen=True)
class CommandOptions:
    """`--base`, `--set`, `--seeds` and `--runs`, which hold for every row."""

    base: Path | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    runs: Path = RUNS

    @property
    def description(self) -> str:
        """The options as they are typed, without `--runs`; empty if nothing is changed."""
        base = [] if self.base is None else ["--base", str(self.base)]
        changes = ["--set", *self.overrides] if self.overrides else []
        seeds = [] if self.seeds is None else ["--seeds", *map(str, self.seeds)]
        return shlex.join([*base, *changes, *seeds])


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed.

    `python train.py BASE *overrides` trains it into `folder`; `config` is what that resolves to.
    Rows of equal configs share a folder. It is evaluated on `split`; with `submission`, its answers
    are written for a server instead.
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

    @property
    def outcome_path(self) -> Path:
        """Where the outcome is, or will be."""
        return self.folder / f"outcome_{self.split}.json"

    @property
    def submission_path(self) -> Path:
        return self.folder / f"submission_{self.split}.json"

    @property
    def training(self) -> list[str]:
        """The command that trains it, after `python`."""
        return ["train.py", str(self.base), *self.overrides]

    @property
    def evaluation(self) -> list[str]:
        """The command that evaluates it, after `python`."""
        submission = ["--submission", str(self.submission_path)] if self.submission else []
        return ["eval.py", str(self.folder), "--split", self.split, *submission]


def distinct(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The first of those that share a run, in their order."""
    first: dict[Path, PlannedRun] = {}
    for run in runs:
        first.setdefault(run.outcome_path, run)
    return list(first.values())


def plan(
    table: Table, options: CommandOptions, rows: Collection[str] | None = None
) -> list[PlannedRun]:
    """The runs of a table, row by row, each with every seed.

    - `options.base` replaces the base of all rows; runs are then evaluated on its `data.evaluate`
      with its own metric;
    - `options.overrides` are laid over those of each row, `options.seeds` replace the table's;
    - `rows`: names of the rows wanted, None for all.
    """
    known = [row.name for row in table.rows if row.runs]
    if unknown := [name for name in rows or () if name not in known]:
        raise ConfigError(f"{table.path}: there is no run for a row {unknown[0]!r}; rows: {known}")
    own = next((row for row in table.rows if row.base != table.base), None)
    if options.base is not None and own is not None:
        raise ConfigError(
            f"{table.path}: --base {options.base} cannot replace the base of every row, since the "
            f"row {own.name!r} has its own ({own.base})"
        )
    seeds = dict.fromkeys(table.seeds if options.seeds is None else options.seeds)
    return [
        _plan_run(table, row, seed, options)
        for row in table.rows
        if row.runs and (rows is None or row.name in rows)
        for seed in seeds
    ]


def _plan_run(table: Table, row: Row, seed: int, options: CommandOptions) -> PlannedRun:
    base = Path(row.base) if options.base is None else options.base
    scored = [] if options.base or table.metric is None else [f"evaluation.metric={table.metric}"]
    folder = to_yaml({"runs": str(options.runs)}).strip().replace(": ", "=", 1)
    overrides = (*scored, *row.overrides, *options.overrides, f"seed={seed}", folder)
    try:
        stated = parse_overrides([*row.overrides, *options.overrides])
        config = load_config(base, overrides)
    except ConfigError as error:
        load_config(base, options.overrides)  # an error of the file or of --set is reported as such
        reason = str(error).removeprefix("command line: ")
        raise ConfigError(f"{table.path}: row {row.name!r}: {reason}") from None
    if own := stated.keys() & _SET_BY_TABLE:
        raise ConfigError(
            f"{table.path}: {own.pop()} cannot be overridden: runs are named by their config, and "
            "their folder and seeds are chosen with --runs and --seeds"
        )
    split, submission = row.split, row.submission
    if options.base is not None:
        if config.data.evaluate is None:
            raise ConfigError(f"{base}: data.evaluate is null; --set data.evaluate=SPLIT")
        split, submission = config.data.evaluate, False
    name = f"{config.name}-{run_id(config, row)}"
    return PlannedRun(
        row=row,
        seed=seed,
        config=config.model_copy(update={"name": name}),
        folder=options.runs / name,
        base=base,
        overrides=(*overrides, f"name={name}"),
        split=split,
        submission=submission,
    )


def run_id(config: Config, row: Row) -> str:
    """12 digits that identify a run.

    SHA-256 over the schema's version and every key of the resolved config that the schema does not
    mark as free; so defaults count, and a changed one makes another run. A path of data counts if
    the row states it.
    """
    free = free_keys() - (flatten(parse_overrides(row.overrides)).keys() & _DATA_KEYS)
    keys = flatten(config.model_dump(mode="json"))
    added = {key for key, value in ADDED_KEYS.items() if keys[key] == value}
    content = {key: value for key, value in keys.items() if key not in free | added}
    text = json.dumps({"schema": SCHEMA_VERSION, "config": content}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def table_folder(table: Table, options: CommandOptions, runs: list[PlannedRun]) -> Path:
    """The default folder; with --base, --set or --seeds, it ends in a hash of the `runs`."""
    name = table.path.stem
    if options.description:
        names = sorted({f"{run.folder.name} {run.split}" for run in runs})
        name += f"-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"
    return options.runs / "tables" / name
