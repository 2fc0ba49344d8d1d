"""How time and memory grow with the work, as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcan.benchmarking.summary import Record, Spread, peak, rates
from mcan.errors import DataError
from mcan.files import saving, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"regions": "regions per image", "width": "width of the network", "depth": "MCA layers"}
_TIME, _MEMORY = "#0072B2", "#D55E00"
_GREY = "#777777"
_TIME_LABEL = "time (left)"


def save_plot(record: Record, path: Path) -> None:
    """A panel for each factor and one for start-up; `DataError` without matplotlib or the file."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError(f"{path}: plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for factor, label in LABELS.items():
        points = [point for point in record["points"] if point["factor"] == factor]
        _steps(next(panels), label, points)
    _starts(next(panels), record["startup"])
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(handles=handles.values(), loc="outside lower center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with saving(path):
        write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _steps(axes: Axes, label: str, points: Sequence[Record]) -> None:
    """Milliseconds per question, and what they were if only multiply-adds counted."""
    values = [point["value"] for point in points]
    times = [Spread.of(1000 / rate for rate in rates(point)) for point in points]
    medians = [time.median for time in times]
    macs = [
        result["macs"] / result["questions"] for result in (p["repetitions"][0] for p in points)
    ]
    axes.plot(
        values,
        [medians[0] * mac / macs[0] for mac in macs],
        "--",
        color=_GREY,
        label="time, if only multiply-adds counted",
    )
    errors = [
        [time.median - time.least for time in times],
        [time.most - time.median for time in times],
    ]
    axes.errorbar(values, medians, errors, fmt="none", color=_TIME)
    axes.plot(values, medians, "o-", color=_TIME, label=_TIME_LABEL)
    axes.set_ylabel("ms per question of a training step")
    memory = [(peak(point) or 0) / 1e9 for point in points]
    _finish(axes, label, values, memory)


def _starts(axes: Axes, points: Sequence[Record]) -> None:
    counts = [point["questions"] for point in points]
    times = [Spread.of(start["seconds"] for start in point["starts"]).median for point in points]
    axes.plot(counts, times, "o-", color=_TIME, label=_TIME_LABEL)
    axes.set_ylabel("s from start to the first step")
    axes.set_xscale("log")
    memory = [max(start["peak_memory"] for start in point["starts"]) / 1e9 for point in points]
    _finish(axes, "questions", counts, memory)


def _finish(axes: Axes, label: str, values: Sequence[float], memory: Sequence[float]) -> None:
    """Peak memory on a second axis, both from zero."""
    other = axes.twinx()
    other.plot(values, memory, "s:", color=_MEMORY, label="peak memory (right)")
    other.set_ylabel("peak memory, GB")
    for each in (axes, other):
        each.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
