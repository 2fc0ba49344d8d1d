"""Decoding of every kind of picture, and the names of those that cannot be decoded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sketches import draw

from mcan.errors import DataError
from mcan.vision.pictures import PictureParts, Resize, list_pictures, read_picture


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (800, 600)),
        ((480, 640), (600, 800)),
        ((640, 427), (899, 600)),
        ((1000, 200), (1000, 200)),
        ((2000, 100), (1000, 50)),
        ((5000, 1), (1000, 1)),
        ((600, 600), (600, 600)),
        ((1, 1), (600, 600)),
    ],
)
def test_sizes_keep_the_aspect_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Resize(600, 1000)(*size) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (12, 8)).save(path)
    picture = read_picture(path, 1)
    assert picture.pixels.shape == (3, 8, 12)
    assert picture.pixels.dtype == np.uint8


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    image = draw(20, 30, 0)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 1)
    np.testing.assert_array_equal(picture.pixels.transpose(1, 2, 0), np.asarray(image))
    assert picture.size == (20, 30)


def test_turned_photos_are_turned(tmp_path: Path) -> None:
    image = draw(20, 30, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png", 1, Resize(40, 100))
    assert picture.size == (30, 20)
    assert picture.pixels.shape == (3, 40, 60)
    plain = read_picture(tmp_path / "a.png", 1).pixels.transpose(1, 2, 0)
    np.testing.assert_array_equal(plain, np.rot90(np.asarray(image), -1))


def test_list(folder: Path) -> None:
    (folder / "notes.txt").touch()
    found = list_pictures(folder, "coco")
    assert list(found) == [0, 1, 2, 3, 4, 5, 6]
    assert found[6] == folder / "sub" / "COCO_x_000000000006.png"
    assert next(iter(list_pictures(folder, "stem"))) == "COCO_x_000000000000"


def test_lists_that_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        list_pictures(tmp_path / "nowhere", "stem")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no picture"):
        list_pictures(tmp_path / "empty", "stem")
    draw(9, 9, 0).save(folder / "COCO_x_000000000006.jpg")
    with pytest.raises(DataError, match=r"000000000006\.jpg and .*sub.*000000000006\.png: both"):
        list_pictures(folder, "stem")
    draw(9, 9, 0).save(folder / "beach.jpg")
    with pytest.raises(DataError, match=r"beach\.jpg: the name 'beach' does not end in an integer"):
        list_pictures(folder, "coco")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("left", [0.0, 0.1, 0.6])
def test_truncated_pictures_are_named(tmp_path: Path, suffix: str, left: float) -> None:
    path = tmp_path / f"a.{suffix}"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (90, 60, 3), np.uint8)).save(path)
    os.truncate(path, int(path.stat().st_size * left))
    with pytest.raises(ValueError, match="not a readable picture"):
        read_picture(path, 1)
    name, (broken,) = PictureParts([("0", [(7, path)])], None)[0]
    assert (name, broken.image) == ("0", "7")
    assert f"a.{suffix}: not a readable picture" in broken.reason
