"""Table files: what a table shows, which runs it needs, and the values published for them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, FiniteFloat

from mcan.config import validate
from mcan.config.yaml_files import Place, along, config_error, read_file
from mcan.evaluation.metrics import METRICS
from mcan.section import OneOf, Section, show

OVERALL = "overall"
"""The column over all questions."""


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
