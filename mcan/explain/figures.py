"""Figures of attention by matplotlib: one explanation, and the paper's figures 7 and 8."""

from __future__ import annotations

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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix, completely or not at all."""
    write_atomically(path, partial(figure.savefig, format=path.suffix[1:], bbox_inches="tight"))
