"""Table files: what a table shows, which runs that takes, and the figures published for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError, model_validator

from mcan.config.explain import explain
from mcan.config.layers import parse_overrides, read_layers
from mcan.config.messages import Place, mistake, show
from mcan.config.section import ContradictionError, PositiveFloat, PositiveInt, Section
from mcan.config.source import Entry
from mcan.errors import ConfigError
from mcan.tables.expansion import complete

Finite = Annotated[float, Field(allow_inf_nan=False)]
OVERALL = "overall"
"""The column over all questions."""
PLANNED_KEYS = ("name", "runs", "seed")
"""Keys of the config that are set for each run of a table, by what the run is."""


class Plot(Section):
    """Lines: `row.series` against `row.x`, one panel per column."""

    x: str
    """Label of the x axis."""


class Assumed(Section):
    """Sizes to reckon costs with where the data is not prepared; means over questions."""

    questions: dict[str, PositiveInt]
    """Number of questions of each split."""
    words: PositiveFloat
    """Words of a question, after it is cut."""
    regions: PositiveFloat
    """Regions of a question's image."""
    tokens: PositiveInt
    """Tokens of the vocabulary."""
    answers: PositiveInt
    """Answers of the vocabulary."""
    feature_size: PositiveInt
    """Width of a region's features."""


class Row(Section):
    """A line of the table: a config's difference from the base, and what was published for it."""

    name: str = Field(min_length=1)
    """Unique in the table."""
    overrides: tuple[str, ...] = ()
    """`key=value`, as train.py takes them."""
    base: str
    """Config file, from the working directory (in the file: from the table file's folder)."""
    split: str
    """Split evaluated."""
    submission: bool
    """The split has no answers here: the run writes a submission, a server tells the figures."""
    published: dict[str, Finite] = Field(default_factory=dict)
    """Figures by column, in percent."""
    verified: bool
    """The published figures were read at their source."""
    runs: bool = True
    """False for figures of others, to compare with."""
    series: str | None = None
    """Line of the plot that the row is a point of."""
    x: Finite | None = None
    """Where on the x axis."""

    @model_validator(mode="after")
    def _overrides_are_for_runs(self) -> Row:
        if self.overrides and not self.runs:
            raise ContradictionError(self, "{overrides} contradicts {runs}")
        return self


class TableFile(Section):
    """What a table file states, its rows expanded and completed."""

    model_config = ConfigDict(title="Table")

    title: str
    """Heading."""
    source: str
    """Where the published figures come from."""
    verified: bool
    """False gives them a dagger and a footnote."""
    dataset: str
    """Dataset of the published figures, as its `meta.json` names it."""
    base: str
    """Config file of the rows, from the working directory (in the file: from its folder)."""
    split: str
    """Split evaluated."""
    submission: bool = False
    """The split has no answers here."""
    columns: tuple[str, ...] = Field(min_length=1)
    """`overall`, answer types, or columns that are only published or filled in."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Each row is run with each seed."""
    plot: Plot | None = None
    """Null plots one marker per row."""
    assume: Assumed | None = None
    """Sizes of the dataset, for costs where it is not prepared."""
    rows: tuple[Row, ...] = Field(min_length=1)
    """In the order of the table."""


class Table(TableFile):
    """A table file that was read from `path`."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem


def load_table(path: str | os.PathLike[str]) -> Table:
    """The table that a YAML file states, over those that its `_base_` names.

    A row with `for: {L: [1, 2]}` stands for one row per combination, with `{L}` replaced in its
    texts.

    Raises `ConfigError`: one sentence of file, line, key, what was found and what is allowed.
    """
    path = Path(path)
    layers = read_layers(path)
    _check_is_table(layers)
    stated = complete(layers)
    try:
        file = TableFile.model_validate(stated.plain())
    except ValidationError as error:
        raise explain(error, stated, TableFile) from None
    _check(file, stated)
    return Table(path=path, **dict(file))


def _check_is_table(stated: Entry) -> None:
    if not {"title", "columns", "rows"}.intersection(stated.plain()):
        needed = [name for name, field in TableFile.model_fields.items() if field.is_required()]
        reason = f"a table states {', '.join(needed)} (docs/tables.md)"
        hint = "a config of train.py is given with --base"
        raise mistake(Place(stated.place.file), f"the file is no table: {reason}; {hint}")


def _check(table: TableFile, stated: Entry) -> None:
    """What the types cannot say: unique names, known columns, overrides of the right form."""
    _check_columns(table.columns, stated)
    first: dict[str, Entry] = {}
    for number, row in enumerate(table.rows):
        entry = stated.along(("rows", number))[-1]
        if row.name in first:
            where = f"first in line {first[row.name].place.line}"
            raise mistake(entry.place, f"the row {show(row.name)} is stated twice, {where}")
        first[row.name] = entry
        place = entry.along(("published",))[-1].place
        if unknown := [column for column in row.published if column not in table.columns]:
            known = ", ".join(table.columns)
            reason = f"published has {show(unknown[0])}, which is not of columns ({known})"
            raise mistake(place, f"row {show(row.name)}: {reason}")
        for index, override in enumerate(row.overrides):
            place = entry.along(("overrides", index))[-1].place
            try:
                keys = set(parse_overrides([override]).plain())
            except ConfigError as error:
                reason = str(error).removeprefix("command line: ")
                raise mistake(place, f"row {show(row.name)}: {reason}") from None
            if own := keys.intersection(PLANNED_KEYS):
                reason = f"{own.pop()} is not the table's to set; seeds are stated by `seeds`"
                raise mistake(place, f"row {show(row.name)}: {reason}")


def _check_columns(columns: Sequence[str], stated: Entry) -> None:
    for number, column in enumerate(columns):
        place, where = stated.along(("columns", number))[-1].place, f"columns[{number}]"
        if not column.strip():
            raise mistake(place, f"{where} is {show(column)}; it must be the name of a column")
        if column in columns[:number]:
            raise mistake(place, f"{where} is {show(column)}, which is there already")
        if column != OVERALL and get_close_matches(column.lower(), [OVERALL], cutoff=0.9):
            raise mistake(place, f"{where} is {show(column)}; did you mean {OVERALL}?")
