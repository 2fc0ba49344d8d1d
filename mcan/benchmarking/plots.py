"""How time and memory grow with the work, as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcan.benchmarking.summary import Record, Spread, peak, rates
from mcan.errors import DataError
from mcan.files import saving, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Column = Sequence[Axes]
    """Two axes: time above, memory below."""

LABELS = {"regions": "regions per image", "width": "width of the network", "depth": "MCA layers"}
_MEASURED: dict[str, Any] = {"color": "#0072B2", "marker": "o", "label": "measured"}
_EXPECTED: dict[str, Any] = {
    "color": "#777777",
    "linestyle": "--",
    "label": "the first point, in proportion to multiply-adds",
}


def save_plot(record: Record, path: Path) -> None:
    """A column for each factor and one for start-up, of time and peak memory.

    Raises `DataError` without matplotlib, or where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise DataError(f"{path}: plots need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(14, 6), layout=ConstrainedLayoutEngine(w_pad=0.15))
    columns = figure.subplots(2, len(LABELS) + 1, sharex="col").T
    for factor, column in zip(LABELS, columns, strict=False):
        _steps(column, factor, [each for each in record["points"] if each["factor"] == factor])
    _starts(columns[-1], record["startup"])
    handles, labels = columns[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with saving(path):
        write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _steps(column: Column, factor: str, points: Sequence[Record]) -> None:
    """Time per question, and what it were if only multiply-adds counted."""
    values = [point["value"] for point in points]
    times = [Spread.of(1000 / rate for rate in rates(point)) for point in points]
    first = [point["repetitions"][0] for point in points]
    macs = [result["macs"] / result["questions"] for result in first]
    column[0].plot(values, [times[0].median * each / macs[0] for each in macs], **_EXPECTED)
    gpu = [peak(point, "peak_device_memory") for point in points]
    main = [peak(point) for point in points]
    on_gpu = None not in gpu
    _draw(column, values, times, gpu if on_gpu else main)
    column[0].set_ylabel("training step, ms per question")
    column[1].set_ylabel("peak GPU memory, GB" if on_gpu else "peak memory, GB")
    column[1].set_xlabel(LABELS[factor])
    column[1].set_xticks(values)


def _starts(column: Column, points: Sequence[Record]) -> None:
    counts = [point["questions"] for point in points]
    times = [Spread.of(start["seconds"] for start in point["starts"]) for point in points]
    memory = [max(start["peak_memory"] for start in point["starts"]) for point in points]
    _draw(column, counts, times, memory)
    column[0].set_ylabel("start to first step, s")
    column[1].set_ylabel("peak memory, GB")
    column[1].set_xlabel("questions")
    column[1].set_xscale("log")
    column[1].set_xticks(counts, [_short(count) for count in counts])
    column[1].minorticks_off()


def _draw(
    column: Column, values: Sequence[int], times: Sequence[Spread], memory: Sequence[int | None]
) -> None:
    """Medians with their spread, and bytes, both from zero."""
    medians = [time.median for time in times]
    errors = [
        [time.median - time.least for time in times],
        [time.most - time.median for time in times],
    ]
    column[0].errorbar(values, medians, errors, fmt="none", color=_MEASURED["color"])
    column[0].plot(values, medians, **_MEASURED)
    column[1].plot(values, [(size or 0) / 1e9 for size in memory], **_MEASURED)
    for axes in column:
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
        axes.grid(alpha=0.3)


def _short(count: int) -> str:
    """10k, 4.4M."""
    for unit, suffix in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:g}{suffix}"
    return str(count)
