"""table.png: a dot per row and column, or lines where the table says what they run over.

Colours are those of Okabe and Ito, and whatever a colour tells, a marker tells too. Equal results
give equal bytes on one version of matplotlib.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from mcan.report.aggregate import Cell, RowSummary, Summary
from mcan.report.scale import share_scale
from mcan.report.wording import DAGGER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
LINES = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")

WIDTH = 8.8
"""Inches of 100 pixels: what a README shows without scaling."""
NAME_WIDTH = 30
"""Characters after which a row's name is broken."""
AXIS = "accuracy (%)"

_STYLE: Any = {
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,
}


def png(summary: Summary) -> bytes:
    """The figure of a table."""
    with _drawing():
        figure = _lines(summary) if summary.table.plot else _dots(summary)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@contextmanager
def _drawing() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc says, and no word on characters without a glyph.

    matplotlib is imported here, since it takes a second and only tables need it.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _panels(
    summary: Summary, across: int, panel_height: float, extra: float, sharey: bool
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per column, `across` side by side, and the table's title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = len(summary.columns)
    down = math.ceil(number / across)
    across = math.ceil(number / down)
    title = textwrap.fill(summary.table.title, 90) + _subject(summary)
    height = down * panel_height + extra + 0.2 * title.count("\n")
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    grid = figure.subplots(down, across, squeeze=False, sharey="row" if sharey else False)
    panels: list[Axes] = grid.ravel().tolist()
    for panel in panels[number:]:
        panel.remove()
    for panel, column in zip(panels[:number], summary.columns, strict=True):
        panel.set_title(column)
    return figure, panels[:number]


def _subject(summary: Summary) -> str:
    """What was evaluated, as a line of the title."""
    all_of = (each for row in summary.rows for each in row.evaluations)
    names = dict.fromkeys(f"{each.split} of {each.dataset}" for each in all_of)
    return f"\n{', '.join(names)}" if names else ""


def _dots(summary: Summary) -> Figure:
    """Rows from top to bottom, one panel of accuracies per column."""
    rows = [row for row in summary.rows if row.runs or row.comparable]
    names = [textwrap.fill(row.row.name, NAME_WIDTH, break_on_hyphens=False) for row in rows]
    lines = sum(name.count("\n") + 1 for name in names)
    height = 0.22 * lines + 0.12 * len(names) + 0.9
    figure, panels = _panels(summary, 4, height, 0.8, sharey=True)
    legend: dict[str, Any] = {}
    for panel, column in zip(panels, summary.columns, strict=True):
        for place, row in enumerate(rows):
            legend.update(_dot(panel, place, row, row.cells[column]))
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
        panel.set_xlabel(AXIS)
        _say_if_empty(panel)
    _finish(figure, panels, "x", summary, legend)
    return figure


def _dot(panel: Axes, place: int, row: RowSummary, cell: Cell) -> dict[str, Any]:
    """Draw what a cell holds at the height `place`; the handles of its legend by their labels."""
    handles: dict[str, Any] = {}
    if cell.mean is not None:
        colour, marker = (GREEN, "s") if cell.from_server else (BLUE, "o")
        label = "evaluation server" if cell.from_server else "runs"
        handles[label] = panel.errorbar(
            cell.mean, place, xerr=cell.std, color=colour, fmt=marker, markersize=6, capsize=3
        )
    if cell.published is not None and cell.comparable:
        verified = row.row.verified
        label = "published" if verified else f"published{DAGGER} (unconfirmed)"
        style = _hollow("D" if verified else "d")
        handles[label] = panel.plot(cell.published, place, color=VERMILLION, **style)[0]
    return handles


def _lines(summary: Summary) -> Figure:
    """One line per series over `x`, one panel per column."""
    series: dict[str, list[RowSummary]] = {}
    for row in summary.rows:
        if row.row.x is not None:
            series.setdefault(row.row.series or "runs", []).append(row)
    entries = len(series) * (2 if any(row.row.published for row in summary.rows) else 1)
    figure, panels = _panels(summary, 2, 3.0, 0.7 + 0.22 * math.ceil(entries / 3), sharey=False)
    legend: dict[str, Any] = {}
    for panel, column in zip(panels, summary.columns, strict=True):
        for number, (name, rows) in enumerate(series.items()):
            rows = sorted(rows, key=_place)
            legend.update(_line(panel, name, _line_style(number), rows, column))
        ticks = sorted({_place(row) for rows in series.values() for row in rows})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xlabel(summary.table.plot.x if summary.table.plot else "")
        panel.set_ylabel(AXIS)
        _say_if_empty(panel)
    _finish(figure, panels, "y", summary, legend)
    return figure


def _line(
    panel: Axes, name: str, style: Mapping[str, Any], rows: Sequence[RowSummary], column: str
) -> dict[str, Any]:
    """Draw a series in one panel; the handles of its legend by their labels."""
    handles: dict[str, Any] = {}
    points = [(_place(row), row.cells[column]) for row in rows]
    measured = [(x, cell.mean, cell.std or 0.0) for x, cell in points if cell.mean is not None]
    if measured:
        xs, means, spreads = zip(*measured, strict=True)
        bars = spreads if any(spreads) else None
        handles[name] = panel.errorbar(
            xs, means, yerr=bars, elinewidth=1, capsize=3, markersize=5, **style
        )
    published = [(x, cell) for x, cell in points if cell.published is not None and cell.comparable]
    if published:
        xs, figures = zip(*((x, cell.published) for x, cell in published), strict=True)
        mark = "" if all(row.row.verified for row in rows) else f"{DAGGER} (unconfirmed)"
        hollow = {**_hollow(style["marker"]), "color": style["color"]}
        handles[f"{name}, published{mark}"] = panel.plot(xs, figures, **hollow)[0]
    return handles


def _place(row: RowSummary) -> float:
    return 0.0 if row.row.x is None else row.row.x


def _line_style(number: int) -> dict[str, Any]:
    each = number % len(LINES)
    dashes = DASHES[number // len(LINES) % len(DASHES)]
    return {"color": LINES[each], "marker": MARKERS[each], "linestyle": dashes}


def _hollow(marker: str) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": 8,
        "markerfacecolor": "none",
        "markeredgewidth": 1.4,
    }


def _say_if_empty(panel: Axes) -> None:
    if not panel.has_data():
        panel.set_xticks([])
        panel.text(0.5, 0.5, "no figures yet", transform=panel.transAxes, ha="center", va="center")


def _finish(
    figure: Figure,
    panels: Sequence[Axes],
    along: Literal["x", "y"],
    summary: Summary,
    handles: Mapping[str, Any],
) -> None:
    """Scale the accuracies, which run `along` x or y; below the panels a note and the legend."""
    if not handles:
        return
    span = share_scale([panel for panel in panels if panel.has_data()], along)
    notes = _about_seeds(summary)
    if len(panels) > 1:
        notes.append(f"every panel spans {span:g} points")
    longest = max(map(len, handles))
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), 3, 100 // (longest + 6))),
        title="; ".join(notes) or None,
    )


def _about_seeds(summary: Summary) -> list[str]:
    """What a dot and its whiskers are, as the table's footnote says it."""
    cells = (row.cells[column] for row in summary.rows for column in summary.columns)
    counts = sorted({len(cell.values) for cell in cells if cell.values})
    if not counts:
        return []
    if counts == [1]:
        return ["accuracies of one run each"]
    fewest = "" if len(counts) == 1 else f"{counts[0]} to "
    return [f"mean of {fewest}{counts[-1]} seeds, whiskers: ± sample standard deviation"]
