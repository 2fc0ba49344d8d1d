"""The rooms that share the layout of VQA, and VizWiz, which has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rooms import (
    TEST,
    TRAIN,
    VAL,
    annotations_of,
    load_room,
    questions_of,
    targets,
    write_json,
)

from mcan.data.prepared import Prepared
from mcan.errors import DataError

ONE = ["--min-answer-count", "1"]


def prepare(name: str, folder: Path, *arguments: str) -> Prepared:
    output = folder / "prepared"
    room = load_room(name)
    assert room.main(["--raw", str(folder / "raw"), "--output", str(output), *arguments]) == 0
    return Prepared.open(output)


def test_vqa_v1(tmp_path: Path) -> None:
    for split, year, rows in (("Train", "train2014", TRAIN), ("Val", "val2014", VAL)):
        archive = tmp_path / "raw" / f"Questions_{split}_mscoco.zip"
        write_json(archive / f"MultipleChoice_mscoco_{year}_questions.json", {"questions": []})
        write_json(
            archive / f"OpenEnded_mscoco_{year}_questions.json", {"questions": questions_of(rows)}
        )
        write_json(
            tmp_path
            / "raw"
            / f"Annotations_{split}_mscoco.zip"
            / f"mscoco_{year}_annotations.json",
            {"annotations": annotations_of(rows)},
        )
    for year, rows in (("test2015", TEST), ("test-dev2015", TEST[1:])):
        archive = tmp_path / "raw" / "Questions_Test_mscoco.zip"
        write_json(
            archive / f"OpenEnded_mscoco_{year}_questions.json", {"questions": questions_of(rows)}
        )
    prepared = prepare("vqa_v1", tmp_path, *ONE)
    assert prepared.dataset == "vqa_v1"
    assert [(name, len(prepared.split(name))) for name in prepared.splits] == [
        ("train", 6),
        ("val", 2),
        ("test", 2),
        ("test-dev", 1),
    ]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_vqa_cp(tmp_path: Path, version: str) -> None:
    for split, rows in (("train", TRAIN), ("test", VAL)):
        start = tmp_path / "raw" / f"vqacp_{version}_{split}"
        for kind, entries in (
            ("questions", questions_of(rows)),
            ("annotations", annotations_of(rows)),
        ):
            listed = [{**entry, "coco_split": "train2014"} for entry in entries]
            write_json(start.with_name(f"{start.name}_{kind}.json"), listed)
    prepared = prepare(f"vqa_cp_{version}", tmp_path, *ONE)
    assert prepared.splits == ("train", "test")
    assert targets(prepared, "test") == {40: {"yes": 1.0}, 41: {}}


def test_ok_vqa(tmp_path: Path) -> None:
    for year, rows in (("train2014", TRAIN), ("val2014", VAL)):
        for name, content in (
            (f"OpenEnded_mscoco_{year}_questions.json", {"questions": questions_of(rows)}),
            (
                f"mscoco_{year}_annotations.json",
                {"annotations": annotations_of(rows, chosen=False)},
            ),
        ):
            write_json(tmp_path / "raw" / f"{name}.zip" / name, content)
    prepared = prepare("ok_vqa", tmp_path)
    # At least 9 of all people's answers: 18 yes, 10 dog, 12 no, 10 times nothing; 7 times "2".
    assert prepared.vocabulary.answers == ("yes", "dog", "no", "")
    assert prepared.splits == ("train", "test")


def vizwiz(split: str, count: int, answers: list[str] | None) -> list[dict[str, Any]]:
    return [
        {
            "image": f"VizWiz_{split}_{number:08}.jpg",
            "question": "What is this?",
            **(
                {
                    "answers": [{"answer": text, "answer_confidence": "yes"} for text in answers],
                    "answer_type": "unanswerable" if number % 2 else "other",
                    "answerable": 1 - number % 2,
                }
                if answers
                else {}
            ),
        }
        for number in range(count)
    ]


ANSWERS = ["unanswerable"] * 6 + ["a can"] * 3 + ["soda can"]


def test_vizwiz(tmp_path: Path) -> None:
    archive = tmp_path / "raw" / "Annotations.zip"
    write_json(archive / "Annotations" / "train.json", vizwiz("train", 4, ANSWERS))
    write_json(archive / "Annotations" / "val.json", vizwiz("val", 3, ANSWERS))
    write_json(archive / "Annotations" / "test.json", vizwiz("test", 2, None))
    prepared = prepare("vizwiz", tmp_path, "--top-answers", "2")
    assert prepared.vocabulary.answers == ("unanswerable", "can")
    val = prepared.split("val")
    assert val.question_ids[2] == "VizWiz_val_00000002.jpg"
    assert val.image_ids[2] == "VizWiz_val_00000002"
    assert [val.question_types.names[code] for code in val.question_types.codes] == [
        "answerable",
        "unanswerable",
        "answerable",
    ]
    assert val.answer_types.names == ("other", "unanswerable")
    assert targets(prepared, "val")["VizWiz_val_00000000.jpg"] == {"unanswerable": 1.0, "can": 0.9}
    assert prepared.split("test").human_answers.of(0) == []


def changed(number: int, **fields: Any) -> list[dict[str, Any]]:
    entries = vizwiz("train", 3, ANSWERS)
    entries[number] = {k: v for k, v in {**entries[number], **fields}.items() if v is not ...}
    return entries


MALFORMED = [
    ("entry 1: 'image' is missing", changed(1, image=...)),
    ("entry 1: 'image' is 5, expected text", changed(1, image=5)),
    ("entry 1: 'question' is missing", changed(1, question=...)),
    (
        "image 'VizWiz_train_00000000.jpg' occurred before",
        changed(2, image="VizWiz_train_00000000.jpg"),
    ),
    ("image 'VizWiz_train_00000002.jpg' has no answers while others have", changed(2, answers=...)),
    ("entry 0: 'answers' is [], expected", changed(0, answers=[])),
    ("entry 0: 'answer_type' is missing", changed(0, answer_type=...)),
    ("entry 0: 'answerable' is missing", changed(0, answerable=...)),
    ("entry 0: 'answerable' is 'yes', expected 0 or 1", changed(0, answerable="yes")),
    ("expected [, found {", {"questions": []}),
    ("the list is empty", []),
]


@pytest.mark.parametrize(("message", "content"), MALFORMED)
def test_malformed_vizwiz(tmp_path: Path, message: str, content: Any) -> None:
    path = write_json(tmp_path / "train.json", content)
    with pytest.raises(DataError) as error:
        prepare("vizwiz", tmp_path, "--files", "train", str(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_vizwiz_splits_are_one_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--files train: expected 1 to 1 files, found 2"):
        prepare("vizwiz", tmp_path, "--files", "train", "a.json", "b.json")
