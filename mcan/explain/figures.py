"""Figures of attention by matplotlib: one explanation, and the paper's figures 7 and 8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mcan.explain.explanation import Explanation
from mcan.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_explanation(seen: Explanation, name: str = "reduction", head: int | None = None) -> Figure:
    """Picture and question shaded by a method or an attention, with the answers below."""
    raise NotImplementedError


def draw_figure_7(seen: Explanation, layers: Sequence[int] | None = None) -> Figure:
    """The attention maps of single units as matrices; `layers` from 0, None: typical ones."""
    raise NotImplementedError


def draw_figure_8(examples: Sequence[Explanation]) -> Figure:
    """The weights of the reductions as the brightness of regions and words, a row per example."""
    raise NotImplementedError


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix, completely or not at all."""
    write_atomically(path, partial(figure.savefig, format=path.suffix[1:], bbox_inches="tight"))
