"""Features are found by names and axes, not by project: layouts that users brought, in every
container; what does not fit or cannot be right is said."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import h5py
import numpy as np
import pytest
import torch
from foreign import Bomb, encode

from mcan.data.arrays import array_to_ids
from mcan.data.store import open_store
from mcan.errors import DataError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures/features"
main = runpy.run_path(str(ROOT / "scripts/import_features.py"))["main"]
IMAGES = foreign.make_images(3, dim=64)


def run(source: Path, output: Path, *more: str) -> Any:
    main([str(source), "--output", str(output), "--workers", "0", "--float32", *more])
    return open_store(output)


@pytest.mark.parametrize(
    ("name", "more", "ids", "shape", "boxes"),
    [
        ("npz_rows_by_width", [], [9, 25], (22, 32), True),
        ("padded_regions.tsv", [], [9, 25], (56, 16), True),
        ("trainval_36.h5", [], [9, 25], (8, 16), True),
        ("clevr_val_features.h5", ["--ids", "row"], [0, 1], (18, 8), False),
        ("vinvl.tsv", [], [9, 25], (6, 22), False),
        ("9.pt", [], [9], (5, 16), False),
        ("names_with_suffix.tsv", [], [9, 25], (8, 32), True),
        (
            *("names_with_suffix.tsv", ["--ids", "stem"]),
            [f"COCO_train2014_{number:012d}" for number in (9, 25)],
            *((8, 32), True),
        ),
    ],
)
def test_files_that_users_have(
    tmp_path: Path, name: str, more: list[str], ids: list[Any], shape: Any, boxes: bool
) -> None:
    store = run(FIXTURES / name, tmp_path / "out.h5", *more)
    assert array_to_ids(store.image_ids) == ids
    assert store.rows.shape == shape
    assert (store.boxes is not None) == boxes


def save_npz(path: Path, fields: dict[str, Any]) -> None:
    np.savez(path.with_suffix(".npz"), **fields)


def save_pt(path: Path, fields: dict[str, Any]) -> None:
    x, boxes = (torch.from_numpy(fields.pop(name)) for name in ("x", "bbox"))
    torch.save({"x": x, "of": {"bbox": boxes, **fields}}, path.with_suffix(".pt"))


def save_safetensors(path: Path, fields: dict[str, Any]) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items()}
    numpy.save_file(arrays, path.with_suffix(".safetensors"))


def save_group(path: Path, fields: dict[str, Any]) -> None:
    with h5py.File(path.with_name("all.h5"), "a") as file:
        group = file.create_group(f"val/{path.name}.jpg")
        for name, value in fields.items():
            if np.ndim(value):
                group[name] = value
            else:
                group.attrs[name] = value


NESTED = "boxes=of.bbox size=of.image_w,of.image_h count=of.num_bbox"


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize(
    ("save", "keys"), [(save_npz, ""), (save_pt, NESTED), (save_safetensors, ""), (save_group, "")]
)
def test_one_file_or_group_per_image(
    tmp_path: Path, save: Callable[[Path, dict[str, Any]], None], keys: str, rows_first: bool
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for image in IMAGES:
        x = image.features if rows_first else np.ascontiguousarray(image.features.T)
        sides = {"image_w": image.width, "image_h": image.height}
        fields = {"x": x, "bbox": image.boxes, **sides, "num_bbox": len(x if rows_first else x.T)}
        save(folder / f"COCO_{image.number:06d}", fields)
    source = folder / "all.h5" if save is save_group else folder
    store = run(source, tmp_path / "out.h5", *(["--keys", *keys.split()] if keys else []))
    assert store.image_ids.tolist() == [image.number for image in IMAGES]
    np.testing.assert_array_equal(store.rows, np.concatenate([i.features for i in IMAGES]))
    np.testing.assert_allclose(
        store.boxes, np.concatenate([i.scaled_boxes for i in IMAGES]), atol=1e-6
    )
    assert store.sizes.tolist() == [[image.width, image.height] for image in IMAGES]


ROWS = IMAGES[0].features
MAP = np.abs(np.random.default_rng(0).standard_normal((64, 3, 5))).astype(np.float32)


@pytest.mark.parametrize(
    ("fields", "more", "expected", "grid"),
    [
        ({"x": ROWS}, [], ROWS, None),
        ({"x": ROWS[0]}, [], ROWS[:1], None),
        ({"x": ROWS[None]}, [], ROWS, None),
        ({"emb": ROWS.T}, ["--axes", "columns"], ROWS, None),
        ({"emb": ROWS.T}, ["--feature-size", "64"], ROWS, None),
        ({"x": MAP[None]}, [], MAP.reshape(64, 15).T, (3, 5)),
        ({"x": MAP.transpose(1, 2, 0)}, ["--axes", "rows"], MAP.reshape(64, 15).T, (3, 5)),
        ({"x": MAP[:4]}, ["--axes", "map"], MAP[:4].reshape(4, 15).T, (3, 5)),
        ({"x": MAP[0], "y": ROWS}, ["--keys", "features=y"], ROWS, None),
        ({"Features": ROWS, "y": MAP[0]}, [], ROWS, None),
        ({"x": ROWS, "bbox": np.ones((9, 4))}, ["--keys", "boxes="], ROWS, None),
        ({"x": np.pad(ROWS, ((0, 9), (0, 0)))}, [], ROWS, None),
        ({"x": np.pad(ROWS, ((0, 9), (0, 0)), "edge"), "num_boxes": len(ROWS)}, [], ROWS, None),
    ],
)
def test_names_and_axes(
    tmp_path: Path, fields: dict[str, Any], more: list[str], expected: Any, grid: Any
) -> None:
    np.savez(tmp_path / "9.npz", **fields)
    rows, _, shape = run(tmp_path, tmp_path / "out.h5", *more).image(0)
    np.testing.assert_array_equal(rows, expected)
    assert (shape if shape is None else tuple(shape)) == grid


@pytest.mark.parametrize(
    ("fields", "more", "message"),
    [
        ({"x": ROWS}, ["--keys", "features=z"], "there is no 'z' for features among x"),
        ({"x": ROWS.T}, [], "say how they lie with --axes: rows"),
        ({"x": MAP.transpose(1, 2, 0)}, [], "expected n rows of width D; say how they lie"),
        ({"x": ROWS}, ["--feature-size", "32"], "expected n rows of width 32"),
        ({"x": np.ones((4, 4)), "bbox": np.ones((4, 4))}, [], "expected 4 rows of width D; say"),
        ({"x": ROWS, "bbox": IMAGES[0].boxes}, [], "in pixels and its size .*--keys size=WIDTH"),
        ({"x": ROWS, "num_boxes": 99}, [], "num_boxes is 99, expected 1 to"),
        ({"x": ROWS * 0}, [], "all its features are zero"),
        ({"x": np.array([["a", "b"]])}, [], "features are <U1, expected numbers"),
        ({"x": ROWS}, ["--keys", "width=3"], "expected any of features=NAME boxes=NAME"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, fields: dict[str, Any], more: list[str], message: str
) -> None:
    np.savez(tmp_path / "9.npz", **fields)
    with pytest.raises(DataError, match=message):
        run(tmp_path, tmp_path / "out.h5", *more)


def test_plain_arrays_and_nothing_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "9.npy", ROWS)
    torch.save({"a": Bomb(tmp_path / "executed")}, tmp_path / "7.pt")
    store = run(tmp_path, tmp_path / "a.h5", "--format", "npy")
    assert store.provenance["notes"] == [f"{tmp_path}: left out 1 other file: 7.pt"]
    np.testing.assert_array_equal(store.rows, ROWS)
    np.save(tmp_path / "7.npy", {"a": Bomb(tmp_path / "executed")}, allow_pickle=True)
    for name in ("7.npy", "7.pt"):
        with pytest.raises(DataError, match="1 broken"):
            run(tmp_path / name, tmp_path / "c.h5")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("ids", "more", "expected"),
    [
        ([5, 7, 9], [], [5, 7, 9]),
        (["val/COCO_5.jpg", "val/COCO_7.jpg", "val/COCO_9.jpg"], [], [5, 7, 9]),
        (["b/5.png", "b/7.png", "b/9.png"], ["--ids", "path"], ["b/5", "b/7", "b/9"]),
        (None, ["--ids", "row"], [0, 1, 2]),
    ],
)
def test_ids_of_hdf5_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: Any, more: list[str], expected: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5", "w") as file:
        file["features"] = np.stack([ROWS] * 3)
        if ids:
            file["img_ids"] = ids
    if not ids:
        with pytest.raises(DataError, match=r"--keys id=NAME, --index FILE, or --ids row"):
            run(Path("a.h5"), Path("out.h5"))
    assert array_to_ids(run(Path("a.h5"), Path("out.h5"), *more).image_ids) == expected


def write_tsv(path: Path, kind: Any, box_kind: Any = np.float32, header: str = "") -> Path:
    lines = [header]
    for image in IMAGES:
        numbers = [image.number, image.width, image.height, len(image.boxes)]
        arrays = [encode(image.boxes.astype(box_kind)), encode(image.features.astype(kind))]
        lines.append("\t".join([*map(str, numbers), *arrays]) + "\n")
    path.write_text("".join(lines))
    return path


def test_other_types_in_tsv_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tsv(tmp_path / "a.tsv", np.float16, np.float16)
    with pytest.raises(DataError, match=r"look like float16; .*--feature-size \(64\?\)"):
        run(path, tmp_path / "a.h5")
    store = run(path, tmp_path / "a.h5", "--feature-size", "64")
    np.testing.assert_allclose(
        store.rows, np.concatenate([i.features for i in IMAGES]), rtol=1e-3, atol=1e-6
    )
    for kind, more in (
        (np.float64, ["--feature-size", "64"]),
        (np.float32, ["--feature-size", "32"]),
        (np.float32, ["--feature-size", "128"]),
    ):
        with pytest.raises(DataError, match=r"bytes are not .* rows|does not fit"):
            run(write_tsv(path, kind), tmp_path / "b.h5", *more)
    run(write_tsv(path, np.float64), tmp_path / "b.h5")
    assert "features are huge; are they of another type" in capsys.readouterr().err


def test_rounded_float32_is_no_float16(tmp_path: Path) -> None:
    image = IMAGES[0]
    for number, x in enumerate([image.features.astype(np.float16), np.rint(image.features) + 1]):
        image.features = x.astype(np.float32)
        run(write_tsv(tmp_path / "a.tsv", np.float32), tmp_path / f"{number}.h5")


def test_columns_of_tsv(tmp_path: Path) -> None:
    """By a header, by numbers, or inside JSON, also one object for each region."""
    names = "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n"
    expected = run(write_tsv(tmp_path / "a.tsv", np.float32, header=names), tmp_path / "a.h5")
    lines = (tmp_path / "a.tsv").read_text().splitlines()[1:]
    (tmp_path / "b.tsv").write_text("".join(f"x\t{line}\n" for line in lines))
    keys = ["id=2", "size=3,4", "count=5", "boxes=6", "features=7"]
    store = run(tmp_path / "b.tsv", tmp_path / "b.h5", "--keys", *keys)
    assert store.digest == expected.digest
    with (tmp_path / "c.tsv").open("w") as file:
        for image in IMAGES:
            regions = zip(image.boxes.tolist(), image.features, strict=True)
            objects = [{"rect": box, "feature": encode(row)} for box, row in regions]
            content = {"image_w": image.width, "image_h": image.height, "objects": objects}
            file.write(f"{image.number}\t{json.dumps(content)}\n")
    keys = ["features=objects.feature", "boxes=objects.rect"]
    store = run(tmp_path / "c.tsv", tmp_path / "c.h5", "--keys", *keys)
    assert store.digest == expected.digest


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also after a run that was cut short."""
    divided = {"bbox": np.array([[0, 0, 0.2, 0.3]] * 2), "image_w": 9, "image_h": 9}
    for number in range(3):
        np.savez(
            tmp_path / f"{number}.npz", x=np.pad(ROWS[:1] * 0 + 1, ((0, 1), (0, 0))), **divided
        )
    np.savez(tmp_path / "3.npz", x=1)
    with pytest.raises(DataError, match="1 broken"):
        run(tmp_path, tmp_path / "out.h5")
    run(tmp_path, tmp_path / "out.h5", "--resume", "--skip-broken")
    shown = capsys.readouterr()
    for line in (
        "regions kept for their box, though their features are zero: 3",
        "images whose boxes were divided by their size already: 3",
        "images with the rows of an earlier image: 2",
        "constant columns: 0 of 64",
        "largest coordinate of a box: 0.300",
    ):
        assert line in shown.out
    assert "images with the same rows: 1 as 0, 2 as 0" in shown.err
    assert "all boxes lie in a corner; were they divided twice" in shown.err


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[safetensors\]'"):
        run(tmp_path, tmp_path / "out.h5")
