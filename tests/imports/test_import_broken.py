"""Broken, missing and hostile input: one sentence each, nothing published, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import h5py
import numpy as np
import pytest
import torch
from foreign import Foreign

from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.importing.convert import import_features
from mcan.importing.formats import open_source
from mcan.importing.plain_pickle import read_plain_pickle
from mcan.importing.source import Options
from mcan.importing.tables import read_index, read_sizes, read_wanted

IMAGES = foreign.make_images(4, rows=3)
BAD = IMAGES[1]


def convert(path: Path, output: Path, **settings: Any) -> None:
    import_features([("", open_source(path, None, Options()))], output, **settings)


def npz(**changes: object) -> Callable[[Path], None]:
    return lambda path: foreign.write_one_npz(path, BAD, **changes)


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pickled_npz(path: Path) -> None:
    array = np.array([Bomb(path.parent.parent / "executed")], dtype=object)
    np.savez(path, x=array, bbox=BAD.boxes, image_w=1, image_h=1)


def cut(path: Path) -> None:
    foreign.write_one_npz(path, BAD)
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    foreign.write_one_npz(path, BAD)
    content = bytearray(path.read_bytes())
    content[150] ^= 255
    path.write_bytes(content)


BROKEN_NPZ: list[tuple[str, Callable[[Path], object]]] = [
    ("", lambda path: path.write_bytes(b"")),
    ("", lambda path: path.write_bytes(b"not a zip archive")),
    ("", cut),
    ("", flipped),
    ("Object arrays cannot be loaded", pickled_npz),
    ("array 'bbox' is missing", npz(bbox=None)),
    ("array 'x' is missing", npz(x=None)),
    (r"x is \(3, 8\), expected \(D, 3\)", npz(x=BAD.features)),
    (r"x is \(8,\), expected", npz(x=np.ones(8))),
    (r"boxes are float64 \(3,\)", npz(bbox=np.ones(3))),
    ("features are <U1, expected numbers", npz(x=np.full((8, 3), "a"))),
    ("the image size is 0 x", npz(image_w=0)),
    ("box .* is not x1 <= x2", npz(image_w=1)),
    ("value of nan is not finite", npz(x=np.full((8, 3), np.nan))),
    ("value of 100000.0 does not fit float16", npz(x=np.full((8, 3), 1e5))),
    (r"features are \(3, 2\), expected \(n >= 1, 8\)", npz(x=np.ones((2, 3)))),
    (r"features are \(0, 8\)", npz(x=np.ones((8, 0)), bbox=np.ones((0, 4)))),
]


@pytest.mark.parametrize(("message", "damage"), BROKEN_NPZ)
def test_broken_npz(tmp_path: Path, message: str, damage: Callable[[Path], object]) -> None:
    folder = foreign.write_npz(tmp_path / "npz", IMAGES)
    path = folder / f"{BAD.coco_name}.jpg.npz"
    damage(path)
    output = tmp_path / "out.h5"
    with pytest.raises(DataError, match="1 image cannot be stored .*10: .*" + message) as error:
        convert(folder, output)
    assert "\n" not in str(error.value)
    assert not output.exists()
    assert (tmp_path / "out.h5.broken.tsv").read_text().startswith("10\t")
    convert(folder, output, resume=True, skip_broken=True)
    store = open_store(output)
    assert store.image_ids.tolist() == [3, 17, 24]
    assert list(store.provenance["skipped"]) == ["10"]
    assert not (tmp_path / "executed").exists()


def test_names_without_an_integer(tmp_path: Path) -> None:
    folder = foreign.write_npz(tmp_path / "npz", IMAGES)
    foreign.write_one_npz(folder / "beach.npz", BAD)
    with pytest.raises(DataError, match=r"beach\.npz: the name 'beach' does not end in an integer"):
        convert(folder, tmp_path / "out.h5")


def field(number: int, value: str) -> Callable[[str], str]:
    def change(line: str) -> str:
        fields = line.split("\t")
        fields[number] = value
        return "\t".join(fields)

    return change


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"byte \d+: the line has 5 columns, expected 6", lambda line: line.rsplit("\t", 1)[0]),
        (r"byte \d+: the name '' does not end", field(0, "")),
        (r"10: image_w is b'wide', expected an integer", field(1, "wide")),
        (r"10: the image size is 0 x", field(1, "0")),
        (r"10: boxes has 48 bytes, which are not float32 rows of 5", field(3, "5")),
        (r"10: boxes has 48 bytes, which are not float32 rows of 0", field(3, "0")),
        (r"10: boxes have 12 numbers each, expected 4", field(3, "1")),
        (r"10: features is not base64", lambda line: line[:-3]),
        (r"10: features is not base64", field(5, "&&&&")),
        (r"10: features has 0 bytes", field(5, "")),
        (r"10: features has 93 bytes", lambda line: line[:-4]),
        (r"24: image id 24 was added before", field(0, "24")),
    ],
)
def test_broken_lines(tmp_path: Path, message: str, change: Callable[[str], str]) -> None:
    lines = [foreign.bottom_up_line(image) for image in IMAGES]
    lines[1] = change(lines[1])
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"1 image cannot be stored .*{message}"):
        convert(path, tmp_path / "out.h5")
    convert(path, tmp_path / "out.h5", resume=True, skip_broken=True)
    assert len(open_store(tmp_path / "out.h5")) == 3


def test_a_line_without_end_needs_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcan.importing import tsv

    monkeypatch.setattr(tsv, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(tsv, "BLOCK_BYTES", 3000)
    path = foreign.write_bottom_up(tmp_path / "a.tsv", IMAGES[:1])
    with path.open("a") as file:
        file.write("x" * 10000 + "\n" + foreign.bottom_up_line(IMAGES[2]))
    convert(path, tmp_path / "out.h5", skip_broken=True)
    assert open_store(tmp_path / "out.h5").image_ids.tolist() == [3, 17]


def save(value: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        (r"holds \(8, 2, 2\), expected a tensor \(1, D, h, w\)", save(torch.ones(8, 2, 2))),
        ("holds dict", save({"a": 1})),
        (r"holds torch.int64", save(torch.ones(1, 8, 2, 2, dtype=torch.int64))),
        (r"features are \(0, 8\)", save(torch.ones(1, 8, 0, 2))),
        ("", lambda path: path.write_bytes(b"junk")),
        ("", lambda path: save(Bomb(path.parent.parent / "executed"))(path)),
    ],
)
def test_broken_grids(tmp_path: Path, message: str, damage: Callable[[Path], object]) -> None:
    grids = {n: np.ones((8, 2, 2), np.float32) for n in (1, 2)}
    folder = foreign.write_grids(tmp_path / "grids", grids)
    damage(folder / "x_10.pth")
    with pytest.raises(DataError, match=f"1 image cannot be stored .*10: .*{message}"):
        convert(folder, tmp_path / "out.h5")
    assert not (tmp_path / "executed").exists()


def edit_hdf5(path: Path, name: str, where: Any, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file[name][where] = value


@pytest.mark.parametrize(("ends", "message"), [((3, 3), "3 and 3"), ((9, 13), "9 and 13, which")])
def test_positions_outside_an_adaptive_file(
    tmp_path: Path, ends: tuple[int, int], message: str
) -> None:
    path = foreign.write_adaptive(tmp_path / "train.hdf5", IMAGES)
    edit_hdf5(path, "pos_boxes", 1, ends)
    with pytest.raises(DataError, match=rf"10: train\.hdf5 row 1: pos_boxes are {message}"):
        convert(path, tmp_path / "out.h5")


def test_truncated_hdf5(tmp_path: Path) -> None:
    path = foreign.write_fixed(tmp_path / "train36.hdf5", IMAGES)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(DataError, match=r"train36\.hdf5: .* truncated"):
        convert(path, tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objectsNum", 0, "objectsNum is 0, expected 1 to 12"),
        ("objectsNum", 13, "objectsNum is 13"),
        ("width", "wide", "expected integers width, height, objectsNum"),
        ("idx", 2, r"image '10': idx is 2, but gqa_objects_1\.h5 has 2 rows"),
        ("file", 7, r"gqa_objects_7\.h5: there is no such feature file"),
        ("idx", None, "image '10': expected integers file, idx"),
    ],
)
def test_broken_info(tmp_path: Path, key: str, value: Any, message: str) -> None:
    foreign.write_numbered_objects(tmp_path, IMAGES)
    path = tmp_path / "gqa_objects_info.json"
    info = json.loads(path.read_text())
    info["10"][key] = value
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=message):
        convert(tmp_path, tmp_path / "out.h5")


@pytest.mark.parametrize(
    "hostile",
    [
        lambda target: {1: Bomb(target)},
        lambda target: {Bomb(target): 1},
        lambda target: Bomb(target),
        lambda target: {1: np.int64(3)},
        lambda target: {1: Foreign},
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_execute_nothing(
    tmp_path: Path, hostile: Callable[[Path], Any], protocol: int
) -> None:
    path, target = tmp_path / "a.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps(hostile(target), protocol))
    with pytest.raises(DataError, match=r"a\.pkl: not a pickled dictionary of plain .*it names"):
        read_plain_pickle(path)
    assert not target.exists()


def test_a_hostile_pickle_would_have_executed(tmp_path: Path) -> None:
    """The control of the test above."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pickle.dumps({1: 2})[:-3],
        pickle.dumps([1, 2]),
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"\x80\x02}q\x00(K\x01\x82\x01u.",
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.pkl: "):
        read_index(tmp_path / "a.pkl")


