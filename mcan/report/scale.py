"""One scale for the panels of a figure: equal differences look equal in all of them.

Each panel lies around its own figures, so that columns at other levels hide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SPAN = 2.0
"""Points that a panel spans at least: a difference of 0.1 stays small."""


def share_scale(panels: Sequence[Axes], along: Literal["x", "y"]) -> float:
    """Let the accuracies of all panels span as many points, with the same steps between ticks.

    They run `along` x or y, and every panel has some. Returns the number of points.
    """
    from matplotlib.ticker import MultipleLocator

    axes = [panel.xaxis if along == "x" else panel.yaxis for panel in panels]
    extents = [axis.get_data_interval() for axis in axes]
    span, step = _span(max(high - low for low, high in extents))
    for panel, axis, (low, high) in zip(panels, axes, extents, strict=True):
        # In the middle, but not far above 100 %.
        first = min((low + high - span) / 2, max(high, 100.0) + 0.06 * span - span)
        panel.set(**{f"{along}lim": (first, first + span)})
        axis.set_major_locator(MultipleLocator(step))
    return span


def _span(widest: float) -> tuple[float, float]:
    """Points of a panel that has room for `widest`, and of a step between ticks."""
    least = max(LEAST_SPAN, 1.2 * widest)
    power = 10.0 ** math.floor(math.log10(least / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least / 5)
    return step / 2 * math.ceil(least / (step / 2)), step
