"""A small store and a small prepared folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import make_examples, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder with splits train (12 questions) and test (3), images 0 to 3."""
    path = tmp_path / "prepared"
    write_folder(
        path, {"train": make_examples(12, [0, 1, 2, 3]), "test": make_examples(3, [2, 3], first=12)}
    )
    return path
