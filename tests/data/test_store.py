"""Stores give back what was put in, whatever the ids, dtype and residency."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import make_images, write_store

from mcan.data.store import ImageStore, open_store
from mcan.data.store_writer import PixelStoreWriter

IDS: list[list[Any]] = [[7], [3, 1, -8, 2**62], ["n1", "0", "Zoë/犬", ""]]


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path: Path, ids: list[Any], dtype: str) -> None:
    images = make_images(ids)
    store = open_store(write_store(tmp_path / "a.h5", images, dtype))
    assert store.kind == "regions"
    assert store.row_shape == (5,)
    assert store.provenance == {"by": "test"}
    assert store.image_ids.tolist() == ids
    assert store.rows.dtype == np.dtype(dtype)
    assert store.boxes is not None
    assert store.sizes is not None
    assert store.grid_shapes is not None
    for row, image in enumerate(images):
        first, last = store.offsets[row], store.offsets[row + 1]
        np.testing.assert_array_equal(store.rows[first:last], image.features)
        np.testing.assert_array_equal(store.boxes[first:last], image.boxes)
        assert tuple(store.sizes[row]) == image.size
        assert tuple(store.grid_shapes[row]) == image.grid_shape


def test_optional_parts_are_absent(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5", make_images([1]), boxes=False, sizes=False, grid=False)
    store = open_store(path)
    assert store.boxes is None
    assert store.sizes is None
    assert store.grid_shapes is None


def test_rows_of_finds_what_is_there(tmp_path: Path) -> None:
    numbers = open_store(write_store(tmp_path / "a.h5", make_images([30, -10, 20])))
    assert numbers.rows_of(np.array([20, 21, 30, -11, -10, 99])).tolist() == [2, -1, 0, -1, 1, -1]
    assert numbers.rows_of(np.array([], np.int64)).tolist() == []
    assert numbers.rows_of(np.array(["20"], object)).tolist() == [-1]
    texts = open_store(write_store(tmp_path / "b.h5", make_images(["x", "y"])))
    assert texts.rows_of(np.array(["y", "z", "x"], object)).tolist() == [1, -1, 0]
    assert texts.rows_of(np.array([1])).tolist() == [-1]


def test_disk_residency_maps_the_file(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "a.h5", make_images([1, 2])))
    assert isinstance(store.rows, np.ndarray)
    assert isinstance(store.rows.base, np.memmap)
    assert store.load("disk") is store
    with pytest.raises(ValueError, match="read-only"):
        store.rows[0] = 0


@pytest.mark.parametrize(("residency", "kind"), [("memory", np.ndarray), ("device", torch.Tensor)])
def test_loaded_rows_equal_the_file(tmp_path: Path, residency: Any, kind: type) -> None:
    path = write_store(tmp_path / "a.h5", make_images(list(range(20))))
    loaded = open_store(path).load(residency, "cpu")
    assert type(loaded.rows) is kind
    np.testing.assert_array_equal(np.asarray(loaded.rows), open_store(path).rows)
    path.unlink()  # nothing is read from it any more
    assert np.isfinite(np.asarray(loaded.rows)).all()


def test_pickle_holds_a_path_and_no_rows(tmp_path: Path) -> None:
    images = make_images(list(range(200)), dim=64)
    store = open_store(write_store(tmp_path / "a.h5", images)).load("memory")
    content = pickle.dumps(store)
    assert len(content) < 500
    again: ImageStore = pickle.loads(content)
    np.testing.assert_array_equal(again.rows, store.rows)


def test_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 6), np.uint8)
    with PixelStoreWriter(tmp_path / "p.h5", (3, 4, 6), provenance={"a": 1}) as writer:
        for number, image in enumerate(pixels):
            writer.add(f"i{number}", image)
    store = open_store(tmp_path / "p.h5")
    assert store.kind == "pixels"
    assert store.row_shape == (3, 4, 6)
    assert store.provenance == {"a": 1}
    np.testing.assert_array_equal(store.rows, pixels)
    assert store.offsets.tolist() == [0, 1, 2, 3]
