"""The VQA v2 dataset folder: official files, the reference's vocabularies, Visual Genome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vqa_toys import (
    TEST,
    TRAIN,
    VAL,
    annotations_of,
    load_recipe,
    prepare,
    questions_of,
    targets,
    write_json,
    write_split,
)

from mcan.errors import DataError
from mcan.text.vocabulary import tokenise

RECIPE = load_recipe("vqa_v2")
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


def test_files_are_found_packed_or_not(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    train, val = RECIPE.RECIPE.splits["train"], RECIPE.RECIPE.splits["val"]
    write_json(raw / train[0], {"questions": questions_of(TRAIN)})
    write_json(raw / train[1], {"annotations": annotations_of(TRAIN)})
    write_json(raw / f"{Path(val[0]).name}.gz", {"questions": questions_of(VAL)})
    arguments = ["--raw", str(raw), *RULE, "--splits", "train"]
    with pytest.raises(DataError) as error:
        prepare(RECIPE, tmp_path, *arguments, "val")
    file = "v2_mscoco_val2014_annotations.json"
    expected = f"{raw}: neither {file} nor v2_Annotations_Val_mscoco.zip/{file} is there"
    assert expected in str(error.value)
    assert prepare(RECIPE, tmp_path / "train", *arguments).splits == ("train",)
    write_json(raw / Path(val[1]).name, {"annotations": annotations_of(VAL)})
    prepared = prepare(RECIPE, tmp_path, *arguments, "val")
    assert sorted(prepared.meta["sources"]) == [
        "raw/v2_Annotations_Train_mscoco.zip",
        "raw/v2_OpenEnded_mscoco_val2014_questions.json.gz",
        "raw/v2_Questions_Train_mscoco.zip",
        "raw/v2_mscoco_val2014_annotations.json",
    ]
    assert not list(raw.rglob("*train2014*.json"))  # nothing was unpacked


def test_the_default_rule_is_more_than_eight(tmp_path: Path) -> None:
    rows = [(n, n, "Is it?", ["yes" if n < 9 else "no"] * 10) for n in range(17)]
    prepared = prepare(RECIPE, tmp_path, *write_split(tmp_path, "train", rows))
    assert prepared.vocabulary.answers == ("yes",)  # 9 times; "no" 8 times


def test_reference_vocabulary(tmp_path: Path, files: list[str]) -> None:
    prepared = prepare(RECIPE, tmp_path, *files, "--reference-vocabulary", *genome(tmp_path))
    texts = [text for rows in (TRAIN, VAL, TEST) for _, _, text, _ in rows] + ["Is it Tuesday?"]
    words = [word for text in texts for word in tokenise(text)]
    assert prepared.vocabulary.words == tuple(dict.fromkeys(words))
    # With "zebra" of val.
    every = [*files, "--min-answer-count", "1", "--reference-vocabulary"]
    answers = prepare(RECIPE, tmp_path / "b", *every).vocabulary.answers
    assert answers == ("yes", "2", "dog", "no", "", "zebra")
    with pytest.raises(DataError, match="needs split 'val', but there is train"):
        prepare(RECIPE, tmp_path / "c", *files[:4], *RULE, "--reference-vocabulary")


def test_visual_genome_is_filtered(tmp_path: Path, files: list[str]) -> None:
    arguments = [*files, "--answer-splits", "train", "val", "--min-answer-count", "1"]
    prepared = prepare(RECIPE, tmp_path, *arguments, *genome(tmp_path))
    assert prepared.splits == ("train", "val", "test", "vg")
    assert targets(prepared, "vg") == {
        10_000_000_007: {"yes": 1.0},
        10_000_000_008: {"zebra": 1.0},
        10_000_000_009: {"no": 1.0},
    }
    split = prepared.split("vg")
    assert split.image_ids.tolist() == [1, 4]
    assert split.human_answers[1] == ["A zebra."]
    few = prepare(RECIPE, tmp_path / "few", *files, *genome(tmp_path))
    assert targets(few, "vg") == {10_000_000_007: {"yes": 1.0}}


def pair(**changed: Any) -> list[dict[str, Any]]:
    fields = {**PAIRS[0]["qas"][0], **changed}  # type: ignore[index]
    return [{"id": 100, "qas": [{k: v for k, v in fields.items() if v is not ...}]}]


GENOMES: list[tuple[str, Any, Any]] = [
    ("question_answers.json: entry 0: 'qas' is not a list", [{"id": 1, "qas": {}}], IMAGES),
    ("entry 0, qas[0] is 3, expected an object", [{"id": 1, "qas": [3]}], IMAGES),
    ("entry 0, qas[0]: 'answer' is missing", pair(answer=...), IMAGES),
    ("entry 0, qas[0]: 'qa_id' is 'x' while", pair(qa_id="x"), IMAGES),
    ("entry 0, qas[0]: image 5 is not in", pair(image_id=5), IMAGES),
    ("question id 10000000007 occurs more than once", pair() + pair(), IMAGES),
    ("'coco_id' is [], expected an integer", PAIRS, [{"image_id": 1, "coco_id": []}]),
    ("entry 0: 'qas' is missing", {"1": []}, IMAGES),
    ("question_answers.json: the split has no question", pair(answer="unheard"), IMAGES),
]


@pytest.mark.parametrize(("message", "pairs", "images"), GENOMES)
def test_malformed_visual_genome(
    tmp_path: Path, files: list[str], message: str, pairs: Any, images: Any
) -> None:
    with pytest.raises(DataError) as error:
        prepare(RECIPE, tmp_path, *files, *genome(tmp_path, pairs, images))
    assert message in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_visual_genome_needs_its_images(tmp_path: Path) -> None:
    alone = [*write_split(tmp_path, "train", TRAIN), *RULE]
    both = [*alone, *write_split(tmp_path, "val", VAL)]
    for arguments in (alone, [*both, *write_split(tmp_path, "vg", VAL)]):
        with pytest.raises(DataError, match="--visual-genome makes the split 'vg'"):
            prepare(RECIPE, tmp_path, *arguments, *genome(tmp_path))
