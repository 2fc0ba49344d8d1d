"""table.png: a dot per row and column, or lines if the table has a plot. curves.png: learning.

Equal results give equal bytes on one version of matplotlib.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcan.drawing import drawing, line_style
from mcan.files import write_atomically
from mcan.tables.summary import RowSummary, TableSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_SPAN = 2.0
"""Points that a panel spans at least: a difference of 0.1 stays small."""
SPREAD = "mean ± sample standard deviation over seeds"


def write_figures(folder: Path, summary: TableSummary) -> None:
    """Write table.png, and curves.png if there are learning curves."""
    options: Any = {"format": "png", "metadata": {"Software": None}}
    figures = {"table.png": draw_table} | (
        {"curves.png": draw_curves} if summary.has_curves else {}
    )
    with drawing():
        for name, draw in figures.items():
            write_atomically(folder / name, partial(draw(summary).savefig, **options))


def draw_table(summary: TableSummary) -> Figure:
    """Results per column: a line per series over x, or else dots, one row of the table each."""
    from matplotlib.figure import Figure

    plot = summary.table.plot
    series: dict[str, list[tuple[float, RowSummary]]] = {}
    for number, row in enumerate(summary.rows):
        if plot is None:
            series.setdefault("runs", []).append((number, row))
        elif row.row.x is not None:
            series.setdefault(row.row.series or "runs", []).append((row.row.x, row))
    names = [textwrap.fill(row.row.name, 30, break_on_hyphens=False) for row in summary.rows]
    lines = sum(1 + name.count("\n") for name in names)
    across, height = (4, 1 + 0.3 * lines) if plot is None else (2, 3 + 0.2 * len(series))
    down = math.ceil(len(summary.columns) / across)
    across = math.ceil(len(summary.columns) / down)
    # 880 pixels: what a README shows without scaling.
    figure = Figure(figsize=(8.8, down * height + 1), layout="constrained")
    figure.suptitle(textwrap.fill(summary.table.title, 90), fontweight="bold")
    panels = []
    for number, column in enumerate(summary.columns, 1):
        panels.append(figure.add_subplot(down, across, number, title=column))
    handles: dict[str, Any] = {}
    for number, (name, points) in enumerate(series.items()):
        places, rows = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        style = {**line_style(number), "linestyle": "-" if plot else "none"}
        hollow = {**style, "linestyle": "none", "fillstyle": "none", "markersize": 10}
        cited = f"{name}, published" if plot else "published"
        cited += "" if all(each.row.verified for each in rows) else " (from memory)"
        for panel, column in zip(panels, summary.columns, strict=True):
            cells = [row.cells[column] for row in rows]
            drawn = {name: ([cell.mean for cell in cells], style)}
            published = [cell.published for cell in cells]
            if summary.comparable and any(value is not None for value in published):
                drawn[cited] = (published, hollow)
            spread = [cell.std or 0 for cell in cells]
            for label, (values, look) in drawn.items():
                known = np.array(values, float)  # None becomes NaN, which is not drawn
                x, y = (places, known) if plot else (known, places)
                bars: dict[str, Any] = {
                    "yerr" if plot else "xerr": spread if label == name else None
                }
                handles[label] = panel.errorbar(x, y, capsize=3, **bars, **look)
    for panel in panels:
        if plot is None:
            panel.set_yticks(range(len(names)), names)
            panel.set_ylim(len(names) - 0.5, -0.5)
            first = panel.get_subplotspec().is_first_col()  # type: ignore[union-attr]
            panel.tick_params(labelleft=first)
            panel.set_xlabel("accuracy (%)")
        else:
            panel.set_xticks(sorted({x for points in series.values() for x, _ in points}))
            panel.set(xlabel=plot.x, ylabel="accuracy (%)")
    span = _share_span(panels, "y" if plot else "x")
    _add_legend(figure, handles, f"{SPREAD}; every panel spans {span:.3g} points")
    return figure


def draw_curves(summary: TableSummary) -> Figure:
    """Accuracy over the epochs of training: per row, a line for the mean and a band of spread.

    A row has the epochs after which all its finished runs were evaluated.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 5 + 0.1 * len(summary.rows)), layout="constrained")
    figure.suptitle(textwrap.fill(summary.table.title, 90), fontweight="bold")
    panel, handles = figure.subplots(), {}
    panel.set(xlabel="epoch", ylabel="accuracy (%) on data.evaluate")
    for number, row in enumerate(summary.rows):
        if row.curves:
            epochs = sorted(set.intersection(*map(set, row.curves.values())))
            values = np.array([[curve[epoch] for epoch in epochs] for curve in row.curves.values()])
            mean, style = values.mean(0), line_style(number)
            spread = values.std(0, ddof=1) if len(values) > 1 else 0
            (handles[row.row.name],) = panel.plot(epochs, mean, markersize=4, **style)
            band: Any = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            panel.fill_between(epochs, mean - spread, mean + spread, **band)
    _add_legend(figure, handles, SPREAD)
    return figure


def _add_legend(figure: Figure, handles: Mapping[str, Any], note: str) -> None:
    if handles:
        legend: Any = {"loc": "outside lower center", "title": note}
        legend["ncols"] = max(1, min(3, 100 // (max(map(len, handles)) + 6)))
        figure.legend(handles.values(), handles, **legend)


def _share_span(panels: Sequence[Axes], along: str) -> float:
    """Let all panels span as many points `along` x or y, each around its own values: equal
    differences look equal, and columns at other levels hide nothing. Returns the span.
    """
    extents = [tuple(getattr(panel.dataLim, f"interval{along}")) for panel in panels]
    span: float = max([LEAST_SPAN, *(1.2 * (high - low) for low, high in extents if low <= high)])
    for panel, (low, high) in zip(panels, extents, strict=True):
        if low <= high:
            panel.set(**{f"{along}lim": ((low + high - span) / 2, (low + high + span) / 2)})
        else:
            panel.text(0.5, 0.5, "no results", transform=panel.transAxes, ha="center")
    return span