def test_plain_pickles_of_every_protocol(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({9: 0, "x": 1, 2**40: 2}, protocol))
        assert read_index(tmp_path / "a.pkl") == {"9": 0, "x": 1, str(2**40): 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"1": "a"}, "entry '1' is 'a', expected image id -> row number"),
        ({"1": True}, "entry '1' is True"),
        ({}, "expected an object"),
        ([1], "expected an object"),
        ({"1": 9}, r"image '1' is at row 9, but .*train36\.hdf5 has the rows 0 to 3"),
        ({"1": -1}, "is at row -1"),
    ],
)
def test_wrong_index(tmp_path: Path, table: Any, message: str) -> None:
    path = foreign.write_fixed(tmp_path / "train36.hdf5", IMAGES)
    (tmp_path / "train36_imgid2idx.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        convert(path, tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not the JSON expected"),
        ('{"a": []}', "it has no list 'images'"),
        ('{"images": [{"id": 1, "width": 2}]}', "entry 0 of 'images' has no id, width and height"),
    ],
)
def test_wrong_sizes(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_sizes(tmp_path / "a.json")


def test_sizes_and_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [{"id": 1, "width": 2, "height": 3}]}')
    assert read_sizes(tmp_path / "a.json") == {"1": (2, 3)}
    (tmp_path / "a.txt").write_text("1\n\n 22 \n")
    assert read_wanted(tmp_path / "a.txt") == {"1", "22"}
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no image id"):
        read_wanted(tmp_path / "a.txt")


def test_missing_images_are_named(tmp_path: Path) -> None:
    folder = foreign.write_npz(tmp_path / "npz", IMAGES)
    wanted = frozenset(["3", "24", "99", "n7"])
    with pytest.raises(DataError, match=r"2 wanted images not in the source \(99, n7\)"):
        convert(folder, tmp_path / "out.h5", wanted=wanted)
    convert(folder, tmp_path / "out.h5", wanted=wanted, resume=True, skip_broken=True)
    store = open_store(tmp_path / "out.h5")
    assert store.image_ids.tolist() == [3, 24]
    assert store.provenance["skipped"] == {
        "99": "is not in the source",
        "n7": "is not in the source",
    }


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "a_1.npz").touch()
    with pytest.raises(DataError, match=r"npz: no image can be read; 1: a_1\.npz: "):
        convert(tmp_path / "npz", tmp_path / "out.h5", skip_broken=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["npz"]
