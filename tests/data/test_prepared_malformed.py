"""Damaged or foreign prepared folders end in one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from toys import VOCABULARY, make_examples, write_folder

from mcan.data.hdf5 import TEXT
from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.text.vocabulary import Vocabulary


def replace(name: str, data: Any, **options: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options)

    return damage


def put(name: str, place: int, value: int) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file[name][place] = value

    return damage


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file.attrs[name] = value

    return damage


def without(name: str) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]

    return damage


NAMES = [
    "question_ids",
    "questions",
    "tokens",
    "token_offsets",
    "image_ids",
    "image_index",
    "target_index",
    "target_score",
    "target_offsets",
    "human_answers",
    "answer_type",
    "answer_type_names",
    "question_type",
    "question_type_names",
]
DAMAGES: list[tuple[str, Callable[[h5py.File], None]]] = [
    *((f"dataset '{name}' is missing", without(name)) for name in NAMES),
    ("format version is 0, this program reads 1", attribute("format_version", 0)),
    ("another vocabulary than .*vocabulary.json", attribute("vocabulary", "abc")),
    (r"'tokens' is int64 \(\d+,\), expected int32", replace("tokens", np.zeros(5, np.int64))),
    (r"'questions' is int64 .*, expected UTF-8 text \(12,\)", replace("questions", [1] * 12)),
    (r"'questions' is UTF-8 text \(1,\), expected", replace("questions", ["a"], dtype=TEXT)),
    (r"'question_ids' is float64", replace("question_ids", np.zeros(12))),
    (r"'question_ids' is int64 \(3,\), expected .*\(12,\)", replace("question_ids", [1, 2, 3])),
    (r"'image_index' is int32 \(2, 6\)", replace("image_index", np.zeros((2, 6), np.int32))),
    (r"'image_index' holds 4, expected 0 to 3", put("image_index", 2, 4)),
    (r"'image_index' holds -1, expected 0 to 3", put("image_index", 2, -1)),
    (r"'tokens' holds 99, expected 0 to \d+", put("tokens", 0, 99)),
    (r"'token_offsets' must start at 0, rise by at least 1", put("token_offsets", 1, 0)),
    (r"'token_offsets' must .* end at", put("token_offsets", -1, 3)),
    (r"'token_offsets' is int64 \(2,\), expected int64 \(13,\)", replace("token_offsets", [0, 5])),
    (r"'target_index' holds 5, expected 0 to 4", put("target_index", 0, 5)),
    (r"'target_offsets' must", put("target_offsets", 3, 10**12)),
    (r"'target_score' is .*, expected float32", replace("target_score", np.ones(1, np.float32))),
    (r"'target_score' holds values outside \(0, 1\]", put("target_score", 0, 2)),
    (r"'answer_type' holds 7, expected 0 to 2", put("answer_type", 0, 7)),
    (r"'question_type' holds -3", put("question_type", 0, -3)),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGES)
def test_damaged_split(folder: Path, message: str, damage: Callable[[h5py.File], None]) -> None:
    path = folder / "train.h5"
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=message) as error:
        Prepared.open(folder).split("train")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(Prepared.open(folder).split("test")) == 3


LAZY: list[tuple[str, str, Callable[[h5py.File], None]]] = [
    ("human_answers", "'answer_strings' is missing", without("answer_strings")),
    ("human_answers", "'human_answers' holds 99", put("human_answers", 0, 99)),
    ("human_answers", "'human_answer_offsets' must", put("human_answer_offsets", 1, -1)),
    ("questions", "cannot be read", replace("questions", [b"\xff"] * 12, dtype=TEXT)),
]


@pytest.mark.parametrize(("name", "message", "damage"), LAZY)
def test_damage_that_shows_when_text_is_read(
    folder: Path, name: str, message: str, damage: Callable[[h5py.File], None]
) -> None:
    with h5py.File(folder / "train.h5", "r+") as file:
        damage(file)
    split = Prepared.open(folder).split("train")
    with pytest.raises(DataError, match=rf"train\.h5.*{message}"):
        getattr(split, name)


def test_truncated_anywhere(folder: Path) -> None:
    path = folder / "train.h5"
    content = path.read_bytes()
    for size in range(0, len(content), 1009):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"train\.h5: this prepared split cannot be read"):
            Prepared.open(folder).split("train")


META: list[tuple[str, Any]] = [
    ("not valid JSON", "{"),
    ("not valid JSON", "[" * 100_000),
    ("format_version is None, this program reads 1", []),
    ("format_version is 2, this program reads 1", {"format_version": 2}),
    ("'dataset' is None, expected a str", {"dataset": None}),
    ("'metric' is 3, expected a str", {"metric": 3}),
    (r"'splits' is \['train'\], expected a dict", {"splits": ["train"]}),
    ("'splits.train.questions' is missing", {"splits": {"train": {}}}),
    ("'files' is None, expected a list", {"files": None}),
]


@pytest.mark.parametrize(("message", "change"), META)
def test_damaged_meta(folder: Path, message: str, change: Any) -> None:
    path = folder / "meta.json"
    if isinstance(change, dict):
        change = {**json.loads(path.read_text()), **change}
    path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(DataError, match=rf"meta\.json: .*{message}"):
        Prepared.open(folder)


def test_missing_parts(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such prepared dataset; run"):
        Prepared.open(folder / "nowhere")
    with pytest.raises(DataError, match=r"no split 'val'; there is train, test"):
        Prepared.open(folder).split("val")
    (folder / "train.h5").unlink()
    with pytest.raises(DataError, match=r"train\.h5: there is no such prepared split"):
        Prepared.open(folder).split("train")
    (folder / "vocabulary.json").unlink()
    with pytest.raises(DataError, match=r"vocabulary\.json"):
        Prepared.open(folder)
    (folder / "meta.json").unlink()
    with pytest.raises(DataError, match=r"meta\.json: cannot be read .*not a prepared dataset"):
        Prepared.open(folder)


def test_files_of_another_preparation(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "other", {"train": make_examples(5, [0])})
    (folder / "train.h5").write_bytes((tmp_path / "other" / "train.h5").read_bytes())
    with pytest.raises(DataError, match=r"holds 5 questions while .*meta\.json says 12"):
        Prepared.open(folder).split("train")
    changed = Vocabulary(VOCABULARY.tokens, (*VOCABULARY.answers, "4"))
    (folder / "vocabulary.json").write_text(changed.to_json())
    with pytest.raises(DataError, match="another vocabulary"):
        Prepared.open(folder).split("test")
