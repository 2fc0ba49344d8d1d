"""The easy-VQA dataset folder, on a tiny wheel of the same layout."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vqa_toys import load_recipe, prepare

from mcan.data.arrays import array_to_ids
from mcan.data.store import open_store
from mcan.errors import DataError

RECIPE = load_recipe("easy_vqa")
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


def make_wheel(path: Path) -> str:
    """Write a wheel and return its SHA-256."""
    members = {
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
        for name, content in members.items():
            wheel.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = make_wheel(tmp_path / "w.whl")
    prepared = prepare(RECIPE, tmp_path, "--raw", str(tmp_path / "w.whl"), sha256=digest)
    assert prepared.metric == "exact"
    assert prepared.vocabulary.answers == ("rectangle", "blue", "yes")
    store = open_store(prepared.folder / "images.h5")
    for row, image_id in enumerate(array_to_ids(store.image_ids)):
        np.testing.assert_array_equal(store.rows[row], PIXELS[str(image_id)].transpose(2, 0, 1))
    train, test = prepared.split("train"), prepared.split("test")
    assert (train.question_ids.tolist(), test.question_ids.tolist()) == ([0, 1, 2], [3])
    assert array_to_ids(train.image_ids[train.image_index]) == ["train/0", "train/0", "train/1"]
    assert list(train.human_answers) == [["rectangle"], ["blue"], ["yes"]]
    assert train.target_answers.values.tolist() == [0, 1, 2]
    assert len(test.target_answers.values) == 0
    assert train.answer_types.names == ("shape", "color", "yes/no")
    assert train.question_types.names == (
        "what is the <color> shape?",
        "what color is the shape?",
        "is there not a <color> <shape>?",
    )
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[-2][:5] == ["train", "3", "2", "16", "0"]
    assert printed[-1][:5] == ["test", "1", "1", "5", "2"]  # teal, present


def test_missing_and_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "w.whl"
    message = rf"of SHA-256 fcb51b.*: pip download --no-deps easy-vqa==1.0 -d {tmp_path}"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            prepare(RECIPE, tmp_path, "--raw", str(path))
        make_wheel(path)
    assert list(tmp_path.iterdir()) == [path]
