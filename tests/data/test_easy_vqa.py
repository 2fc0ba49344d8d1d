"""The easy-VQA room, on a tiny wheel of the same layout."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcan.data.dataset import VQADataset
from mcan.data.preflight import preflight
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.errors import DataError, command

SCRIPT = Path(__file__).parents[2] / "data" / "easy_vqa" / "prepare.py"
TRAIN = [
    ["what is the blue shape?", "rectangle", 0],
    ["what color is the shape?", "blue", 0],
    ["is there not a red circle?", "yes", 1],
]
TEST = [["is a teal shape present?", "no", 0]]
PIXELS = {
    name: np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    for seed, name in enumerate(["train/0", "train/1", "test/0"])
}


@pytest.fixture(scope="module")
def room() -> ModuleType:
    spec = importlib.util.spec_from_file_location("easy_vqa_prepare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(path: Path, **replaced: bytes | None) -> str:
    """Write a wheel, with some members `replaced` or (None) left out; return its SHA-256."""
    members: dict[str, bytes] = {
        "easy_vqa/__init__.py": b"raise SystemExit('must not be imported')",
        "easy_vqa/data/train/questions.json": json.dumps(TRAIN).encode(),
        "easy_vqa/data/test/questions.json": json.dumps(TEST).encode(),
    }
    for name, pixels in PIXELS.items():
        split, number = name.split("/")
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        members[f"easy_vqa/data/{split}/images/{number}.png"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {**members, **replaced}.items():
            if content is not None:
                wheel.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(room: ModuleType, folder: Path, *more: str, **replaced: Any) -> Path:
    digest = make_wheel(folder / "w.whl", **replaced)
    output = folder / "prepared"
    arguments = ["--raw", str(folder / "w.whl"), "--output", str(output), *more]
    assert room.main(arguments, sha256=digest) == 0
    return output


def test_prepared_folder(
    room: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = prepare(room, tmp_path)
    assert sorted(file.name for file in output.iterdir()) == [
        "images.h5",
        "meta.json",
        "test.h5",
        "train.h5",
        "vocabulary.json",
    ]
    prepared = Prepared.open(output)
    assert prepared.metric == "exact"
    assert prepared.vocabulary.answers == ("rectangle", "blue", "yes")
    store = open_store(output / "images.h5")
    for row, image_id in enumerate(store.image_ids.tolist()):
        np.testing.assert_array_equal(store.rows[row], PIXELS[image_id].transpose(2, 0, 1))
    train = VQADataset([prepared.split("train")], [store])
    assert train.question_ids(range(3)) == [0, 1, 2]
    assert train.image_ids(range(3)) == ["train/0", "train/0", "train/1"]
    assert train.human_answers(range(3)) == [["rectangle"], ["blue"], ["yes"]]
    assert train.answer_types.names == ("shape", "color", "yes/no")
    assert train.question_types.names == (
        "what is the <color> shape?",
        "what color is the shape?",
        "is there not a <color> <shape>?",
    )
    dense = train[[0, 1, 2]].targets.dense(3, 3)
    np.testing.assert_array_equal(dense, np.eye(3))
    both = VQADataset([prepared.split("train"), prepared.split("test")], [store])
    report = preflight(both)
    assert (report.questions, report.images, report.without_target) == (4, 3, 1)
    assert both.question_ids([3]) == [3]
    printed = capsys.readouterr().out.split()
    assert printed[-8:] == ["train", "3", "2", "0", "test", "1", "1", "2"]  # teal, present


def test_existing_output_needs_force(room: ModuleType, tmp_path: Path) -> None:
    output = prepare(room, tmp_path)
    stamp = (output / "meta.json").stat().st_mtime_ns
    with pytest.raises(DataError, match="already exists; replace it with --force"):
        prepare(room, tmp_path)
    assert (output / "meta.json").stat().st_mtime_ns == stamp
    prepare(room, tmp_path, "--force")


QUESTIONS = "easy_vqa/data/train/questions.json"
IMAGE = "easy_vqa/data/train/images/1.png"
BROKEN: list[tuple[str, dict[str, bytes | None]]] = [
    ("questions.json is missing", {QUESTIONS: None}),
    ("questions.json is not valid JSON", {QUESTIONS: b"["}),
    ("questions.json is not valid JSON", {QUESTIONS: b"\xff\xfe["}),
    ("questions.json is not a list", {QUESTIONS: b"{}"}),
    (r"entry 0 of .* is \['a', 'b'\], expected", {QUESTIONS: b'[["a", "b"]]'}),
    (r"entry 0 of .* expected \[question", {QUESTIONS: b'[["a", "b", "0"]]'}),
    ("split has no question", {QUESTIONS: b"[]"}),
    ("images/1.png is missing", {IMAGE: None}),
    ("images/1.png is not a readable PNG", {IMAGE: b"GIF89a"}),
]


@pytest.mark.parametrize(("message", "replaced"), BROKEN)
def test_broken_wheels(
    room: ModuleType, tmp_path: Path, message: str, replaced: dict[str, bytes | None]
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(room, tmp_path, **replaced)
    assert [file.name for file in tmp_path.iterdir()] == ["w.whl"]


def test_images_of_another_size(room: ModuleType, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 64)).save(buffer, "png")
    with pytest.raises(DataError, match=r"image 'train/1': pixels are uint8 \(3, 64, 32\)"):
        prepare(room, tmp_path, **{IMAGE: buffer.getvalue()})


def test_wrong_file(room: ModuleType, tmp_path: Path) -> None:
    make_wheel(tmp_path / "w.whl")
    with pytest.raises(DataError, match=r"SHA-256 is .*, expected fcb51b.*; download it again"):
        room.main(["--raw", str(tmp_path / "w.whl"), "--output", str(tmp_path / "out")])
    text = tmp_path / "text"
    text.write_text("no zip")
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="not a readable wheel"):
        room.main(["--raw", str(text), "--output", str(tmp_path / "out")], sha256=digest)
    assert not (tmp_path / "out").exists()


def test_missing_wheel_is_one_sentence(
    room: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--raw", str(tmp_path / "raw" / "w.whl"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as status:
        command(lambda: room.main(arguments))
    assert status.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"pip download --no-deps easy-vqa==1.0 -d {tmp_path / 'raw'}" in printed.err
    assert list(tmp_path.iterdir()) == []
