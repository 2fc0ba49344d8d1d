"""Small pictures in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from sketches import SIZES, draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures, COCO_x_000000000000.png to ..., of `SIZES`."""
    path = tmp_path / "pictures"
    (path / "sub").mkdir(parents=True)
    for number, size in enumerate(SIZES):
        place = path / "sub" if number == 6 else path
        draw(*size, seed=number).save(place / f"COCO_x_{number:012d}.png")
    return path
