"""A store's digest: the same for the same content, another for any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import Image, make_images, write_store

from mcan.data.store import ImageStore, Residency, open_store
from mcan.data.store_digest import store_digest
from mcan.data.store_writer import PixelStoreWriter, RegionStoreWriter


def digest(path: Path, images: list[Image], dtype: Any = "float16", **flags: bool) -> str:
    return store_digest(open_store(write_store(path, images, dtype, **flags)))


def one_value_changed(images: list[Image]) -> list[Image]:
    features = images[-1].features.copy()
    features[-1, -1] += 1
    return [*images[:-1], replace(images[-1], features=features)]


@pytest.mark.parametrize("ids", [[3, 1, -8, 2**62], ["n1", "0", "Zoë/犬", ""]])
def test_any_other_content_is_told(tmp_path, ids):
    images = make_images(ids, uniform=True)
    swapped = [replace(a, id=b.id) for a, b in zip(images, images[::-1], strict=True)]
    found = {
        "itself": digest(tmp_path / "itself.h5", images),
        "value": digest(tmp_path / "value.h5", one_value_changed(images)),
        "box": digest(tmp_path / "box.h5", [replace(i, boxes=i.boxes / 2) for i in images]),
        "ids": digest(tmp_path / "ids.h5", swapped),
        "order": digest(tmp_path / "order.h5", images[::-1]),
        "fewer": digest(tmp_path / "fewer.h5", images[:-1]),
        "grid": digest(tmp_path / "grid.h5", [replace(i, grid_shape=(3, 2)) for i in images]),
        "dtype": digest(tmp_path / "dtype.h5", images, "float32"),
        "no_boxes": digest(tmp_path / "no_boxes.h5", images, boxes=False),
        "no_grid": digest(tmp_path / "no_grid.h5", images, grid=False),
    }
    assert len(set(found.values())) == len(found)
    assert digest(tmp_path / "again.h5", images) == found["itself"]


def test_lengths_count_even_where_the_rows_are_the_same(tmp_path):
    found = set()
    for number, lengths in enumerate(([1, 3], [3, 1])):
        path = tmp_path / f"{number}.h5"
        with RegionStoreWriter(path, 2) as writer:
            for image, length in enumerate(lengths):
                writer.add(image, np.ones((length, 2)))
        found.add(store_digest(open_store(path)))
    assert len(found) == 2


def test_what_training_does_not_see_does_not_count(tmp_path):
    """Nor does the provenance: it names files that may have moved."""
    found = set()
    for number in range(2):
        path = tmp_path / f"{number}.h5"
        with RegionStoreWriter(path, 2, sizes=True, provenance={"source": number}) as writer:
            writer.add(7, np.ones((3, 2)), size=(number + 1, 1))
        found.add(store_digest(open_store(path)))
    assert len(found) == 1


@pytest.mark.parametrize("residency", ["memory", "device"])
def test_residency_does_not_count(tmp_path, residency: Residency):
    for name, dtype in (("a", "float16"), ("b", "float32")):
        path = write_store(tmp_path / f"{name}.h5", make_images([1, 2]), dtype)
        assert store_digest(open_store(path).load(residency)) == store_digest(open_store(path))
    path = tmp_path / "pixels.h5"
    with PixelStoreWriter(path, (3, 4, 6)) as writer:
        writer.add(1, np.arange(72, dtype=np.uint8).reshape(3, 4, 6))
    assert store_digest(open_store(path).load(residency)) == store_digest(open_store(path))


def large(rows: np.ndarray | torch.Tensor) -> str:
    images = np.arange(len(rows))
    store = ImageStore(Path("a.h5"), "regions", images, np.arange(len(rows) + 1), rows)  # type: ignore[arg-type]
    return store_digest(store)


def test_the_sample_is_spread_over_a_large_store():
    """Features that changed in any hundredth of it are told, those of one image may pass."""
    rows = np.zeros((40_000, 100), np.float16)
    before = large(rows)
    for first in range(0, len(rows), len(rows) // 100):
        rows[first : first + len(rows) // 100] = 1
        assert large(rows) != before, first
        rows[first : first + len(rows) // 100] = 0
    for edge in (0, -1):
        rows[edge] = 1
        assert large(rows) != before
        rows[edge] = 0
