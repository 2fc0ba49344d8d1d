"""A gathered batch equals the images read one by one, from any number of stores, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Image, make_images, write_store

from mcan.data.images import ImageGroup
from mcan.data.packed import Packed, ranges
from mcan.data.store import ImageStore, open_store
from mcan.data.store_writer import PixelStoreWriter

FIRST = make_images([10, 11, 12, 13, 14], seed=1)
SECOND = make_images([20, 11, 21], seed=2)
UNIFORM = make_images([30, 31, 32, 33], seed=3, uniform=True)
BY_ID = {image.id: image for image in [*SECOND, *FIRST, *UNIFORM]}  # the first store wins


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    named = {"first": FIRST, "second": SECOND, "uniform": UNIFORM}
    return {name: write_store(folder / f"{name}.h5", images) for name, images in named.items()}


def open_group(stores: dict[str, Path], names: list[str], residency: Any) -> ImageGroup:
    return ImageGroup([open_store(stores[name]).load(residency, "cpu") for name in names])


def check(group: ImageGroup, ids: list[int]) -> None:
    """Compare with a concatenation of the images that were written."""
    images: list[Image] = [BY_ID[image_id] for image_id in ids]
    found = group.gather(group.locate(np.array(ids, np.int64)))
    assert found.regions is not None
    assert found.boxes is not None
    assert found.cells is not None
    layout = found.regions.layout
    lengths = [len(image.features) for image in images]
    assert layout.lengths.tolist() == lengths
    assert layout.longest == max(lengths, default=0)
    assert layout.total == sum(lengths)
    assert found.regions.values.dtype == torch.float16
    cells = [
        [row, column]
        for image in images
        for row in range(image.grid_shape[0])
        for column in range(image.grid_shape[1])
    ]
    empty = np.empty((0, 5), np.float16)
    np.testing.assert_array_equal(
        found.regions.values, np.concatenate([empty, *(image.features for image in images)])
    )
    np.testing.assert_array_equal(
        found.boxes, np.concatenate([empty[:, :4], *(image.boxes for image in images)])
    )
    assert found.cells.tolist() == cells


@pytest.mark.parametrize("residency", ["disk", "memory", "device"])
@pytest.mark.parametrize(
    "names", [["first"], ["uniform"], ["first", "second"], ["first", "uniform", "second"]]
)
def test_gather_equals_images_one_by_one(
    stores: dict[str, Path], names: list[str], residency: Any
) -> None:
    group = open_group(stores, names, residency)
    ids = list(dict.fromkeys(id for store in group.stores for id in store.image_ids.tolist()))

    @given(st.lists(st.sampled_from(ids), max_size=8))
    def any_batch(batch: list[int]) -> None:
        check(group, batch)

    any_batch()
    check(group, ids + ids[::-1])


def test_locate_searches_stores_in_order(stores: dict[str, Path]) -> None:
    group = open_group(stores, ["first", "second"], "disk")
    assert group.locate(np.array([11, 21, 99, 10])).tolist() == [1, 7, -1, 0]
    assert group.locate(np.array([], np.int64)).tolist() == []


def test_boxes_and_cells_need_every_store(stores: dict[str, Path], tmp_path: Path) -> None:
    plain = open_store(
        write_store(tmp_path / "plain.h5", make_images([1]), boxes=False, grid=False)
    )
    group = ImageGroup([open_store(stores["first"]), plain])
    found = group.gather(np.array([0, 5]))
    assert found.boxes is None
    assert found.cells is None


@pytest.mark.parametrize("residency", ["disk", "memory", "device"])
def test_pixels(tmp_path: Path, residency: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 4), np.uint8)
    stores: list[ImageStore] = []
    for name, numbers in (("a", [0, 1, 2]), ("b", [3, 4])):
        with PixelStoreWriter(tmp_path / name, (3, 2, 4)) as writer:
            for number in numbers:
                writer.add(number, pixels[number])
        stores.append(open_store(tmp_path / name).load(residency, "cpu"))
    for group, ids in (
        (ImageGroup(stores), [4, 0, 3, 3, 1]),
        (ImageGroup(stores[:1]), [2, 2, 0]),
        (ImageGroup(stores[:1]), []),
    ):
        found = group.gather(group.locate(np.array(ids, np.int64)))
        assert found.regions is None
        assert found.pixels is not None
        assert found.pixels.dtype == torch.uint8
        np.testing.assert_array_equal(found.pixels, pixels[ids])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=6))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    firsts, lengths = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = [first + step for first, length in pairs for step in range(length)]
    assert ranges(firsts, lengths).tolist() == expected


LISTS = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=5)


def pack(lists: list[list[int]]) -> Packed:
    offsets = np.cumsum([0, *(len(entry) for entry in lists)])
    return Packed(np.array([v for entry in lists for v in entry], np.int32), offsets)


@given(LISTS, LISTS, st.data(), st.one_of(st.none(), st.integers(1, 5)))
def test_packed_lists(
    left: list[list[int]], right: list[list[int]], data: st.DataObject, longest: int | None
) -> None:
    packed = Packed.concatenate([pack(left), pack(right)])
    lists = left + right
    assert len(packed) == len(lists)
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6))
    values, lengths = packed.take(np.array(chosen, np.int64), longest)
    cut = [lists[number][:longest] for number in chosen]
    assert values.tolist() == [value for entry in cut for value in entry]
    assert lengths.tolist() == [len(entry) for entry in cut]
