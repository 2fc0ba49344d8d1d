"""A small store and a small prepared folder."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toys import make_examples, make_images, write_folder, write_store


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "images.h5", **options: Any) -> Path:
        return write_store(tmp_path / name, make_images([3, 1, 8, 5]), **options)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder with splits train (12 questions) and test (3), images 0 to 3."""
    path = tmp_path / "prepared"
    write_folder(
        path,
        {"train": make_examples(12, [0, 1, 2, 3]), "test": make_examples(3, [2, 3], first=12)},
    )
    return path


@pytest.fixture
def peak_memory() -> Callable[..., int]:
    """The most bytes that Python and numpy hold at once while a function runs."""

    def measure(function: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
