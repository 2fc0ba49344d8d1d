"""Stores give back what was put in; damage is noticed; a batch equals its images one by one."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_toys import make_images, write_pixels, write_store

from mcan.data.arrays import array_to_ids
from mcan.data.store import ImageStore, StoreGroup, open_store
from mcan.errors import DataError
from mcan.rows import filler_rows

RESIDENCIES = ["disk", "memory", "device"]


@pytest.mark.parametrize("ids", [[7], [3, 1, -8, 2**62], ["n1", "0", "Zoë/犬"]])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("optional", [True, False])
def test_round_trip(tmp_path: Path, ids: list[Any], dtype: str, optional: bool) -> None:
    images = make_images(ids)
    flags = dict.fromkeys(("boxes", "size", "grid_shape"), optional)
    store = open_store(write_store(tmp_path / "a.h5", images, dtype, **flags))
    assert (store.kind, store.rows.shape[1:], len(store)) == ("regions", (5,), len(ids))
    assert store.provenance == {"by": "test"}
    assert array_to_ids(store.image_ids) == ids
    assert store.rows.dtype == np.dtype(dtype)
    if not optional:
        assert store.boxes is store.sizes is store.grid_shapes is None
    for index, image in enumerate(images):
        rows, boxes, grid_shape = store.image(index)
        np.testing.assert_array_equal(rows, image.rows)
        if optional:
            np.testing.assert_array_equal(boxes, image.boxes)
            assert (tuple(store.sizes[index]), tuple(grid_shape)) == (image.size, image.grid_shape)
    store.verify()


def test_disk_residency_maps_the_file_at_a_page_boundary(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path / "a.h5", make_images([1, 2])))
    assert store.load("disk") is store
    assert isinstance(store.rows, np.ndarray)
    assert store.rows.ctypes.data % 4096 == 0
    with pytest.raises(ValueError, match="read-only"):
        store.rows[0] = 0


@pytest.mark.parametrize(("residency", "kind"), [("memory", np.ndarray), ("device", torch.Tensor)])
def test_loaded_rows_equal_the_file(tmp_path: Path, residency: Any, kind: type) -> None:
    """A pickle holds the path and no rows; the rows need no file any more."""
    path = write_store(tmp_path / "a.h5", make_images(list(range(20))))
    loaded = open_store(path).load(residency, "cpu")
    assert type(loaded.rows) is kind
    content = pickle.dumps(loaded)
    assert len(content) < 500
    again: ImageStore = pickle.loads(content)
    np.testing.assert_array_equal(np.asarray(loaded.rows), again.rows)
    path.unlink()
    loaded.verify()


@pytest.mark.parametrize("spare", [0, -1, None])
def test_rows_that_do_not_fit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int | None
) -> None:
    store = open_store(write_store(tmp_path / "a.h5", make_images([1, 2, 3, 4])))
    free = None if spare is None else store.rows.nbytes + spare
    monkeypatch.setattr("mcan.data.store.free_memory", lambda device: free)
    if spare == -1:
        with pytest.raises(
            DataError, match=r"fit into the memory of cpu; use data\.residency=disk"
        ):
            store.load("memory")
    else:
        store.load("memory")
    if spare == 0:  # each process of a machine reads its own
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(DataError, match="do not fit"):
            store.load("memory")


def test_the_digest_is_that_of_what_training_reads(tmp_path: Path) -> None:
    images = make_images([3, 1, 8, 5])

    def digest(name: str, changed: list[Any] = images, **options: Any) -> str:
        return open_store(write_store(tmp_path / name, changed, **options)).digest

    same = digest("same")
    assert digest("provenance", provenance={"other": 1}) == same
    others = [
        digest("order", images[::-1]),
        digest("ids", make_images([3, 1, 8, 6])),
        digest("features", [*images[:3], make_images([5], seed=9)[0]]),
        digest("dtype", dtype="float32"),
        *(digest(flag, **{flag: False}) for flag in ("boxes", "size", "grid_shape")),
    ]
    assert len({same, *others}) == len(others) + 1


@pytest.mark.parametrize("name", ["features", "boxes"])
def test_damaged_rows_are_noticed_in_a_sample_and_by_verify(tmp_path: Path, name: str) -> None:
    """The first image is in the sample, the fourth of these is not."""
    provenance = {"command": "python scripts/import_features.py 'my features' --output STORE"}
    path = write_store(tmp_path / "a.h5", make_images(list(range(40))), provenance=provenance)
    store = open_store(path)

    def damage(row: int) -> None:
        with h5py.File(path, "r+") as file:
            file[name][row] += 1

    damage(int(store.offsets[3]))
    remake = r"delete it and make it again with: python .*import_features\.py 'my fea.*a\.h5"
    with pytest.raises(DataError, match=rf"rows of 1 image are damaged \(3\); {remake}"):
        open_store(path).verify()
    damage(0)
    with pytest.raises(DataError, match=r"rows of 1 image are damaged \(0\)"):
        open_store(path)
    with pytest.raises(DataError, match=r"rows of 2 images are damaged \(0, 3\)"):
        store.verify()


def test_any_damage_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Bytes flipped, zeroed or cut: an error of one line, or every value as before (HDF5 files of
    this size are mostly unused bytes)."""
    images = make_images([f"image{i}" for i in range(30)], dim=40)
    path = write_store(tmp_path / "a.h5", images)
    intact, content = open_store(path), path.read_bytes()
    random = np.random.default_rng(0)
    other, noticed = tmp_path / "b.h5", list[str]()
    for number in range(200):
        damaged = np.frombuffer(content, np.uint8).copy()
        at = int(random.integers(len(content) if number % 2 else 4096))
        if number % 3 == 0:
            damaged[at : at + 16] = 0
        elif number % 3 == 1:
            damaged[at] ^= 1 << int(random.integers(8))
        else:
            damaged = damaged[:at]
        other.write_bytes(damaged.tobytes())
        try:
            store = open_store(other)
            store.verify()
        except DataError as error:
            noticed.append(str(error))
            continue
        assert (store.digest, store.provenance) == (intact.digest, intact.provenance)
        for name in ("rows", "boxes", "image_ids", "offsets", "sizes", "grid_shapes"):
            np.testing.assert_array_equal(getattr(store, name), getattr(intact, name))
    assert len(noticed) > 60
    assert all(str(other) in message and "\n" not in message for message in noticed)


