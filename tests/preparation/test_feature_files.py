"""Every foreign format becomes the same store; broken, missing and hostile input gives one line,
publishes nothing and executes nothing."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import h5py
import numpy as np
import pytest
import torch
from foreign import Bomb, Foreign

from mcan.data.arrays import array_to_ids
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.preparation import feature_files
from mcan.preparation.feature_files import (
    LAYOUTS,
    FolderFiles,
    detect_layout,
    import_features,
    open_source,
    read_index,
    read_selected,
    read_sizes,
)
from mcan.preparation.feature_mapping import SourceOptions
from mcan.preparation.store_writer import FillOptions

FOUR = foreign.make_images(4, rows=3)
BAD = FOUR[1]


def convert(
    path: Path,
    output: Path,
    source: SourceOptions | None = None,
    selected: frozenset[str] | None = None,
    **options: Any,
) -> Any:
    sources = [open_source(path, None, source or SourceOptions())]
    import_features(sources, FillOptions(output, **options), selected)
    return open_store(output)


FAMILIES = {
    "npz": lambda root, images: foreign.write_npz(root / "deep" / "train2014", images).parent,
    "bottom-up-tsv": lambda root, images: foreign.write_bottom_up(root / "a.tsv", images),
    "lxmert-tsv": lambda root, images: foreign.write_lxmert(root / "a.tsv", images),
    "hdf5": lambda root, images: foreign.write_fixed(root / "train36.hdf5", images),
    "adaptive-hdf5": lambda root, images: foreign.write_adaptive(root / "train.hdf5", images),
    "numbered-hdf5": foreign.write_numbered_objects,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("block_bytes", [100, 8 << 20])
def test_region_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    monkeypatch.setattr(feature_files, "BLOCK_BYTES", block_bytes)
    images = foreign.make_images(20, rows=5 if name == "hdf5" else None)
    path = FAMILIES[name](tmp_path, images)
    assert detect_layout(path) == name
    store = convert(path, tmp_path / "out.h5")
    assert (len(store), store.rows.dtype) == (20, np.float16)
    assert (store.sizes is None) == (name in ("hdf5", "adaptive-hdf5"))
    assert store.provenance["sources"] == [{"format": name, "path": str(path)}]
    for image in images:
        image_id = foreign.text_id(image) if name == "numbered-hdf5" else image.number
        row = array_to_ids(store.image_ids).index(image_id)
        rows, boxes, _ = store.image(row)
        np.testing.assert_array_equal(rows, image.features.astype(np.float16))
        np.testing.assert_allclose(boxes, image.scaled_boxes, atol=1e-6)
        if store.sizes is not None:
            assert store.sizes[row].tolist() == [image.width, image.height]


def test_order_is_that_of_the_source_whatever_the_number_of_workers(tmp_path: Path) -> None:
    images = foreign.make_images(12)
    path = foreign.write_npz(tmp_path / "npz", images)
    alone = convert(path, tmp_path / "a.h5", dtype="float32")
    convert(path, tmp_path / "b.h5", dtype="float32", workers=2)
    assert alone.image_ids.tolist() == [image.number for image in images]
    np.testing.assert_array_equal(alone.rows, np.concatenate([i.features for i in images]))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert list(tmp_path.glob("*partial*")) == []


@pytest.mark.parametrize("kind", ["grid-pth", "numbered-hdf5"])
def test_grids_become_cells_row_by_row(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    if kind == "grid-pth":
        shapes = {9: (3, 5), 4: (1, 1), 100: (4, 2)}
        grids: dict[Any, Any] = {k: random.random((6, *s), np.float32) for k, s in shapes.items()}
        path = foreign.write_grids(tmp_path / "maps", grids)
    else:
        grids = {k: random.random((6, 7, 7), np.float32) for k in ("n1", "2", "3")}
        path = foreign.write_numbered_grid(tmp_path, grids)
    assert detect_layout(path) == kind
    store = convert(path, tmp_path / "out.h5", dtype="float32")
    assert store.boxes is None
    for number, image_id in enumerate(array_to_ids(store.image_ids)):
        grid = grids[image_id]
        rows, _, shape = store.image(number)
        assert tuple(shape) == grid.shape[1:]
        np.testing.assert_array_equal(rows.T.reshape(grid.shape), grid)


def test_several_sources_selected_images_and_ids_by_rule(tmp_path: Path) -> None:
    images = foreign.make_images(6)
    train = foreign.write_bottom_up(tmp_path / "train.tsv", images[:4])
    val = foreign.write_bottom_up(tmp_path / "val.tsv", images[4:])
    sources = [open_source(path, None, SourceOptions()) for path in (train, val)]
    import_features(sources, FillOptions(tmp_path / "out.h5"))
    assert open_store(tmp_path / "out.h5").image_ids.tolist() == [i.number for i in images]
    store = convert(train, tmp_path / "some.h5", selected=frozenset(["10", "24"]))
    assert store.image_ids.tolist() == [10, 24]
    names = ["n161313", "2370799"]
    path = foreign.write_lxmert(tmp_path / "a.tsv", images[:2], names)
    assert array_to_ids(convert(path, tmp_path / "a.h5").image_ids) == names
    path = foreign.write_npz(tmp_path / "npz", images)
    store = convert(path, tmp_path / "b.h5", SourceOptions(ids="stem"))
    assert array_to_ids(store.image_ids) == [image.coco_name for image in images]


def test_index_of_an_hdf5_file(tmp_path: Path) -> None:
    images = foreign.make_images(5, rows=3)
    path = foreign.write_fixed(tmp_path / "train36.hdf5", images)
    elsewhere = (tmp_path / "train36_imgid2idx.pkl").rename(tmp_path / "other.pkl")
    with pytest.raises(DataError, match=r"neither train36_imgid2idx\.json nor .* --index"):
        convert(path, tmp_path / "out.h5")
    store = convert(path, tmp_path / "out.h5", SourceOptions(index=elsewhere))
    assert sorted(store.image_ids.tolist()) == [image.number for image in images]


def test_pixel_boxes_need_sizes_from_elsewhere(tmp_path: Path) -> None:
    images = foreign.make_images(4)
    path = foreign.write_adaptive(tmp_path / "train.hdf5", images)
    with h5py.File(path, "r+") as file:
        del file["spatial_features"]
    with pytest.raises(DataError, match=r"4 broken .*boxes are in pixels .*--keys boxes="):
        convert(path, tmp_path / "a.h5")
    store = convert(path, tmp_path / "a.h5", SourceOptions(keys={"boxes": ""}))
    assert store.boxes is None
    sizes = {str(image.number): (image.width, image.height) for image in images}
    store = convert(path, tmp_path / "b.h5", SourceOptions(sizes=sizes))
    expected = np.concatenate([image.scaled_boxes for image in images])
    np.testing.assert_allclose(store.boxes, expected, atol=1e-6)
    del sizes["3"]
    with pytest.raises(DataError, match=r"3: train\.hdf5 row 0: .*its size is not in the file"):
        convert(path, tmp_path / "c.h5", SourceOptions(sizes=sizes))


def test_lines_are_read_once_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = foreign.make_images(3, rows=1, dim=1)
    path = foreign.write_bottom_up(tmp_path / "a.tsv", images)
    path.write_text("\n" + path.read_text().removesuffix("\n"))
    for block_bytes in range(1, path.stat().st_size + 2):
        monkeypatch.setattr(feature_files, "BLOCK_BYTES", block_bytes)
        source = open_source(path, "bottom-up-tsv", SourceOptions())
        found = [image for part in source.parts for image in source.read(part, None)]
        assert [image.image_id for image in found] == [3, 10, 17]


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a b c\n")
    (tmp_path / "folder").mkdir()
    foreign.write_npz(tmp_path / "two", FOUR)
    (tmp_path / "two" / "b.pth").touch()
    with h5py.File(tmp_path / "gqa_0.h5", "w") as file:
        file["a"], file["b"] = np.ones((2, 3)), np.ones((2, 4))
    for name, message in {
        "missing": "no such file or folder",
        "text": "text of 1 tab-separated column, expected several; give one",
        "folder": "contains files of no known format",
        "two": "contains files of npz and grid-pth",
        "gqa_0.h5": "contains a, b; say which are the features: --keys features=NAME",
    }.items():
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            detect_layout(tmp_path / name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_said_format_that_is_wrong(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x89nothing that anyone knows" * 20)
    with pytest.raises(DataError, match=r"x\.bin"):
        import_features(
            [open_source(path, name, SourceOptions())], FillOptions(tmp_path / "out.h5")
        )
    assert not (tmp_path / "out.h5").exists()


Make = Callable[[Path], Path]
"""Makes a source whose second image, with the id 10, is changed."""


def archive(change: Callable[[bytes], bytes], **changes: object) -> Make:
    def make(root: Path) -> Path:
        folder = foreign.write_npz(root / "npz", FOUR)
        file = folder / f"{BAD.coco_name}.jpg.npz"
        foreign.write_one_npz(file, BAD, **changes)
        file.write_bytes(change(file.read_bytes()))
        return folder

    return make


def npz(**changes: object) -> Make:
    return archive(bytes, **changes)


def line(column: int, *values: str) -> Make:
    def make(root: Path) -> Path:
        lines = [foreign.bottom_up_line(image).split("\t") for image in FOUR]
        lines[1][column : column + 1] = values
        path = root / "a.tsv"
        path.write_text("\n".join("\t".join(line) for line in lines))
        return path

    return make


def grid(content: object) -> Make:
    def make(root: Path) -> Path:
        grids = {n: np.ones((8, 2, 2), np.float32) for n in (3, 17, 24)}
        folder = foreign.write_grids(root / "grids", grids)
        torch.save(content, folder / "x_10.pth")
        return folder

    return make


BOMB = Bomb(Path("executed"))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("10: ", archive(lambda _: b"not a zip archive")),
        ("10: ", archive(lambda content: content[: len(content) // 2])),
        ("10: ", archive(lambda old: old[:150] + bytes([old[150] ^ 255]) + old[151:])),
        ("10: .*Object arrays cannot be loaded", npz(x=np.array([BOMB], dtype=object))),
        ("10: boxes: missing, but given for earlier images", npz(bbox=None)),
        (r"10: .* are \(4, 8\), expected 3 rows of width D; .* --axes", npz(x=np.ones((4, 8)))),
        (r"10: .*boxes are \(3,\), expected \(n, 4\)", npz(bbox=np.ones(3))),
        ("10: .*the image size is 0 x", npz(image_w=0)),
        ("10: box .* is not x1 <= x2", npz(image_w=1)),
        (r"10: row shape: \[2\], but \[8\] for earlier images", npz(x=np.ones((2, 3)))),
        ("10: .*all its features are zero", npz(x=np.ones((8, 0)), bbox=np.ones((0, 4)))),
        (r"byte \d+: the line has 5 columns, expected 6", line(5)),
        (r"byte \d+: the name '' does not end", line(0, "")),
        (r"10: a\.tsv byte \d+: invalid literal for int.* b'wide'", line(1, "wide")),
        (r"10: .*48 bytes are not 5 rows x 4 x 4 bytes", line(3, "5")),
        ("10: .*: Only base64 data is allowed", line(5, "&&&&")),
        ("10: .*0 bytes are not 3 rows x width x 4", line(5, "")),
        ("10: .*3 bytes are not 3 rows", line(5, "AAAA")),
        ("24: image id 24 was added before", line(0, "24")),
        (r"10: .* \(8, 8, 2\), .* --axes.* map", grid(torch.ones(8, 8, 2))),
        (r"10: .*which of a, b are .* --keys", grid({"a": 1, "b": torch.ones(8, 2, 2)})),
        (r"10: .*all its features are zero", grid(torch.ones(1, 8, 0, 2))),
        ("10: ", grid(BOMB)),
    ],
)
def test_broken_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, make: Make
) -> None:
    monkeypatch.chdir(tmp_path)
    source, output = make(tmp_path), tmp_path / "out.h5"
    with pytest.raises(DataError, match=f"1 broken and 0 missing .*{message}"):
        convert(source, output)
    assert not output.exists()
    store = convert(source, output, resume=True, skip_broken=True)
    assert sorted(store.image_ids.tolist()) == [3, 17, 24]
    (listed,) = (tmp_path / "out.h5.broken.tsv").read_text().splitlines()
    assert [listed.split("\t")[0]] == list(store.provenance["skipped"])
    assert not Path("executed").exists()


def test_broken_hdf5(tmp_path: Path) -> None:
    path = foreign.write_adaptive(tmp_path / "train.hdf5", FOUR)
    with h5py.File(path, "r+") as file:
        file["pos_boxes"][1], file["pos_boxes"][2] = (3, 3), (9, 13)
    with pytest.raises(DataError, match=r"10: .* row 1: pos_boxes are 3 and 3.* 17: .* 9 and 13"):
        convert(path, tmp_path / "out.h5")
    path = foreign.write_fixed(tmp_path / "train36.hdf5", FOUR)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(DataError, match=r"train36\.hdf5: cannot be read as a .*truncated"):
        convert(path, tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objectsNum", 0, "objectsNum is 0, expected 1 to 12"),
        ("width", "wide", "invalid literal for int.*'wide'"),
        ("idx", 2, r"10: gqa_objects_1\.h5 row 2: Index \(2\) out of range"),
        ("idx", -1, "its index has no image, or a negative row"),
        ("file", 7, r"gqa_objects_7\.h5: no such feature file"),
        ("idx", None, "expected an object of images with file and idx .*NoneType"),
    ],
)
def test_broken_info(tmp_path: Path, key: str, value: Any, message: str) -> None:
    foreign.write_numbered_objects(tmp_path, FOUR)
    path = tmp_path / "gqa_objects_info.json"
    info = json.loads(path.read_text())
    info["10"][key] = value
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match=message):
        convert(tmp_path, tmp_path / "out.h5")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_hold_plain_values_and_execute_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path, bomb = tmp_path / "a.pkl", pickle.dumps({1: Bomb(Path("executed"))}, protocol)
    hostile: list[Any] = [{1: np.int64(3)}, {1: Foreign}, [1, 2]]
    damaged = [b"", b"junk", b"cos\nsystem\n(S'touch executed'\ntR."]
    for content in [bomb, *(pickle.dumps(value, protocol) for value in hostile), *damaged]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.pkl: (is not pickled plain|expected an object)"):
            read_index(path)
    assert not Path("executed").exists()
    pickle.loads(bomb)  # the control
    assert Path("executed").exists()
    path.write_bytes(pickle.dumps({9: 0, "x": 1, 2**40: 2}, protocol))
    assert read_index(path) == {"9": 0, "x": 1, str(2**40): 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        *((value, "expected an object") for value in ({"1": "a"}, {"1": True}, {}, [1])),
        ({"1": 9}, r"train36\.hdf5 row 9: .*out of range"),
        ({"1": -1}, "a negative row"),
    ],
)
def test_wrong_index(tmp_path: Path, table: Any, message: str) -> None:
    path = foreign.write_fixed(tmp_path / "train36.hdf5", FOUR)
    (tmp_path / "train36_imgid2idx.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        convert(path, tmp_path / "out.h5")


def test_sizes_and_selected_images(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"images": [{"id": 1, "width": 2, "height": 0}]}')
    with pytest.raises(DataError, match=r"entry 0: width and height are \(2, 0\), expected"):
        read_sizes(path)
    path.write_text('{"images": [{"id": 1, "width": 2, "height": 3}]}')
    assert read_sizes(path) == {"1": (2, 3)}
    path.write_text("1\n\n 22 \n")
    assert read_selected(path) == {"1", "22"}
    path.write_text("\n")
    with pytest.raises(DataError, match="contains no image id"):
        read_selected(path)


main = runpy.run_path(str(Path(__file__).parents[2] / "scripts/import_features.py"))["main"]

IMAGES = foreign.make_images(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return foreign.write_npz(tmp_path / "npz", IMAGES)


def run(source: Path, output: Path, *more: str) -> None:
    assert main([str(source), "--output", str(output), "--workers", "0", *more]) == 0


def test_skip_broken_and_selected(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "x_1.npz").touch()
    output, ids = tmp_path / "out.h5", tmp_path / "ids.txt"
    ids.write_text("1\n3\n10\n11\n")
    run(folder, output, "--skip-broken", "--images", str(ids), "--float32")
    assert "left out: 1 broken and 1 missing images" in capsys.readouterr().out
    store = open_store(output)
    assert store.image_ids.tolist() == [3, 10]
    assert store.rows.dtype == np.float32
    command = f"{folder} --images {ids} --float32 --skip-broken --output STORE"
    assert store.provenance["command"] == f"python scripts/import_features.py {command}"
    listing = (tmp_path / "out.h5.broken.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listing] == ["1", "11"]


def test_a_worker_that_dies(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, more = FolderFiles._load, ("--workers", "1")

    def die(self: Any, file: Path) -> Any:
        if IMAGES[0].coco_name not in file.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(FolderFiles, "_load", die)
        with pytest.raises(DataError, match="a worker process died"):
            run(folder, tmp_path / "out.h5", *more)
    run(folder, tmp_path / "out.h5", *more, "--resume")


def test_repaired_line_of_a_block(tmp_path: Path) -> None:
    """The other images of the block are stored already; a duplicate is still refused."""
    lines = [foreign.bottom_up_line(image) for image in IMAGES[:4]]
    path, output = tmp_path / "a.tsv", tmp_path / "out.h5"
    path.write_text("\n".join([lines[0], lines[1][:-1] + "?", lines[2], lines[2]]))
    with pytest.raises(DataError, match="2 broken and 0"):
        run(path, output)
    path.write_text("\n".join([lines[0], lines[1], lines[2], lines[2]]))
    with pytest.raises(DataError, match=r"1 broken and 0 .*\(17: image id 17 was added"):
        run(path, output, "--resume")
    path.write_text("\n".join([*lines[:3], " " * len(lines[2])]))
    run(path, output, "--resume")
    assert sorted(open_store(output).image_ids.tolist()) == [3, 10, 17]
