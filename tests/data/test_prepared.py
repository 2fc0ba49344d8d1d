"""A prepared folder gives back the examples it was written from, or one line on what is damaged."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from toys import VOCABULARY, make_examples, targets, write_folder
from vqa_toys import examples_of

from mcan.build import reencode
from mcan.data.arrays import RaggedArray
from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.preparation.questions import Example
from mcan.text.vocabulary import UNK, Vocabulary, tokenise


def lists(array: RaggedArray) -> list[list[Any]]:
    return [each.tolist() for each in array]


@pytest.mark.parametrize("text_ids", [False, True])
def test_round_trip(tmp_path: Path, text_ids: bool) -> None:
    image_ids: list[Any] = ["b", "a/ü"] if text_ids else [9, 4, 2**40]
    examples = make_examples(11, image_ids, text_ids=text_ids)
    counts = write_folder(tmp_path / "p", {"train": examples, "val": examples[:1]})
    prepared = Prepared.open(tmp_path / "p")
    assert prepared.vocabulary == VOCABULARY
    assert (prepared.dataset, prepared.metric) == ("toy", "vqa")
    assert prepared.splits == ("train", "val")
    assert prepared.meta["sources"] == {"toy.json": "0" * 64}
    assert prepared.meta["splits"] == counts
    split = prepared.split("train")
    assert (split.name, len(split), len(split.human_answers)) == ("train", 11, 11)
    assert len(set(split.image_ids.tolist())) == len(split.image_ids)
    assert examples_of(split) == examples
    encoded = [VOCABULARY.encode(tokenise(example.question)) for example in examples]
    assert lists(split.tokens) == encoded
    expected = [targets(example.answers) for example in examples]
    assert lists(split.target_answers) == [[answer for answer, _ in row] for row in expected]
    scores = [[np.float32(score) for _, score in row] for row in expected]
    assert lists(split.target_scores) == scores


def test_arrays_have_the_documented_types_and_are_aligned(folder: Path) -> None:
    with h5py.File(folder / "train.h5") as file:
        dtypes = {name: file[name].dtype.str for name in file}
        assert all(file[name].id.get_offset() % 64 == 0 for name in file)
        assert file.attrs["format_version"] == 2
    text = ("questions", "answer_strings", "answer_type_names", "question_type_names")
    offsets = ("token", "target", "human_answer")
    assert dtypes == {
        **dict.fromkeys(("question_ids", "image_ids"), "<i8"),
        **dict.fromkeys((f"{name}_offsets" for name in (*text, *offsets)), "<i8"),
        **dict.fromkeys(text, "|u1"),
        **dict.fromkeys(("tokens", "target_index", "human_answers", "image_index"), "<i4"),
        **dict.fromkeys(("answer_type", "question_type"), "<i4"),
        "target_score": "<f4",
    }


def test_a_split_without_answers_or_words(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"test": [Example(1, 2, "???")]})
    split = Prepared.open(tmp_path / "p").split("test")
    assert (lists(split.tokens), lists(split.target_answers)) == ([[UNK]], [[]])
    assert list(split.human_answers) == [[]]


@pytest.mark.parametrize("text_ids", [False, True])
def test_digests(tmp_path: Path, text_ids: bool) -> None:
    """`digest` is that of the file, `questions_digest` that of images and questions."""
    examples = make_examples(4, [1], text_ids=text_ids)
    number = itertools.count(100)
    ids = [
        e._replace(question_id=str(next(number)) if text_ids else next(number)) for e in examples
    ]
    changes = {"e": {"question": "?"}, "f": {"image_id": "9" if text_ids else 9}}
    splits = {"a": examples, "b": examples[::-1], "c": examples, "d": ids}
    splits |= {name: [e._replace(**new) for e in examples] for name, new in changes.items()}
    write_folder(tmp_path / "p", splits)
    prepared = Prepared.open(tmp_path / "p")
    digests = {name: prepared.split(name).digest for name in "abcd"}
    assert digests == {name: prepared.digest(name) for name in "abcd"}
    content = (tmp_path / "p" / "a.h5").read_bytes()
    assert digests["a"] == digests["c"] == hashlib.sha256(content).hexdigest()
    assert len(set(digests.values())) == 3
    asked = {name: prepared.split(name).questions_digest for name in "abdef"}
    assert asked["a"] == asked["d"]
    assert len(set(asked.values())) == 4


def test_reencoded_questions_survive_pickling(folder: Path) -> None:
    split = Prepared.open(folder).split("train")
    other = Vocabulary(("PAD", "UNK", "raining", "zebras"), ("yes",))
    changed = reencode(split, other)
    for found in (changed, pickle.loads(pickle.dumps(changed))):
        encoded = [other.encode(tokenise(question)) for question in split.questions]
        assert lists(found.tokens) == encoded
        assert lists(found.target_answers) == lists(found.target_scores) == [[]] * len(split)
        assert found.question_ids.tolist() == split.question_ids.tolist()


def open_all(folder: Path) -> None:
    prepared = Prepared.open(folder)
    for name in prepared.splits:
        split = prepared.split(name)
        assert list(split.questions)
        assert len(split.human_answers.strings)


def test_random_damage_is_noticed(folder: Path) -> None:
    """200 mutations of every kind of file: each is one line that names the file."""
    chance = random.Random(0)
    files = sorted(folder.iterdir())
    for number in range(200):
        path = files[number % len(files)]
        content = path.read_bytes()
        start, length = chance.randrange(len(content)), chance.choice([1, 1, 4, 64])
        replaced = content[start : start + length]
        other = chance.choice([b"", bytes(len(replaced)), chance.randbytes(length)])
        end = chance.choice([start, start + length, len(content)])
        damaged = content[:start] + other + content[end:]
        if damaged == content:
            damaged = content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            open_all(folder)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(content)
    open_all(folder)


def test_damage_names_the_command_that_makes_the_folder(tmp_path: Path) -> None:
    """The recorded one, or that of the dataset of an older folder."""
    command = "python data/toy/prepare.py --x 'y z'"
    old = {"format_version": 1, "dataset": "vqa_v2", "files": ["meta.json", "train.h5"]}
    folder, images = tmp_path / "p", tmp_path / "p" / "images.h5"
    write_folder(
        folder,
        {"a": make_examples(3, [1])},
        command=command,
        extra_files=lambda folder: (folder / "images.h5").write_text("images"),
    )
    prepared = Prepared.open(folder)
    prepared.verify()
    images.write_text("imagez")
    with pytest.raises(DataError) as caught:
        prepared.verify()
    problem = "damaged, changed or of an older format; make it with:"
    assert str(caught.value) == f"{images}: {problem} {command} --output {folder} --force"
    (folder / "meta.json").write_text(json.dumps(old))
    with pytest.raises(DataError) as caught:
        Prepared.open(folder)
    command = f"python data/vqa_v2/prepare.py --output {folder} --force"
    assert str(caught.value) == f"{folder / 'meta.json'}: {problem} {command}"


def test_a_changed_meta_is_refused(folder: Path) -> None:
    path = folder / "meta.json"
    text = path.read_text()
    metric, checksum = (
        text.replace('"vqa"', '"exact"'),
        text.replace('"checksum": "', '"checksum": "0'),
    )
    for changed in ("{", "[1]", metric, checksum, text + " "):
        path.write_text(changed)
        with pytest.raises(DataError, match=r"meta\.json: damaged, changed"):
            Prepared.open(folder)


def test_missing_parts(folder: Path) -> None:
    prepared = Prepared.open(folder)
    with pytest.raises(DataError, match=r"no split 'val'; there is train, test"):
        prepared.split("val")
    (folder / "train.h5").unlink()
    with pytest.raises(DataError, match=r"train\.h5: no such file; make it"):
        prepared.split("train")
    (folder / "vocabulary.json").unlink()
    with pytest.raises(DataError, match=r"vocabulary\.json: no such file"):
        Prepared.open(folder)
    (folder / "meta.json").unlink()
    for missing in (folder, folder / "nowhere"):
        with pytest.raises(
            DataError, match=f"{missing}: no prepared dataset .*; make it with the prep"
        ):
            Prepared.open(missing)
