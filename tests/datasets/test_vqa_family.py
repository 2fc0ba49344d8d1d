"""The dataset folders that share the layout of VQA, and VizWiz, which has its own."""

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
)

from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared
from mcan.errors import DataError


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
