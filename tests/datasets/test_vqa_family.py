"""The dataset folders that share the layout of VQA; VizWiz, which has its own; and of VQA v2 the
official files, the reference's vocabularies and Visual Genome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import make_lab
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

from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.text.vocabulary import tokenise


def prepare_raw(name: str, folder: Path, *arguments: str) -> Prepared:
    return prepare(load_recipe(name), folder, "--raw", str(folder / "raw"), *arguments)


@pytest.mark.parametrize("name", ["vqa_v1", "vqa_v2", "vqa_cp_v1", "vqa_cp_v2", "ok_vqa"])
def test_official_files(tmp_path: Path, name: str) -> None:
    splits = load_recipe(name).RECIPE.splits
    rows = {"train": TRAIN, "val": VAL, "test": TEST, "test-dev": TEST[1:]}
    if "val" not in splits:
        rows["test"] = VAL
    for split, files in splits.items():
        content = {
            "questions": questions_of(rows[split]),
            "annotations": annotations_of(rows[split], chosen=name != "ok_vqa"),
        }
        for file, (key, entries) in zip(files, content.items(), strict=False):
            # Those of VQA-CP are bare lists.
            write_json(tmp_path / "raw" / file, entries if "cp" in name else {key: entries})
            if "OpenEnded" in file:  # The archives of VQA v1 also hold another task.
                other = file.replace("OpenEnded", "MultipleChoice")
                write_json(tmp_path / "raw" / other, {key: []})
    prepared = prepare_raw(name, tmp_path, "--min-answer-count", "1")
    assert (prepared.dataset, prepared.splits) == (name, tuple(splits))
    for split in splits:
        assert len(prepared.split(split)) == len(rows[split])
    assert targets(prepared, "val" if "val" in splits else "test")[40] == {"yes": 1.0}


def test_the_vocabulary_of_a_run(tmp_path: Path) -> None:
    """The questions of a test split, tokenised and asked with a trained model."""
    lab = make_lab(tmp_path)
    assert lab.train("run", "train.max_steps=1").status == 0
    stored = Prepared.open(tmp_path / "prepared").vocabulary
    rows = [(number, image, " ".join(stored.words[:4]), []) for number, image in [(1, 0), (2, 1)]]
    path = write_json(tmp_path / "raw" / "q.json", {"questions": questions_of(rows)})
    run = ["--vocabulary-from", str(lab.run("run"))]
    for name in ("vqa_v2", "vizwiz"):
        files = path
        if name == "vizwiz":
            files = write_json(tmp_path / "raw" / "z.json", vizwiz("test", 2, None))
        prepared = prepare_raw(name, tmp_path / name, "--files", "test", str(files), *run)
        assert (prepared.vocabulary, prepared.splits) == (stored, ("test",))
        assert prepared.meta["vocabulary"]["from"].startswith("run/checkpoints/step_")
    assert array_to_ids(Prepared.open(tmp_path / "vqa_v2/prepared").split("test").tokens[0]) == [
        2,
        3,
        4,
        5,
    ]
    done = lab.eval("runs/run", "--split", "test", "data.prepared=vqa_v2/prepared")
    assert done.status == 0, done.err
    assert "re-encoded" not in done.out
    with pytest.raises(DataError, match="leave out what chooses others"):
        prepare_raw(
            "vqa_v2", tmp_path, "--files", "test", str(path), *run, "--reference-vocabulary"
        )


def test_ok_vqa_counts_the_answers_of_all_people(tmp_path: Path) -> None:
    files = [
        str(write_json(tmp_path / "q.json", questions_of(TRAIN))),
        str(write_json(tmp_path / "a.json", annotations_of(TRAIN, chosen=False))),
    ]
    prepared = prepare_raw("ok_vqa", tmp_path, "--files", "train", *files)
    # At least 9 of all people's answers: 18 yes, 10 dog, 12 no, 10 times nothing; 7 times "2".
    assert prepared.vocabulary.answers == ("yes", "dog", "no", "")


def vizwiz(split: str, count: int, answers: list[str] | None) -> list[dict[str, Any]]:
    entries = []
    for number in range(count):
        image = f"VizWiz_{split}_{number:08}.jpg"
        entry: dict[str, Any] = {"image": image, "question": "What is this?"}
        if answers:
            given = [{"answer": text, "answer_confidence": "yes"} for text in answers]
            kind = "unanswerable" if number % 2 else "other"
            entry |= {"answers": given, "answer_type": kind, "answerable": 1 - number % 2}
        entries.append(entry)
    return entries


ANSWERS = ["unanswerable"] * 6 + ["a can"] * 3 + ["soda can"]


def test_vizwiz(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "Annotations.zip" / "Annotations"
    write_json(folder / "train.json", vizwiz("train", 4, ANSWERS))
    write_json(folder / "val.json", vizwiz("val", 3, ANSWERS))
    write_json(folder / "test.json", vizwiz("test", 2, None))
    prepared = prepare_raw("vizwiz", tmp_path, "--top-answers", "2")
    assert prepared.vocabulary.answers == ("unanswerable", "can")
    val = prepared.split("val")
    assert array_to_ids(val.question_ids)[2] == "VizWiz_val_00000002.jpg"
    assert array_to_ids(val.image_ids)[2] == "VizWiz_val_00000002"
    assert val.question_types.names == ("answerable", "unanswerable")
    assert val.question_types.codes.tolist() == [0, 1, 0]
    assert val.answer_types.names == ("other", "unanswerable")
    assert targets(prepared, "val")["VizWiz_val_00000000.jpg"] == {"unanswerable": 1.0, "can": 0.9}
    assert prepared.split("test").human_answers[0] == []


def changed(number: int, **fields: Any) -> list[dict[str, Any]]:
    entries = vizwiz("train", 3, ANSWERS)
    entries[number] = {k: v for k, v in {**entries[number], **fields}.items() if v is not ...}
    return entries


MALFORMED = [
    ("entry 1: 'image' is 5, expected text", changed(1, image=5)),
    ("id 'VizWiz_train_00000000.jpg' occurs more", changed(2, image="VizWiz_train_00000000.jpg")),
    ("entry 0: 'answer_type' is missing", changed(0, answer_type=...)),
    ("entry 0: 'answerable' is missing", changed(0, answerable=...)),
    ("there are no entries", {"questions": []}),
]


@pytest.mark.parametrize(("message", "content"), MALFORMED)
def test_malformed_vizwiz(tmp_path: Path, message: str, content: Any) -> None:
    path = write_json(tmp_path / "train.json", content)
    with pytest.raises(DataError) as error:
        prepare_raw("vizwiz", tmp_path, "--files", "train", str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


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
