"""From a folder to a store: command, order, shards, resume, broken pictures."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sketches import SIZES, draw

from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.vision import extract
from mcan.vision.grid import GridExtractor
from mcan.vision.pictures import Resize, read_picture
from mcan.vision.region import Choice, RegionExtractor

SCRIPT = Path(__file__).parents[2] / "scripts" / "extract_features.py"
main = runpy.run_path(str(SCRIPT))["main"]
DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
GRID = ["--backbone", "resnet18", "--short-side", "64", "--long-side", "128"]
REGION = ["--detector", DETECTOR, "--short-side", "64"]


def run(task: str, folder: Path, output: Path, *more: str) -> int:
    sizes = GRID if task == "grid" else REGION
    common = ["--weights", "random", "--workers", "0", "--ids", "coco", "--device", "cpu"]
    return int(main([task, str(folder), "--output", str(output), *sizes, *common, *more]))


@pytest.mark.parametrize("more", [[], ["--workers", "2", "--batch-size", "2"]])
def test_grid(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    output = tmp_path / "out.h5"
    assert run("grid", folder, output, "--float32", *more) == 0
    shown = capsys.readouterr()
    assert "7 of 7 pictures" in shown.out
    assert "images/s" in shown.out
    assert "RANDOM WEIGHTS" in shown.err
    store = open_store(output)
    assert store.image_ids.tolist() == list(range(7))
    assert store.sizes.tolist() == [list(size) for size in SIZES]
    assert store.grid_shapes.tolist() == [[2, 3], [3, 2], [2, 3], [2, 2], [2, 4], [2, 3], [2, 4]]
    assert store.boxes is None
    extractor = GridExtractor("resnet18", "random")
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        pixels = torch.tensor(read_picture(path, number, Resize(64, 128)).pixels)
        with torch.inference_mode():
            (expected,) = extractor(pixels[None])
        rows = store.rows[slice(*store.offsets[number : number + 2])]
        np.testing.assert_allclose(rows, expected.features, atol=1e-5, rtol=1e-5)
    weights = store.provenance["extractor"]["weights"]
    assert weights == {"random": True, "seed": 0}


def test_region(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "out.h5"
    run("region", folder, output, "--min-boxes", "4", "--max-boxes", "6", "--float32")
    store = open_store(output)
    assert np.diff(store.offsets).tolist() == [4] * 7
    assert store.grid_shapes is None
    assert store.sizes.tolist() == [list(size) for size in SIZES]
    extractor = RegionExtractor(DETECTOR, "random", Choice(least=4, most=6), 64)
    pixels = torch.tensor(read_picture(folder / "COCO_x_000000000001.png", 1).pixels)
    with torch.inference_mode():
        (expected,) = extractor(pixels[None])
    np.testing.assert_allclose(store.boxes[4:8], expected.boxes, atol=1e-5)
    np.testing.assert_allclose(store.rows[4:8], expected.features, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("task", ["grid", "region"])
def test_bf16_is_near_float32(tmp_path: Path, folder: Path, task: str) -> None:
    run(task, folder, tmp_path / "a.h5")
    run(task, folder, tmp_path / "b.h5", "--precision", "bf16")
    exact, rounded = open_store(tmp_path / "a.h5"), open_store(tmp_path / "b.h5")
    assert exact.rows.shape == rounded.rows.shape
    a, b = (np.asarray(store.rows, np.float64).mean() for store in (exact, rounded))
    assert abs(a - b) < 0.05 * a


@pytest.mark.parametrize("task", ["grid", pytest.param("region", marks=pytest.mark.slow)])
def test_shards_make_the_whole(tmp_path: Path, folder: Path, task: str) -> None:
    run(task, folder, tmp_path / "whole.h5")
    shards = [tmp_path / f"shard{i}.h5" for i in (1, 2, 3)]
    for i, shard in enumerate(shards, 1):
        run(task, folder, shard, "--shard", f"{i}/3")
    main(["merge", *map(str, shards), "--output", str(tmp_path / "merged.h5")])
    whole, merged = open_store(tmp_path / "whole.h5"), open_store(tmp_path / "merged.h5")
    assert merged.image_ids.tolist() == [0, 3, 6, 1, 4, 2, 5]
    assert merged.provenance["extractor"] == whole.provenance["extractor"]
    assert [item["shard"] for item in merged.provenance["merged"]] == ["1/3", "2/3", "3/3"]
    for row, number in enumerate(merged.image_ids.tolist()):
        ours = slice(*merged.offsets[row : row + 2])
        theirs = slice(*whole.offsets[number : number + 2])
        np.testing.assert_allclose(merged.rows[ours], whole.rows[theirs], atol=2e-3)
        assert merged.sizes[row].tolist() == whole.sizes[number].tolist()
        if task == "grid":
            assert merged.grid_shapes[row].tolist() == whole.grid_shapes[number].tolist()
        else:
            np.testing.assert_allclose(merged.boxes[ours], whole.boxes[theirs], atol=1e-5)


def test_interrupted_extraction_continues(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_PART", 2)
    run("grid", folder, tmp_path / "whole.h5")
    output, real, calls = tmp_path / "out.h5", extract._describe, []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(extract, "_describe", stop)
    with pytest.raises(KeyboardInterrupt):
        run("grid", folder, output)
    with pytest.raises(DataError, match="continue it with --resume"):
        run("grid", folder, output)
    with pytest.raises(DataError, match="was begun with extractor ="):
        run("grid", folder, output, "--resume", "--precision", "bf16")
    assert not output.exists()
    run("grid", folder, output, "--resume")
    assert len(calls) == 3 + 2
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_broken_pictures_are_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "COCO_x_000000000003.png"
    os.truncate(bad, 100)
    (folder / "COCO_x_000000000009.jpg").touch()
    output = tmp_path / "out.h5"
    with pytest.raises(DataError, match=r"2 images cannot be stored \(3: .*3\.png: not a readable"):
        run("grid", folder, output)
    assert not output.exists()
    assert run("grid", folder, output, "--resume", "--skip-broken") == 0
    assert "left out: 2 pictures" in capsys.readouterr().out
    store = open_store(output)
    assert store.image_ids.tolist() == [0, 1, 2, 4, 5, 6]
    assert list(store.provenance["skipped"]) == ["3", "9"]
    listed = (tmp_path / "out.h5.broken.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["3", "9"]


def test_pictures_without_a_region(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Choice, "__call__", lambda self, boxes, *_: torch.zeros(0).long())
    with pytest.raises(DataError, match=r"7 images cannot be stored \(0: the detector proposes no"):
        run("region", folder, tmp_path / "out.h5")


def test_too_little_device_memory(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(GridExtractor, "forward", full)
    with pytest.raises(DataError, match=r"3 pictures of 96 x 64 pixels .* smaller --batch-size"):
        run("grid", folder, tmp_path / "out.h5")


def test_mistakes_are_one_sentence(tmp_path: Path, folder: Path) -> None:
    output = tmp_path / "out.h5"
    with pytest.raises(DataError, match="--device nonsense: cannot be used here"):
        run("grid", folder, output, "--device", "nonsense")
    with pytest.raises(DataError, match="--min-boxes 9 is above --max-boxes 5"):
        run("region", folder, output, "--min-boxes", "9", "--max-boxes", "5")
    with pytest.raises(DataError, match="no picture is left"):
        run("grid", folder, output, "--shard", "8/8")
    for bad in ("0/2", "3/2", "x", "1/0"):
        with pytest.raises(SystemExit):
            run("grid", folder, output, "--shard", bad)
    output.write_text("precious")
    with pytest.raises(DataError, match="already exists"):
        run("grid", folder, output)
    assert output.read_text() == "precious"
    done = subprocess.run(
        [
            sys.executable,
            SCRIPT,
            "grid",
            tmp_path / "no",
            "--output",
            output,
            "--weights",
            "random",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_provenance_is_json(tmp_path: Path, folder: Path) -> None:
    run("region", folder, tmp_path / "out.h5")
    provenance = open_store(tmp_path / "out.h5").provenance
    assert provenance["extractor"]["region"] == DETECTOR
    assert provenance["source"] == str(folder)
    json.dumps(provenance)


def test_two_pictures_of_one_name(tmp_path: Path, folder: Path) -> None:
    draw(9, 9, 0).save(folder / "COCO_y_000000000003.png")
    with pytest.raises(DataError, match="both have the image id 3"):
        run("grid", folder, tmp_path / "out.h5")
