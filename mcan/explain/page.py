"""Explanations as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mcan.explain.explanation import Explanation


def write_page(path: Path, explanations: Iterable[Explanation], title: str) -> None:
    """Write the page of `explanations`, a card each."""
    raise NotImplementedError
