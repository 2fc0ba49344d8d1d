"""The VQA v2 room: official files, the reference's vocabularies, Visual Genome."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
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
    write_split,
)

from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.text.tokens import tokenise

# In train, "yes" is the chosen answer twice, all others once.
RULE = ["--min-answer-count", "2"]
PAIRS = [
    {
        "id": 100,
        "qas": [
            {"qa_id": 7, "image_id": 100, "question": "Is it Tuesday?", "answer": "Yes."},
            {"qa_id": 8, "image_id": 100, "question": "Which animal?", "answer": "A zebra."},
        ],
    },
    {"id": 101, "qas": [{"qa_id": 9, "image_id": 101, "question": "Open?", "answer": "No"}]},
    {"id": 102, "qas": [{"qa_id": 10, "image_id": 102, "question": "Shut?", "answer": "No"}]},
    {"id": 103, "qas": [{"qa_id": 11, "image_id": 103, "question": "New?", "answer": "no"}]},
    {"id": 104, "qas": []},
]
# 100 and 101 are in train and val, 102 is not in COCO, 103 is a COCO image of neither.
IMAGES = [
    {"image_id": 100, "coco_id": 1, "width": 800},
    {"image_id": 101, "coco_id": 4},
    {"image_id": 102, "coco_id": None},
    {"image_id": 103, "coco_id": 999},
    {"image_id": 104, "coco_id": 2},
]


@pytest.fixture(scope="module")
def room() -> ModuleType:
    return load_room("vqa_v2")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [
        *write_split(tmp_path, "train", TRAIN),
        *write_split(tmp_path, "val", VAL),
        *write_split(tmp_path, "test", TEST),
        *RULE,
    ]


def genome(folder: Path, pairs: Any = PAIRS, images: Any = IMAGES) -> list[str]:
    return [
        "--visual-genome",
        str(write_json(folder / "question_answers.json", pairs)),
        str(write_json(folder / "image_data.json", images)),
    ]


def prepare(room: ModuleType, folder: Path, *arguments: str) -> Prepared:
    output = folder / "prepared"
    assert room.main([*arguments, "--output", str(output)]) == 0
    return Prepared.open(output)


def official(raw: Path) -> None:
    v2 = raw / "v2_Questions_Train_mscoco.zip" / "v2_OpenEnded_mscoco_train2014_questions.json"
    write_json(v2, {"questions": questions_of(TRAIN)})
    write_json(
        raw / "v2_Annotations_Train_mscoco.zip" / "v2_mscoco_train2014_annotations.json",
        {"annotations": annotations_of(TRAIN)},
    )
    write_json(
        raw / "v2_OpenEnded_mscoco_val2014_questions.json.gz", {"questions": questions_of(VAL)}
    )
    write_json(raw / "v2_mscoco_val2014_annotations.json", {"annotations": annotations_of(VAL)})
    tests = raw / "v2_Questions_Test_mscoco.zip"
    for name, rows in (("test2015", TEST), ("test-dev2015", TEST[:1])):
        member = tests / f"v2_OpenEnded_mscoco_{name}_questions.json"
        write_json(member, {"questions": questions_of(rows)})


def test_official_files(room: ModuleType, tmp_path: Path) -> None:
    official(tmp_path / "raw")
    prepared = prepare(room, tmp_path, "--raw", str(tmp_path / "raw"), *RULE)
    assert prepared.splits == ("train", "val", "test", "test-dev")
    assert [prepared.meta["splits"][name]["questions"] for name in prepared.splits] == [6, 2, 2, 1]
    assert prepared.split("test-dev").question_ids.tolist() == [50]
    assert sorted(prepared.meta["sources"]) == [
        "v2_Annotations_Train_mscoco.zip",
        "v2_OpenEnded_mscoco_val2014_questions.json.gz",
        "v2_Questions_Test_mscoco.zip",
        "v2_Questions_Train_mscoco.zip",
        "v2_mscoco_val2014_annotations.json",
    ]
    assert not list((tmp_path / "raw").rglob("*train2014*.json"))  # nothing was unpacked


def test_missing_official_files(room: ModuleType, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    official(raw)
    (raw / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DataError) as error:
        prepare(room, tmp_path, "--raw", str(raw))
    assert f"{raw / 'v2_mscoco_val2014_annotations.json'}: there is no such file" in str(
        error.value
    )
    assert f"nor {raw / 'v2_Annotations_Val_mscoco.zip'}" in str(error.value)
    some = prepare(room, tmp_path, "--raw", str(raw), *RULE, "--splits", "train", "test")
    assert some.splits == ("train", "test")


def test_the_default_rule_is_more_than_eight(room: ModuleType, tmp_path: Path) -> None:
    rows = [(n, n, "Is it?", ["yes" if n < 9 else "no"] * 10) for n in range(17)]
    prepared = prepare(room, tmp_path, *write_split(tmp_path, "train", rows))
    assert prepared.vocabulary.answers == ("yes",)  # 9 times; "no" 8 times


def test_vocabularies_are_from_train(room: ModuleType, tmp_path: Path, files: list[str]) -> None:
    prepared = prepare(room, tmp_path, *files)
    assert prepared.vocabulary.answers == ("yes",)
    words = [word for _, _, text, _ in TRAIN for word in tokenise(text)]
    assert prepared.vocabulary.words == tuple(dict.fromkeys(words))


def test_reference_vocabulary(room: ModuleType, tmp_path: Path, files: list[str]) -> None:
    prepared = prepare(room, tmp_path, *files, "--reference-vocabulary", *genome(tmp_path))
    texts = [text for rows in (TRAIN, VAL, TEST) for _, _, text, _ in rows] + ["Is it Tuesday?"]
    words = [word for text in texts for word in tokenise(text)]
    assert prepared.vocabulary.words == tuple(dict.fromkeys(words))
    assert prepared.vocabulary.answers == ("yes",)
    assert prepared.meta["vocabulary"]["built_from"] == (
        "tokens: train, val, test, vg; answers: train, val"
    )
    assert sum(split["unknown_words"] for split in prepared.meta["splits"].values()) == 0


def test_reference_vocabulary_counts_val(room: ModuleType, tmp_path: Path) -> None:
    files = [*write_split(tmp_path, "train", TRAIN[2:3]), *write_split(tmp_path, "val", VAL)]
    files += [*write_split(tmp_path, "test", TEST), "--min-answer-count", "1"]
    prepared = prepare(room, tmp_path, *files, "--reference-vocabulary")
    assert prepared.vocabulary.answers == ("dog", "yes", "zebra")
    with pytest.raises(DataError, match="asked from split 'val', but there is train"):
        prepare(room, tmp_path / "b", *files[:4], "--reference-vocabulary")


def test_visual_genome_is_filtered(room: ModuleType, tmp_path: Path, files: list[str]) -> None:
    arguments = [*files, "--answer-splits", "train", "val", "--min-answer-count", "1"]
    prepared = prepare(room, tmp_path, *arguments, *genome(tmp_path))
    assert prepared.splits == ("train", "val", "test", "vg")
    assert targets(prepared, "vg") == {
        10_000_000_007: {"yes": 1.0},
        10_000_000_008: {"zebra": 1.0},
        10_000_000_009: {"no": 1.0},
    }
    split = prepared.split("vg")
    assert split.image_ids.tolist() == [1, 4]
    assert split.human_answers.of(1) == ["A zebra."]
    few = prepare(room, tmp_path / "few", *files, *genome(tmp_path))
    assert targets(few, "vg") == {10_000_000_007: {"yes": 1.0}}


def pair(**changed: Any) -> list[dict[str, Any]]:
    fields = {**PAIRS[0]["qas"][0], **changed}  # type: ignore[index]
    return [{"id": 100, "qas": [{k: v for k, v in fields.items() if v is not ...}]}]


GENOMES: list[tuple[str, Any, Any]] = [
    ("question_answers.json: entry 0: 'qas' is missing", [{"id": 100}], IMAGES),
    ("question_answers.json: entry 0: 'qas' is no list", [{"id": 1, "qas": {}}], IMAGES),
    ("entry 0, qas[0] is 3, expected an object", [{"id": 1, "qas": [3]}], IMAGES),
    ("entry 0, qas[0]: 'answer' is missing", pair(answer=...), IMAGES),
    ("entry 0, qas[0]: 'question' is 5, expected text", pair(question=5), IMAGES),
    ("entry 0, qas[0]: 'qa_id' is 'x' while", pair(qa_id="x"), IMAGES),
    ("entry 0, qas[0]: image 5 is not in", pair(image_id=5), IMAGES),
    ("entry 1, qas[0]: 'qa_id' 7 occurred before", pair() + pair(), IMAGES),
    ("image_data.json: entry 0: 'coco_id' is missing", PAIRS, [{"image_id": 100}]),
    ("image_data.json: entry 0: 'image_id' is missing", PAIRS, [{"coco_id": 100}]),
    ("'coco_id' is [], expected an integer", PAIRS, [{"image_id": 1, "coco_id": []}]),
    ("expected [, found {", {"1": []}, IMAGES),
    ("no pair is about an image of train or val", pair(answer="unheard"), IMAGES),
]


@pytest.mark.parametrize(("message", "pairs", "images"), GENOMES)
def test_malformed_visual_genome(
    room: ModuleType, tmp_path: Path, files: list[str], message: str, pairs: Any, images: Any
) -> None:
    with pytest.raises(DataError) as error:
        prepare(room, tmp_path, *files, *genome(tmp_path, pairs, images))
    assert message in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_visual_genome_needs_its_images(room: ModuleType, tmp_path: Path) -> None:
    alone = [*write_split(tmp_path, "train", TRAIN), *RULE]
    with pytest.raises(DataError, match="--visual-genome needs split 'val'"):
        prepare(room, tmp_path, *alone, *genome(tmp_path))
    with pytest.raises(DataError, match="--answer-splits vg: that split is itself chosen"):
        prepare(room, tmp_path, *alone, *genome(tmp_path), "--answer-splits", "vg")
    with pytest.raises(DataError, match="--files vg: --visual-genome makes a split of that name"):
        prepare(room, tmp_path, *alone, *write_split(tmp_path, "vg", VAL), *genome(tmp_path))
