"""Every foreign format becomes the same store, and is recognised without being told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest

from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.importing import hdf5_files, tsv
from mcan.importing.convert import import_features
from mcan.importing.formats import FORMATS, detect_format, open_source
from mcan.importing.source import Options


def convert(path: Path, output: Path, options: Options | None = None, **settings: Any) -> Any:
    name = detect_format(path)
    import_features([(name, open_source(path, name, options or Options()))], output, **settings)
    return open_store(output)


FAMILIES = {
    "npz": lambda root, images: foreign.write_npz(root / "deep" / "train2014", images).parent,
    "bottom-up-tsv": lambda root, images: foreign.write_bottom_up(root / "a.tsv", images),
    "lxmert-tsv": lambda root, images: foreign.write_lxmert(root / "a.tsv", images),
    "hdf5": lambda root, images: foreign.write_fixed(root / "train36.hdf5", images),
    "adaptive-hdf5": lambda root, images: foreign.write_adaptive(root / "train.hdf5", images),
    "numbered-hdf5": foreign.write_numbered_objects,
}
WITHOUT_SIZES = {"hdf5", "adaptive-hdf5"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("block_bytes", [100, 8 << 20])
def test_region_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    for module in (hdf5_files, tsv):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    images = foreign.make_images(20, rows=5 if name == "hdf5" else None)
    path = FAMILIES[name](tmp_path, images)
    assert detect_format(path) == name
    store = convert(path, tmp_path / "out.h5")
    assert len(store) == 20
    assert store.rows.dtype == np.float16
    assert (store.sizes is None) == (name in WITHOUT_SIZES)
    for image in images:
        image_id = foreign.text_id(image) if name == "numbered-hdf5" else image.number
        ids = np.array([image_id], object if isinstance(image_id, str) else np.int64)
        row = int(store.rows_of(ids)[0])
        where = slice(*store.offsets[row : row + 2])
        np.testing.assert_array_equal(store.rows[where], image.features.astype(np.float16))
        np.testing.assert_allclose(store.boxes[where], image.scaled_boxes, atol=1e-6)
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
    assert detect_format(path) == kind
    store = convert(path, tmp_path / "out.h5", dtype="float32")
    assert store.boxes is None
    for number, image_id in enumerate(store.image_ids.tolist()):
        grid = grids[image_id]
        rows = store.rows[slice(*store.offsets[number : number + 2])]
        height, width = grid.shape[1:]
        assert store.grid_shapes[number].tolist() == [height, width]
        for cell in range(len(rows)):
            np.testing.assert_array_equal(rows[cell], grid[:, cell // width, cell % width])


def test_several_sources_become_one_store(tmp_path: Path) -> None:
    images = foreign.make_images(6)
    paths = [
        foreign.write_bottom_up(tmp_path / "train.tsv", images[:4]),
        foreign.write_bottom_up(tmp_path / "val.tsv", images[4:]),
    ]
    sources = [("bottom-up-tsv", open_source(path, None, Options())) for path in paths]
    import_features(sources, tmp_path / "out.h5")
    assert open_store(tmp_path / "out.h5").image_ids.tolist() == [i.number for i in images]


def test_ids_by_rule(tmp_path: Path) -> None:
    images = foreign.make_images(2)
    names = ["n161313", "2370799"]
    path = foreign.write_lxmert(tmp_path / "a.tsv", images, names)
    assert convert(path, tmp_path / "a.h5").image_ids.tolist() == names
    path = foreign.write_npz(tmp_path / "npz", images)
    store = convert(path, tmp_path / "b.h5", Options(ids="stem"))
    assert store.image_ids.tolist() == [image.coco_name for image in images]


@pytest.mark.parametrize("as_json", [True, False])
def test_index_of_an_hdf5_file(tmp_path: Path, as_json: bool) -> None:
    images = foreign.make_images(5, rows=3)
    path = foreign.write_fixed(tmp_path / "train36.hdf5", images, as_json)
    (beside,) = tmp_path.glob("*imgid2idx*")
    elsewhere = beside.rename(tmp_path / f"other{beside.suffix}")
    with pytest.raises(DataError, match=r"neither train36_imgid2idx\.json nor .* --index"):
        convert(path, tmp_path / "out.h5")
    store = convert(path, tmp_path / "out.h5", Options(index=elsewhere))
    assert sorted(store.image_ids.tolist()) == [image.number for image in images]


def test_pixel_boxes_need_sizes_from_elsewhere(tmp_path: Path) -> None:
    images = foreign.make_images(4)
    path = foreign.write_adaptive(tmp_path / "train.hdf5", images, with_spatial=False)
    source = open_source(path, None, Options())
    assert source.note is not None
    assert "boxes are left out" in source.note
    assert convert(path, tmp_path / "a.h5").boxes is None
    sizes = {str(image.number): (image.width, image.height) for image in images}
    store = convert(path, tmp_path / "b.h5", Options(sizes=sizes))
    expected = np.concatenate([image.scaled_boxes for image in images])
    np.testing.assert_allclose(store.boxes, expected, atol=1e-6)
    del sizes["3"]
    with pytest.raises(DataError, match=r"3: train\.hdf5 row 0: its size is not in the file"):
        convert(path, tmp_path / "c.h5", Options(sizes=sizes))


def test_only_wanted_images(tmp_path: Path) -> None:
    images = foreign.make_images(20)
    path = foreign.write_bottom_up(tmp_path / "a.tsv", images)
    store = convert(path, tmp_path / "out.h5", wanted=frozenset(["10", "24"]))
    assert store.image_ids.tolist() == [10, 24]


def test_lines_are_read_once_wherever_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = foreign.make_images(3, rows=1, dim=1)
    path = foreign.write_bottom_up(tmp_path / "a.tsv", images)
    path.write_text("\n" + path.read_text().removesuffix("\n"))
    for block_bytes in range(1, path.stat().st_size + 2):
        monkeypatch.setattr(tsv, "BLOCK_BYTES", block_bytes)
        source = open_source(path, "bottom-up-tsv", Options())
        found = [image for part in source.parts for image in source.read(part, None)]
        assert [image.image_id for image in found] == [3, 10, 17]


def unknown(root: Path, kind: str) -> Path:
    path = root / kind
    if kind == "empty":
        path.touch()
    elif kind in ("folder", "two"):
        path.mkdir()
        for name in ("a.npz", "b.pth") if kind == "two" else ("a.txt",):
            (path / name).touch()
    elif kind == "text":
        path.write_text("a\tb\tc\n")
    elif kind == "x.tar.gz":
        path.touch()
    elif kind != "missing":
        import h5py

        with h5py.File(path, "w") as file:
            for name in {"gqa_0.h5": ["features"], "store": ["features", "offsets"]}.get(kind, []):
                file[name] = [0]
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no such file or folder"),
        ("empty", "its first line has 1 columns, expected 6"),
        ("text", "its first line has 3 columns, expected 6"),
        ("folder", r"this folder holds no \.npz, \.pth or \*_info\.json file"),
        ("two", "this folder holds files of npz and grid-pth"),
        ("x.tar.gz", "is an archive; unpack it"),
        ("gqa_0.h5", r"expected image_features; give its \*_info\.json"),
        ("store", "is an image store already"),
        ("other.h5", "holds nothing, expected image_features"),
    ],
)
def test_what_is_no_feature_file(tmp_path: Path, kind: str, message: str) -> None:
    path = unknown(tmp_path, kind)
    with pytest.raises(DataError, match=message) as error:
        detect_format(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_said_format_that_is_wrong(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x89nothing that anyone knows" * 20)
    with pytest.raises(DataError, match=r"x\.bin"):
        import_features([(name, open_source(path, name, Options()))], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_provenance(tmp_path: Path) -> None:
    path = foreign.write_npz(tmp_path / "npz", foreign.make_images(2))
    provenance = convert(path, tmp_path / "out.h5").provenance
    assert provenance["sources"] == [{"format": "npz", "path": str(path)}]
    assert "skipped" not in provenance
    json.dumps(provenance)
