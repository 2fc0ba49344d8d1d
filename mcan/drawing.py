"""The style of all figures by matplotlib.

Colours are those of Okabe and Ito, and what a colour distinguishes, a marker does too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.4,
    "legend.frameon": False,
    "text.parse_math": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style, whatever the user's matplotlibrc says, and no warning of missing glyphs.

    matplotlib is imported here, since it takes a second and most commands draw nothing.
    """
    from matplotlib import style

    with style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of the line `number`; 56 differ, as 7 and 8 have no common divisor."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