def test_other_files(tmp_path: Path) -> None:
    old, path = tmp_path / "old.h5", tmp_path / "a.h5"
    with h5py.File(old, "w") as file:
        file.attrs["format_version"] = 1
        file["features"] = np.ones((2, 3), np.float16)
    remake = r"delete it and make it again with: .*import_features\.py or"
    with pytest.raises(DataError, match=rf"old\.h5: damaged, or .* format 2; {remake}"):
        open_store(old)
    for missing in (path, tmp_path):
        with pytest.raises(DataError, match="no such image store"):
            open_store(missing)
    for content in (b"", b"id,features\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.h5: this image store is truncated, damaged or"):
            open_store(path)
    whole = write_store(tmp_path / "whole.h5", make_images([1, 2]))
    os.truncate(whole, whole.stat().st_size - 5000)
    with pytest.raises(DataError, match=r"whole\.h5: this image store is truncated"):
        open_store(whole)


FIRST = make_images([10, 11, 12, 13, 14], seed=1)
SECOND = make_images([20, 11, 21], seed=2)
UNIFORM = make_images([30, 31, 32, 33], seed=3, uniform=True)
BY_ID = {image.image_id: image for image in [*SECOND, *FIRST, *UNIFORM]}  # the first store wins


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    named = {"first": FIRST, "second": SECOND, "uniform": UNIFORM}
    return {name: write_store(folder / f"{name}.h5", images) for name, images in named.items()}


