"""Writers refuse bad images by name, need bounded memory, and leave all or nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcan.data import row_file
from mcan.data.store import open_store
from mcan.data.store_writer import PixelStoreWriter, RegionStoreWriter
from mcan.errors import DataError

GOOD = np.ones((2, 3), np.float32)
BOXES = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]])


def region_writer(path: Path, **flags: Any) -> RegionStoreWriter:
    return RegionStoreWriter(path, 3, **flags)


BAD_ADDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (r"image id 1 was added before", {}, {"image_id": 1}),
    (r"image id is 'x' while an earlier one is 1", {}, {"image_id": "x"}),
    (r"image id is 1.5, expected an integer or a string", {}, {"image_id": 1.5}),
    (r"image id is True, expected", {}, {"image_id": True}),
    (r"does not fit 64 bits", {}, {"image_id": 2**63}),
    (r"image 2: features are \(0, 3\), expected \(n >= 1, 3\)", {}, {"features": GOOD[:0]}),
    (r"image 2: features are \(2, 2\)", {}, {"features": GOOD[:, :2]}),
    (r"image 2: features are \(3,\)", {}, {"features": GOOD[0]}),
    (r"image 2: features are <U1, expected numbers", {}, {"features": [["a", "b", "c"]]}),
    (r"image 2: a feature value of nan is not finite", {}, {"features": GOOD * np.nan}),
    (r"image 2: a feature value of inf is not finite", {}, {"features": GOOD * np.inf}),
    (r"image 2: a feature value of 70000.0 does not fit float16", {}, {"features": GOOD * 7e4}),
    (r"image 2: boxes is missing", {"boxes": True}, {}),
    (r"image 2: boxes is given, but the store was opened without", {}, {"boxes": BOXES}),
    (r"image 2: boxes are \(1, 4\), expected \(2, 4\)", {"boxes": True}, {"boxes": BOXES[:1]}),
    (r"image 2: box .* divide pixel coordinates", {"boxes": True}, {"boxes": BOXES * 100}),
    (r"image 2: box .* x1 <= x2", {"boxes": True}, {"boxes": BOXES[:, ::-1]}),
    (r"image 2: box \[nan", {"boxes": True}, {"boxes": BOXES * np.nan}),
    (r"image 2: size is missing", {"sizes": True}, {}),
    (r"image 2: size is \(0, 5\)", {"sizes": True}, {"size": (0, 5)}),
    (r"grid_shape \(2, 2\) does not make its 2 rows", {"grid": True}, {"grid_shape": (2, 2)}),
    (r"grid_shape \(-1, -2\)", {"grid": True}, {"grid_shape": (-1, -2)}),
]


@pytest.mark.parametrize(("message", "flags", "image"), BAD_ADDS)
def test_bad_images_are_named_and_change_nothing(
    tmp_path: Path, message: str, flags: dict[str, Any], image: dict[str, Any]
) -> None:
    path = tmp_path / "a.h5"
    extra: dict[str, Any] = {
        "boxes": BOXES if flags.get("boxes") else None,
        "size": (4, 5) if flags.get("sizes") else None,
        "grid_shape": (1, 2) if flags.get("grid") else None,
    }
    with region_writer(path, **flags) as writer:
        writer.add(1, GOOD, **extra)
        with pytest.raises(DataError, match=message) as error:
            writer.add(**{"image_id": 2, "features": GOOD, **image})
        assert str(path) in str(error.value)
        writer.add(3, GOOD * 2, **extra)
    store = open_store(path)
    assert store.image_ids.tolist() == [1, 3]
    np.testing.assert_array_equal(store.rows, np.concatenate([GOOD, GOOD * 2]))


def test_text_ids_that_hdf5_cannot_hold(tmp_path: Path) -> None:
    with region_writer(tmp_path / "a.h5") as writer:
        for bad, message in (("a\0b", "NUL"), ("\ud800", "not valid Unicode")):
            with pytest.raises(DataError, match=message):
                writer.add(bad, GOOD)
        writer.add("fine", GOOD)


def test_boxes_a_little_outside_are_clipped(tmp_path: Path) -> None:
    with region_writer(tmp_path / "a.h5", boxes=True) as writer:
        writer.add(1, GOOD, np.array([[-0.0005, 0, 1.0005, 1], [0, 0, 0, 0]]))
    boxes = open_store(tmp_path / "a.h5").boxes
    np.testing.assert_array_equal(boxes, np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.float32))


def test_pixels_of_another_shape_or_type(tmp_path: Path) -> None:
    with PixelStoreWriter(tmp_path / "p.h5", (3, 2, 2)) as writer:
        for bad in (np.zeros((3, 2, 3), np.uint8), np.zeros((3, 2, 2), np.float32)):
            with pytest.raises(DataError, match=r"image 1: pixels are .*, expected uint8"):
                writer.add(1, bad)
        writer.add(1, np.zeros((3, 2, 2), np.uint8))


def test_existing_target_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(DataError, match="already exists"), region_writer(path):
        pytest.fail("must not get here")
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_target_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"

    def write() -> None:
        with region_writer(path) as writer:
            writer.add(1, GOOD)
            path.write_text("precious")

    with pytest.raises(DataError, match="appeared"):
        write()
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with region_writer(tmp_path / "a.h5", boxes=True) as writer:
            writer.add(1, GOOD, BOXES)
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image was added"), region_writer(tmp_path / "a.h5"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["append", "copy_into"])
def test_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(row_file.RowFile, step, full)
    with (
        pytest.raises(DataError, match=r"a\.h5: could not be written: No space left"),
        region_writer(tmp_path / "a.h5") as writer,
    ):
        writer.add(1, GOOD)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak_memory: Callable[..., int]
) -> None:
    monkeypatch.setattr(row_file, "_BLOCK_BYTES", 1 << 20)
    rows = np.ones((50, 1000), np.float16)

    def write() -> None:
        with RegionStoreWriter(tmp_path / "a.h5", 1000) as writer:
            for number in range(500):
                writer.add(number, rows)

    assert peak_memory(write) < 5e6
    assert (tmp_path / "a.h5").stat().st_size > 50e6
