"""The results as text cells and footnotes, for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mcan.report.aggregate import Cell, RowSummary, Summary

ABSENT = "–"
DAGGER, DOUBLE_DAGGER = "†", "‡"
MINUS = "−"


class Grid(NamedTuple):
    """A table of text: the first column names rows, the others hold figures."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def called(summary: Summary) -> str | None:
    """What the command changed for all rows, as a sentence; None where nothing."""
    return f"Run {summary.call.told}." if summary.call.told else None


def grids(summary: Summary) -> list[Grid]:
    """Accuracies with the published figures beside them, or below where these have many columns."""
    columns = summary.columns
    compared = [name for name in columns if _figures(summary, name)]
    if len(compared) < 2:
        return [_grid("", summary.rows, _side_by_side(summary, compared))]
    own = [row for row in summary.rows if row.runs]
    caption = "Published figures"
    if summary.comparable:
        caption += ", and in Δ how far the accuracies above are from them"
    means = _grid("", own, [*map(_means, columns), _COUNTS])
    published = _grid(f"{caption}:", summary.rows, _apart(summary, compared))
    return [means, published] if own else [published]


def _side_by_side(summary: Summary, compared: Sequence[str]) -> list[_Column]:
    columns = []
    for name in summary.columns:
        columns.append(_means(name))
        if name in compared:
            ours = summary.comparable
            title = "published" if ours else f"published ({summary.table.dataset})"
            columns.append(_published(title, summary, name))
            columns += [_differences("difference", name)] if ours else []
    return [*columns, _COUNTS]


def _apart(summary: Summary, compared: Sequence[str]) -> list[_Column]:
    columns = []
    for name in compared:
        columns.append(_published(name, summary, name))
        columns += [_differences(f"Δ {name}", name)] if summary.comparable else []
    return columns


class _Column(NamedTuple):
    title: str
    text: Callable[[RowSummary], str]


_COUNTS = _Column(
    "runs", lambda row: f"{len(row.outcomes)} of {len(row.runs)}" if row.runs else ABSENT
)


def _means(name: str) -> _Column:
    return _Column(name, lambda row: accuracy(row.cells[name]))


def _published(title: str, summary: Summary, name: str) -> _Column:
    # As many decimals as the source gives: 64.8 is not 64.80.
    figures = (repr(float(figure)) for figure in _figures(summary, name))
    places = max(len(text.removesuffix(".0").partition(".")[2]) for text in figures)

    def text(row: RowSummary) -> str:
        figure = row.cells[name].published
        if figure is None:
            return ABSENT
        return f"{figure:.{places}f}{'' if row.row.verified else DAGGER}"

    return _Column(title, text)


def _differences(title: str, name: str) -> _Column:
    return _Column(title, lambda row: _signed(row.cells[name].difference))


def _figures(summary: Summary, name: str) -> list[float]:
    """The published figures of a column."""
    published = (row.cells[name].published for row in summary.rows)
    return [figure for figure in published if figure is not None]


def _grid(caption: str, rows: Sequence[RowSummary], columns: Sequence[_Column]) -> Grid:
    head = ["row", *(column.title for column in columns)]
    return Grid(
        caption, head, [[row.row.name, *(column.text(row) for column in columns)] for row in rows]
    )


def accuracy(cell: Cell) -> str:
    """`mean ± std` in percent; the mean alone of one run; marked where it is the server's."""
    if cell.mean is None:
        return ABSENT
    spread = "" if cell.std is None else f" ± {cell.std:.2f}"
    return f"{cell.mean:.2f}{spread}{DOUBLE_DAGGER if cell.from_server else ''}"


def _signed(difference: float | None) -> str:
    if difference is None:
        return ABSENT
    text = f"{difference:+.2f}".replace("-", MINUS)
    return "0.00" if text[1:] == "0.00" else text


def footnotes(summary: Summary) -> list[str]:
    """What a reader has to know, as sentences."""
    return [
        *_about_accuracies(summary),
        *_about_published(summary),
        *_about_runs(summary),
    ]


def _about_accuracies(summary: Summary) -> list[str]:
    notes = []
    rows_of: dict[str, list[str]] = {}
    for row in summary.rows:
        for each in row.evaluations:
            text = (
                f"Accuracy in percent on {each.split} of {each.dataset} "
                f"({each.questions:,} questions), metric {each.metric}"
            )
            rows_of.setdefault(text, []).append(row.row.name)
    for text, names in rows_of.items():
        notes.append(f"{text}." if len(rows_of) == 1 else f"{text}: {', '.join(names)}.")
    cells = [row.cells[column] for row in summary.rows for column in summary.columns]
    if any(cell.std is not None for cell in cells):
        notes.append(
            "± is the sample standard deviation (n − 1) over seeds; a figure without it is one run."
        )
    elif any(cell.values for cell in cells):
        notes.append("Each accuracy is that of one run.")
    if any(cell.from_server for cell in cells):
        notes.append(f"{DOUBLE_DAGGER} the evaluation server's figure for one submission.")
    return notes


def _about_published(summary: Summary) -> list[str]:
    table = summary.table
    shown = [
        row
        for row in summary.rows
        if any(row.cells[column].published is not None for column in summary.columns)
    ]
    if not shown:
        return []
    notes = [f"Source of the published figures: {table.source}."]
    if not all(row.row.verified for row in shown):
        notes.append(f"{DAGGER} recalled from the paper, not confirmed against its PDF.")
    others = [name for name in summary.datasets if name != table.dataset]
    if others:
        notes.append(
            f"The published figures are for {table.dataset} and the runs on {', '.join(others)}, "
            "so no differences are given."
        )
    return notes


def _about_runs(summary: Summary) -> list[str]:
    notes = []
    bases = {str(run.base) for row in summary.rows for run in row.runs}
    if len(bases) == 1:
        notes.append(
            f"Config of all rows: {bases.pop()}, with the overrides that table.json lists."
        )
    if missing := [row for row in summary.rows if row.missing]:
        notes.append(f"Not finished: {'; '.join(map(_missing, missing))}.")
    if waiting := [row.row.name for row in summary.rows if row.submitted]:
        notes.append(
            f"Submitted, the evaluation server's figures not filled in: {'; '.join(waiting)}."
        )
    return notes


def _missing(row: RowSummary) -> str:
    seeds = "seed" if len(row.missing) == 1 else "seeds"
    return f"{row.row.name} ({seeds} {', '.join(map(str, row.missing))})"