def open_group(stores: dict[str, Path], names: list[str], residency: Any = "disk") -> StoreGroup:
    return StoreGroup([open_store(stores[name]).load(residency, "cpu") for name in names])


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize(
    "names", [["first"], ["uniform"], ["first", "second"], ["first", "uniform", "second"]]
)
def test_gather_equals_images_one_by_one(
    stores: dict[str, Path], names: list[str], residency: Any
) -> None:
    group = open_group(stores, names, residency)
    ids = list(dict.fromkeys(id for store in group.stores for id in array_to_ids(store.image_ids)))

    @given(st.lists(st.sampled_from(ids), max_size=8))
    def check(batch: list[Any]) -> None:
        images = [BY_ID[image_id] for image_id in batch]
        numbers = group.locate(np.array(batch, np.int64))
        layout, rows, found_boxes, cells = group.gather(numbers)
        lengths = [len(image.rows) for image in images]
        assert group.lengths[numbers].tolist() == layout.lengths.tolist() == lengths
        assert layout.filler == filler_rows(layout.lengths)
        assert rows.dtype == torch.float16
        nothing = np.zeros((layout.filler, 5), np.float16)
        features = np.concatenate([*(image.rows for image in images), nothing])
        np.testing.assert_array_equal(rows, features)
        boxes = np.concatenate([*(image.boxes for image in images), nothing[:, :4]])
        np.testing.assert_array_equal(found_boxes, boxes)
        assert cells is not None
        grids = [list(np.ndindex(image.grid_shape)) for image in images]
        expected = [list(cell) for grid in grids for cell in grid]
        assert cells.tolist() == expected + [[0, 0]] * layout.filler

    check()
    assert group.locate(np.array([99])).tolist() == [-1]


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_pixels(tmp_path: Path, residency: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 4), np.uint8)
    stores = []
    for name, numbers in (("a", [0, 1, 2]), ("b", [3, 4])):
        path = write_pixels(tmp_path / name, {number: pixels[number] for number in numbers})
        stores.append(open_store(path).load(residency, "cpu"))
    assert (stores[0].kind, stores[0].rows.shape[1:]) == ("pixels", (3, 2, 4))
    for group, ids in (
        (StoreGroup(stores), [4, 0, 3, 3, 1]),
        (StoreGroup(stores[:1]), [2, 2, 0]),
        (StoreGroup(stores[:1]), []),
    ):
        _, rows, *_ = group.gather(group.locate(np.array(ids, np.int64)))
        assert rows.dtype == torch.uint8
        np.testing.assert_array_equal(rows, pixels[ids])


def test_a_store_that_is_overwritten_in_use(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5", make_images([1, 2]))
    other = write_store(tmp_path / "b.h5", make_images([5, 6]))
    store, images = open_store(path), np.arange(2)
    expected = StoreGroup([store]).gather(images)[1]
    other.rename(path)  # the old file is still there for those who have it open
    assert torch.equal(StoreGroup([store]).gather(images)[1], expected)
    store = open_store(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.h5: was overwritten while it is in use"):
        StoreGroup([store]).gather(images)


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate")

    path = write_store(tmp_path / "a.h5", make_images([1, 2]))
    monkeypatch.setattr(np, "memmap", fail)
    with pytest.raises(DataError, match=r"not enough memory to map this image store"):
        open_store(path)


def test_stores_of_different_kinds(tmp_path: Path, stores: dict[str, Path]) -> None:
    """Boxes and cells need every store; kind, width and type must be equal."""
    first = open_store(stores["first"])
    plain = write_store(tmp_path / "plain.h5", make_images([1]), boxes=False, grid_shape=False)
    _, _, boxes, cells = StoreGroup([first, open_store(plain)]).gather(np.array([0, 5]))
    assert boxes is cells is None
    for name, path in {
        "wide.h5": write_store(tmp_path / "wide.h5", make_images([2], dim=6)),
        "float32.h5": write_store(tmp_path / "float32.h5", make_images([2]), "float32"),
        "p.h5": write_pixels(tmp_path / "p.h5", {1: np.zeros((3, 2, 2), np.uint8)}),
    }.items():
        with pytest.raises(DataError, match=rf"{name} holds .* while .*first\.h5 holds"):
            StoreGroup([first, open_store(path)])
