"""Damaged or foreign store files end in one sentence that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from toys import make_images, write_store

from mcan.data.hdf5 import TEXT
from mcan.data.images import ImageGroup
from mcan.data.store import open_store
from mcan.errors import DataError


def replace(name: str, **options: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return damage


def delete(name: str) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]

    return damage


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file.attrs[name] = value

    return damage


def chunk(file: h5py.File) -> None:
    features = file["features"][()]
    replace("features", data=features, chunks=(4, 5), compression="gzip")(file)


def never_written(file: h5py.File) -> None:
    replace("features", shape=file["features"].shape, dtype="f2")(file)


def group(file: h5py.File) -> None:
    del file["features"]
    file.create_group("features")


def external(file: h5py.File) -> None:
    del file["image_ids"]
    file["image_ids"] = h5py.ExternalLink("nowhere.h5", "/image_ids")


def offsets(file: h5py.File, change: Callable[[np.ndarray], None]) -> None:
    values = file["offsets"][()]
    change(values)
    file["offsets"][...] = values


def empty_image(values: np.ndarray) -> None:
    values[1] = values[2]


def shift(values: np.ndarray) -> None:
    values[0] = 1


def shorten(values: np.ndarray) -> None:
    values[-1] -= 1


CASES: list[tuple[str, Callable[[h5py.File], None]]] = [
    (r"attribute 'kind' is None", lambda file: file.attrs.__delitem__("kind")),
    (r"attribute 'kind' is 'videos'", attribute("kind", "videos")),
    (r"format version is 9, this program reads 1", attribute("format_version", 9)),
    (r"attribute 'provenance' is not a JSON object", attribute("provenance", "{")),
    (r"attribute 'provenance' is not a JSON object", attribute("provenance", 4)),
    (r"dataset 'features' is missing", delete("features")),
    (r"dataset 'features' is missing", group),
    (r"dataset 'features' is float64", replace("features", data=np.zeros((9, 5)))),
    (
        r"is float16 \(9,\), expected float16 or float32 \(any, any\)",
        replace("features", data=np.zeros(9, "f2")),
    ),
    (r"'features' is >f2", replace("features", data=np.zeros((9, 5), ">f2"))),
    (r"'features' is not stored contiguously.*h5repack", chunk),
    (r"'features' is not stored contiguously", never_written),
    (r"dataset 'offsets' is missing", delete("offsets")),
    (r"dataset 'offsets' is int64 \(4,\), expected int64 \(5,\)", replace("offsets", data=[0] * 4)),
    (r"'offsets' is float64", replace("offsets", data=[0.0] * 5)),
    (r"'offsets' must start at 0, rise by at least 1", lambda f: offsets(f, empty_image)),
    (r"'offsets' must start at 0", lambda f: offsets(f, shift)),
    (r"'offsets' must .* end at", lambda f: offsets(f, shorten)),
    (r"dataset 'image_ids' is missing", delete("image_ids")),
    (r"dataset 'image_ids' is", external),
    (r"image id 3 occurs more than once", replace("image_ids", data=[3, 1, 3, 5])),
    (
        r"image id 'b' occurs more than once",
        replace("image_ids", data=["a", "b", "b", "c"], dtype=TEXT),
    ),
    (r"'image_ids' is int32", replace("image_ids", data=np.arange(4, dtype=np.int32))),
    (r"'image_ids' is text of another kind", replace("image_ids", data=np.array([b"a"] * 4))),
    (r"'offsets' is int64 \(5,\), expected int64 \(3,\)", replace("image_ids", data=[1, 2])),
    (r"the store holds no image", replace("image_ids", data=np.empty(0, np.int64))),
    (r"dataset 'boxes' is float32 \(2, 4\)", replace("boxes", data=np.zeros((2, 4), "f4"))),
    (r"dataset 'sizes' is int64", replace("sizes", data=np.ones((4, 2), np.int64))),
    (r"entry 0 of dataset 'grid_shapes'", replace("grid_shapes", data=np.ones((4, 2), "i4") * 99)),
]


@pytest.mark.parametrize(("message", "damage"), CASES)
def test_damaged_stores(
    store: Callable[..., Path], message: str, damage: Callable[[h5py.File], None]
) -> None:
    path = store()
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=message) as error:
        open_store(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "no.h5", tmp_path):
        with pytest.raises(DataError, match="there is no such image store"):
            open_store(path)


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for content in (b"", b"id,features\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.h5: this image store cannot be read"):
            open_store(path)


def test_truncated_anywhere(store: Callable[..., Path], tmp_path: Path) -> None:
    content = store().read_bytes()
    path = tmp_path / "cut.h5"
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"cut\.h5: .*truncated"):
            open_store(path)


def test_stores_that_do_not_fit_together(tmp_path: Path) -> None:
    first = open_store(write_store(tmp_path / "a.h5", make_images([1])))
    for name, store in {
        "wide.h5": write_store(tmp_path / "wide.h5", make_images([2], dim=6)),
        "float32.h5": write_store(tmp_path / "float32.h5", make_images([2]), "float32"),
    }.items():
        with pytest.raises(DataError, match=rf"{name} holds regions .* while .*a\.h5 holds"):
            ImageGroup([first, open_store(store)])
