"""Table files, and the runs that they need, each identified by its resolved config, not its row."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat

from mcan.config import (
    ADDED_KEYS,
    SCHEMA_VERSION,
    Config,
    flatten,
    free_keys,
    load_config,
    validate,
)
from mcan.config.yaml_files import Place, along, config_error, parse_overrides, read_file, to_yaml
from mcan.errors import ConfigError
from mcan.evaluation.metrics import METRICS
from mcan.section import OneOf, Section, show

RUNS = Path("runs/reproduce")
OVERALL = "overall"
"""The column over all questions."""
_SET_BY_TABLE = ("name", "runs", "seed")
_DATA_KEYS = {"data.prepared", "data.images", "data.grid", "model.question.word_vectors.path"}
"""Free keys, since data may move; but a row that states one of them means other data."""


class Evaluated(Section):
    """What a row takes from its table, unless it states its own."""

    base: str
    """Config file, from the working directory (in the file: from the table file's folder)."""
    split: str
    """Split evaluated."""
    submission: bool = False
    """The split has no answers here: the run writes a submission, and a server scores it."""
    verified: bool
    """The published values were checked against their source; false marks them with a dagger."""


class Plot(Section):
    """Lines: `row.series` against `row.x`, one panel per column."""

    x: str
    """Label of the x axis."""


class Row(Evaluated):
    """A line of the table: how a config differs from the base, and what was published for it."""

    name: str
    """Unique in the table."""
    overrides: tuple[str, ...] = ()
    """`key=value`, as train.py takes them."""
    published: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Published values by column, in percent."""
    runs: bool = True
    """False for results of others, shown for comparison."""
    series: str | None = None
    """Line of the plot that the row is a point of."""
    x: FiniteFloat | None = None
    """Its position on the x axis."""


class TableFile(Evaluated):
    """What a table file states, its rows expanded and completed."""

    model_config = ConfigDict(title="Table")

    title: str
    """Heading."""
    source: str
    """Where the published values come from."""
    dataset: str
    """Dataset of the published values, as its `meta.json` names it."""
    metric: Annotated[str, OneOf(METRICS)] | None = None
    """Metric of the published values. Runs are scored by it too, except with --base."""
    columns: tuple[str, ...] = Field(min_length=1)
    """`overall`, an answer type, or the dotted key of any number in `metrics.json`."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Each row is run with each seed."""
    plot: Plot | None = None
    """Null plots one marker per row."""
    rows: tuple[Row, ...] = Field(min_length=1)
    """In the order of the table."""


class Table(TableFile):
    """A table file that was read from `path`."""

    path: Path


def load_table(path: str | os.PathLike[str]) -> Table:
    """The table that a YAML file states, over those that its `_base_` names.

    A row with `for: {L: [1, 2]}` stands for one row per combination, with `{L}` replaced in its
    texts.
    """
    path = Path(path)
    place = Place(os.path.normpath(path))
    stated = dict(_with_base(read_file(path, TableFile), place))
    if isinstance(stated.get("rows"), list):
        stated["rows"] = _complete_rows(stated, place)
    table = validate(stated, place, TableFile)
    _check(table, stated, place)
    return Table(path=path, **dict(table))


def _complete_rows(table: dict[str, Any], file: Place) -> list[Any]:
    """One entry per row: `for` expanded, bases found, the table's keys filled in."""
    shared = {key: table[key] for key in Evaluated.model_fields if key in table}
    items = []
    for number, template in enumerate(table["rows"]):
        place = along(table, ("rows", number), file)[-1][1]
        for row in _expand(template, f"rows[{number}]", place):
            own = _with_base(row, place) if isinstance(row, dict) else {}
            # The row's own keys come first: they say where it is stated.
            items.append(own | shared | own if own else row)
    return items


def _with_base(section: dict[str, Any], place: Place) -> dict[str, Any]:
    """`section` with its base from the working directory, instead of from the file's folder."""
    base = section.get("base")
    if not isinstance(base, str):
        return section
    folder = Path(along(section, ("base",), place)[-1][1].file).parent
    path = os.path.normpath(folder / base)
    return {key: path if key == "base" else value for key, value in section.items()}


def _expand(row: Any, where: str, place: Place) -> Iterator[Any]:
    """The rows that a row with `for` stands for; any other row as it is."""
    if not isinstance(row, dict) or "for" not in row:
        yield row
        return
    lists = row["for"]
    if not isinstance(lists, dict) or not all(isinstance(v, list) for v in lists.values()):
        allowed = "a mapping of names to lists of values, such as {L: [1, 2]}"
        raise config_error(place, f"{where}.for is {show(lists)}; it must be {allowed}")
    rest = {key: item for key, item in row.items() if key != "for"}
    for values in itertools.product(*lists.values()):
        yield _replace(rest, dict(zip(lists, values, strict=True)))


def _replace(stated: Any, values: dict[str, Any]) -> Any:
    """`stated` with `{L}` replaced in its texts; a text that is `{L}` alone becomes the value."""
    if isinstance(stated, dict):
        return {key: _replace(item, values) for key, item in stated.items()}
    if isinstance(stated, list):
        return [_replace(item, values) for item in stated]
    if not isinstance(stated, str):
        return stated
    for name, value in values.items():
        if stated == f"{{{name}}}":
            return value
        stated = stated.replace(f"{{{name}}}", str(value))
    return stated


def _check(table: TableFile, stated: dict[str, Any], file: Place) -> None:
    """What types cannot express: unique columns and rows, published values of known columns."""
    names = [row.name for row in table.rows]
    if len(set(table.columns)) < len(table.columns):
        place = along(stated, ("columns",), file)[-1][1]
        raise config_error(place, f"columns states one twice: {', '.join(table.columns)}")
    for number, row in enumerate(table.rows):
        place = along(stated, ("rows", number), file)[-1][1]
        if row.name in names[:number]:
            raise config_error(place, f"there are two rows named {show(row.name)}")
        for column in row.published:
            if column not in table.columns:
                known = f"the columns are {', '.join(table.columns)}"
                reason = f"row {show(row.name)}: published has {show(column)}; {known}"
                raise config_error(place, reason)


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
    added = {key for key, value in ADDED_KEYS.items() if keys.get(key) == value}
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
