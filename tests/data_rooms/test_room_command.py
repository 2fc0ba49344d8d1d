"""The command of a room, by the custom one: vocabularies, targets, ids, the validation split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from rooms import TEST, TRAIN, VAL, Row, load_room, targets, write_json, write_split

from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.text.answers import normalise_answer
from mcan.text.tokens import tokenise


@pytest.fixture(scope="module")
def custom() -> ModuleType:
    return load_room("custom")


def prepare(room: ModuleType, folder: Path, *arguments: str) -> Prepared:
    output = folder / "prepared"
    assert room.main([*arguments, "--output", str(output)]) == 0
    return Prepared.open(output)


def test_a_prepared_dataset(
    custom: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        *write_split(tmp_path, "train", TRAIN),
        *write_split(tmp_path, "val", VAL, ".json.gz"),
        *write_split(tmp_path, "test", TEST),
    ]
    prepared = prepare(custom, tmp_path, *files)
    assert (prepared.dataset, prepared.metric) == ("custom", "vqa")
    assert prepared.splits == ("train", "val", "test")
    assert prepared.meta["vocabulary"]["built_from"] == "tokens: train; answers: train"
    assert len(prepared.meta["sources"]) == 5
    # In the order of the annotations: "a dog" is normalised, "a" is nothing.
    assert prepared.vocabulary.answers == ("yes", "2", "dog", "no", "")
    assert prepared.vocabulary.words == tuple(
        dict.fromkeys(word for _, _, text, _ in TRAIN for word in tokenise(text))
    )
    assert targets(prepared, "train") == {
        11: {"yes": 1.0},
        10: {"2": 1.0},
        20: {"dog": 1.0},
        21: {"yes": 1.0, "no": 0.6},
        30: {"no": 1.0},
        31: {"": 1.0},
    }
    assert targets(prepared, "val") == {40: {"yes": 1.0}, 41: {}}
    train = prepared.split("train")
    assert train.human_answers.of(1) == list(TRAIN[1][3])
    assert train.question_types.names == ("is", "how", "what's", "what")
    assert prepared.meta["splits"]["val"] == {
        "questions": 2,
        "images": 1,
        "words": 6,
        "unknown_words": 2,
        "without_target": 1,
    }
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        f"{tmp_path / 'prepared'}: 19 tokens from train; 5 answers from train",
        "split questions images words unknown with target bound",
        "train 6 3 21 0 100.00 % 100.00 %",
        "val 2 1 6 2 50.00 % 50.00 %",
        "test 2 1 6 2 - -",
    ]


def random_rows(questions: int, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    pool = ["yes", "No.", "a cat", "cat", "two", "2", "the", "blue!", "Dont", "1,000"]
    rows: list[Row] = []
    for number in range(questions):
        answers = [pool[k] for k in random.integers(0, len(pool), 10)]
        text = " ".join(f"w{k}" for k in random.integers(0, 40, 5))
        rows.append((int(number * 7919 % 10007), int(random.integers(30)), text, answers))
    return rows


@pytest.mark.parametrize(
    ("arguments", "train", "min_count", "top", "every"),
    [
        (["--min-answer-count", "9"], ["train"], 9, None, False),
        (["--answer-splits", "val", "train"], ["val", "train"], 1, None, False),
        (["--top-answers", "3"], ["train"], 1, 3, False),
        (["--min-answer-count", "12", "--top-answers", "6"], ["train"], 12, 6, False),
        (["--count-answers", "every", "--min-answer-count", "110"], ["train"], 110, None, True),
    ],
)
def test_answer_vocabulary_by_brute_force(
    custom: ModuleType,
    tmp_path: Path,
    arguments: list[str],
    train: list[str],
    min_count: int,
    top: int | None,
    every: bool,
) -> None:
    rows = {"train": random_rows(120), "val": random_rows(60, seed=1)}
    files = [word for name in rows for word in write_split(tmp_path, name, rows[name])]
    prepared = prepare(custom, tmp_path, *files, *arguments)
    given = [
        normalise_answer(answer)
        for split in train
        for _, _, _, answers in rows[split]
        for answer in (answers if every else answers[:1])
    ]
    counts = Counter(given)
    ranked = sorted(counts, key=lambda answer: (-counts[answer], given.index(answer)))
    kept = {answer for answer in ranked[:top] if counts[answer] >= min_count}
    assert prepared.vocabulary.answers == tuple(sorted(kept, key=given.index))
    assert len(kept) > 1


def test_token_splits_and_their_order(custom: ModuleType, tmp_path: Path) -> None:
    files = [*write_split(tmp_path, "train", TRAIN), *write_split(tmp_path, "test", TEST)]
    prepared = prepare(custom, tmp_path, *files, "--token-splits", "test", "train")
    assert prepared.vocabulary.words[:5] == ("is", "it", "new", "old", "a")
    assert prepared.meta["splits"]["test"]["unknown_words"] == 0


def test_one_answer_and_string_ids(custom: ModuleType, tmp_path: Path) -> None:
    rows = [(f"q{q}", f"{i}.jpg", text, answers[:1]) for q, i, text, answers in TRAIN]
    prepared = prepare(custom, tmp_path, *write_split(tmp_path, "train", rows))
    scores = targets(prepared, "train") | targets(prepared, "val")
    assert scores["q10"] == {"2": 1.0}
    assert scores["q21"] == {"yes": 1.0}


def test_carving_is_by_image_and_reproducible(custom: ModuleType, tmp_path: Path) -> None:
    rows = random_rows(200)
    files = write_split(tmp_path, "train", rows)

    def split(folder: str, *arguments: str) -> tuple[set[Any], set[Any], Prepared]:
        prepared = prepare(custom, tmp_path / folder, *files, *arguments)
        images = {name: set(prepared.split(name).image_ids.tolist()) for name in ("train", "val")}
        return images["train"], images["val"], prepared

    train, val, prepared = split("a", "--carve-validation", "0.2")
    assert train | val == {image for _, image, _, _ in rows}
    assert not train & val
    assert len(val) == 6  # of 30
    counts = prepared.meta["splits"]
    assert counts["train"]["questions"] + counts["val"]["questions"] == 200
    assert counts["val"]["questions"] == sum(image in val for _, image, _, _ in rows)
    assert split("b", "--carve-validation", "0.2")[1] == val
    assert split("c", "--carve-validation", "0.2", "--seed", "1")[1] != val
    assert len(split("d")[1]) == 3  # a tenth by default
    words = {word for _, image, text, _ in rows if image in train for word in tokenise(text)}
    assert set(prepared.vocabulary.words) == words


def test_carving_keeps_an_image_on_each_side(custom: ModuleType, tmp_path: Path) -> None:
    files = write_split(tmp_path, "train", TRAIN)
    few = prepare(custom, tmp_path / "few", *files, "--carve-validation", "0.01")
    assert few.meta["splits"]["val"]["images"] == 1
    many = prepare(custom, tmp_path / "many", *files, "--carve-validation", "0.99")
    assert many.meta["splits"]["train"]["images"] == 1


def test_no_carving(custom: ModuleType, tmp_path: Path) -> None:
    files = write_split(tmp_path, "train", TRAIN)
    assert prepare(custom, tmp_path, *files, "--carve-validation", "0").splits == ("train",)
    both = [*files, *write_split(tmp_path, "val", VAL)]
    assert prepare(custom, tmp_path, *both, "--force").splits == ("train", "val")


REFUSED: list[tuple[str, list[str]]] = [
    ("--carve-validation 0.1: there is a split 'val' already", ["--carve-validation", "0.1"]),
    ("vocabulary is asked from split 'dev', but there is train, val", ["--token-splits", "dev"]),
    ("vocabulary is asked from split 'dev'", ["--answer-splits", "train", "dev"]),
    ("no answer occurs 99 times in train; lower", ["--min-answer-count", "99"]),
    ("--files val: the split is given twice", ["--files", "val", "x.json"]),
    ("--files dev: expected 1 to 2 files, found 0", ["--files", "dev"]),
    ("--files dev: expected 1 to 2 files, found 3", ["--files", "dev", "a", "b", "c"]),
    ("nowhere.json: cannot be read", ["--files", "dev", "nowhere.json"]),
    ("split name 'a b' is not letters", ["--files", "a b", "{}/questions_train.json"]),
]


@pytest.mark.parametrize(("message", "arguments"), REFUSED)
def test_refused(custom: ModuleType, tmp_path: Path, message: str, arguments: list[str]) -> None:
    files = [*write_split(tmp_path, "train", TRAIN), *write_split(tmp_path, "val", VAL)]
    with pytest.raises(DataError) as error:
        prepare(custom, tmp_path, *files, *(word.format(tmp_path) for word in arguments))
    assert message in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_answers_from_a_test_split(custom: ModuleType, tmp_path: Path) -> None:
    files = [*write_split(tmp_path, "train", TRAIN), *write_split(tmp_path, "test", TEST)]
    with pytest.raises(DataError, match="split 'test' has no annotations to build answers from"):
        prepare(custom, tmp_path, *files, "--answer-splits", "test")


def test_nothing_to_carve_from(custom: ModuleType, tmp_path: Path) -> None:
    one = write_split(tmp_path, "train", TRAIN[:2])
    with pytest.raises(DataError, match="needs questions about at least two images"):
        prepare(custom, tmp_path, *one)
    with pytest.raises(DataError, match="there is no split 'train' to carve"):
        prepare(custom, tmp_path, *write_split(tmp_path, "test", TEST))


@pytest.mark.parametrize("field", [0, 1])
def test_id_types_over_splits(custom: ModuleType, tmp_path: Path, field: int) -> None:
    other = [tuple(str(v) if n == field else v for n, v in enumerate(row)) for row in VAL]
    files = write_split(tmp_path, "train", TRAIN) + write_split(tmp_path, "val", other)  # type: ignore[arg-type]
    name = ("question_id", "image_id")[field]
    with pytest.raises(DataError, match=f"'{name}' of split 'val' is '.*' while that of split 'tr"):
        prepare(custom, tmp_path, *files)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--files"],
        ["--files", "train", "a", "--min-answer-count", "0"],
        ["--files", "train", "a", "--top-answers", "few"],
        ["--files", "train", "a", "--carve-validation", "1"],
        ["--files", "train", "a", "--splits", "train"],
    ],
)
def test_arguments_are_checked(
    custom: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        custom.main(arguments)
    assert status.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_existing_output_needs_force(custom: ModuleType, tmp_path: Path) -> None:
    files = write_split(tmp_path, "train", TRAIN)
    before = prepare(custom, tmp_path, *files).meta
    with pytest.raises(DataError, match="replace it with --force"):
        prepare(custom, tmp_path, *files, "--top-answers", "1")
    assert Prepared.open(tmp_path / "prepared").meta == before


def test_text_that_cannot_be_stored_is_named(custom: ModuleType, tmp_path: Path) -> None:
    questions = write_json(
        tmp_path / "q.json", [{"question_id": 1, "image_id": 1, "question": "a\0b"}]
    )
    files = [*write_split(tmp_path, "train", TRAIN), "--files", "test", str(questions)]
    with pytest.raises(DataError, match=r"a text of question 1 is .*holds a NUL"):
        prepare(custom, tmp_path, *files)


def test_packing_changes_nothing(custom: ModuleType, tmp_path: Path) -> None:
    contents = []
    for number, suffix in enumerate([".json", ".json.gz", ".json.zip/data.json"]):
        folder = tmp_path / str(number)
        files = [
            word
            for name, rows in (("train", TRAIN), ("val", VAL))
            for word in write_split(folder, name, rows, suffix)
        ]
        prepared = prepare(custom, folder, *files)
        with h5py.File(prepared.folder / "train.h5") as file:
            values = {name: np.asarray(file[name]).tolist() for name in file}
        contents.append((json.dumps(prepared.meta["splits"]), prepared.vocabulary, values))
    assert contents[0] == contents[1] == contents[2]
