"""Merged stores hold what their parts hold, and stores that differ are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcan.data.store import open_store
from mcan.data.store_merge import merge_stores
from mcan.data.store_writer import PixelStoreWriter, RegionStoreWriter
from mcan.errors import DataError


def write(path: Path, ids: list[Any], width: int = 3, **options: Any) -> Path:
    random = np.random.default_rng(len(ids))
    with RegionStoreWriter(path, width, **options) as writer:
        for image_id in ids:
            rows = random.random((int(random.integers(1, 5)), width))
            extras: dict[str, Any] = {}
            if options.get("boxes"):
                extras["boxes"] = np.tile([0.1, 0.2, 0.3, 0.4], (len(rows), 1))
            if options.get("sizes"):
                extras["size"] = (4, 5)
            if options.get("grid"):
                extras["grid_shape"] = (1, len(rows))
            writer.add(image_id, rows, **extras)
    return path


@pytest.mark.parametrize("flags", [{}, {"boxes": True, "sizes": True}, {"grid": True}])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("ids", [[[1, 2], [9], [4, 3]], [["a"], ["b", "c"]]])
def test_merge(tmp_path: Path, flags: dict[str, Any], dtype: Any, ids: list[list[Any]]) -> None:
    paths = [write(tmp_path / f"{i}.h5", part, dtype=dtype, **flags) for i, part in enumerate(ids)]
    assert merge_stores(paths, tmp_path / "out.h5") == sum(map(len, ids))
    parts, merged = [open_store(path) for path in paths], open_store(tmp_path / "out.h5")
    assert merged.image_ids.tolist() == [image_id for part in ids for image_id in part]
    assert merged.rows.dtype == dtype
    np.testing.assert_array_equal(merged.rows, np.concatenate([p.rows for p in parts]))
    for name in ("boxes", "sizes", "grid_shapes"):
        ours = getattr(merged, name)
        if ours is not None:
            np.testing.assert_array_equal(ours, np.concatenate([getattr(p, name) for p in parts]))
    assert [item["file"] for item in merged.provenance["merged"]] == [str(p) for p in paths]


@pytest.mark.parametrize(
    ("message", "ids", "options"),
    [
        ("differ in width: 4 and 3", [5], {"width": 4}),
        ("differ in dtype: float32 and float16", [5], {"dtype": "float32"}),
        ("differ in boxes: True and False", [5], {"boxes": True}),
        ("differ in sizes", [5], {"sizes": True}),
        ("differ in grid shapes", [5], {"grid": True}),
        ("differ in type of image ids: text and integers", ["5"], {}),
        ("differ in the way they were extracted", [5], {"provenance": {"extractor": {"a": 1}}}),
        (r"a\.h5 and .*b\.h5: both have the image 2", [5, 2], {}),
    ],
)
def test_stores_that_differ(
    tmp_path: Path, message: str, ids: list[Any], options: dict[str, Any]
) -> None:
    paths = [write(tmp_path / "a.h5", [1, 2]), write(tmp_path / "b.h5", ids, **options)]
    with pytest.raises(DataError, match=message):
        merge_stores(paths, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_pixels_and_existing_outputs_are_refused(tmp_path: Path) -> None:
    with PixelStoreWriter(tmp_path / "p.h5", (3, 2, 2)) as writer:
        writer.add(1, np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"p\.h5: holds pixels; only region stores are merged"):
        merge_stores([tmp_path / "p.h5"], tmp_path / "out.h5")
    path = write(tmp_path / "a.h5", [1])
    with pytest.raises(DataError, match="already exists"):
        merge_stores([path], path)
