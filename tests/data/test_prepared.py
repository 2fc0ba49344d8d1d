"""A prepared folder gives back the examples it was written from, complete or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import VOCABULARY, make_examples, targets, write_folder

from mcan.data.prepared import Prepared
from mcan.data.prepared_writer import Example
from mcan.errors import DataError
from mcan.text.tokens import tokenise
from mcan.text.vocabulary import UNK


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
    split = prepared.split("train")
    assert len(split) == len(examples)
    assert split.question_ids.tolist() == [example.question_id for example in examples]
    assert split.questions == [example.question for example in examples]
    assert split.image_ids[split.image_index].tolist() == [e.image_id for e in examples]
    assert len(set(split.image_ids.tolist())) == len(split.image_ids)
    for row, example in enumerate(examples):
        tokens, _ = split.tokens.take(np.array([row]))
        assert tokens.tolist() == VOCABULARY.encode(tokenise(example.question))
        index, _ = split.target_answers.take(np.array([row]))
        score, _ = split.target_scores.take(np.array([row]))
        expected = targets(example.answers)
        assert index.tolist() == [number for number, _ in expected]
        np.testing.assert_allclose(score, [value for _, value in expected], rtol=1e-7)
        assert split.human_answers.of(row) == list(example.answers)
        for types, value in (
            (split.answer_types, example.answer_type),
            (split.question_types, example.question_type),
        ):
            assert types.names[types.codes[row]] == value
    assert counts["train"] == prepared.meta["splits"]["train"]
    assert counts["train"]["questions"] == 11
    assert counts["train"]["images"] == len({e.image_id for e in examples})
    assert counts["train"]["words"] == len(split.tokens.values)
    assert counts["train"]["unknown_words"] == (split.tokens.values == UNK).sum()
    assert counts["train"]["without_target"] == sum(not targets(e.answers) for e in examples)


def test_question_without_words_is_one_unk(folder: Path) -> None:
    split = Prepared.open(folder).split("train")
    row = split.questions.index("???")
    assert split.tokens.take(np.array([row]))[0].tolist() == [UNK]


def test_split_without_answers(tmp_path: Path) -> None:
    write_folder(tmp_path / "p", {"test": [Example(1, 2, "is it raining")]})
    split = Prepared.open(tmp_path / "p").split("test")
    assert len(split.target_answers.values) == 0
    assert split.human_answers.of(0) == []
    assert split.human_answers.strings == ()


def test_digest_is_that_of_the_ids(tmp_path: Path) -> None:
    numbers = make_examples(4, [1])
    texts = make_examples(4, [1], text_ids=True)
    write_folder(tmp_path / "p", {"a": numbers, "b": texts, "c": numbers[::-1], "d": numbers})
    a, b, c, d = (Prepared.open(tmp_path / "p").split(name).digest for name in "abcd")
    raw = b"".join(e.question_id.to_bytes(8, "little") for e in numbers)  # type: ignore[union-attr]
    assert a == d == hashlib.sha256(raw).hexdigest()
    assert b == hashlib.sha256(json.dumps([e.question_id for e in texts]).encode()).hexdigest()
    assert len({a, b, c}) == 3


def test_pickle_leaves_out_what_can_be_read_again(folder: Path) -> None:
    split = Prepared.open(folder).split("train")
    before = len(pickle.dumps(split))
    questions = split.questions
    assert split.human_answers.of(0)
    assert len(pickle.dumps(split)) == before
    assert pickle.loads(pickle.dumps(split)).questions == questions


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(error: BaseException) -> Iterator[Example]:
    yield from make_examples(3, [1])
    raise error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_interrupted_writer_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_folder(tmp_path / "p", {"a": make_examples(1, [1]), "b": failing(error)})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_interrupted_replacement_keeps_the_old(folder: Path) -> None:
    before = snapshot(folder.parent)
    with pytest.raises(RuntimeError):
        write_folder(folder, {"a": failing(RuntimeError())}, force=True)  # type: ignore[dict-item]
    assert snapshot(folder.parent) == before


def test_existing_folder_needs_force(folder: Path) -> None:
    before = snapshot(folder.parent)
    with pytest.raises(DataError, match=r"prepared: already exists; replace it with --force"):
        write_folder(folder, {"new": make_examples(1, [1])})
    assert snapshot(folder.parent) == before
    write_folder(folder, {"new": make_examples(1, [1])}, force=True)
    assert Prepared.open(folder).splits == ("new",)
    assert {f.name for f in folder.iterdir()} == {"new.h5", "meta.json", "vocabulary.json"}
    assert list(folder.parent.iterdir()) == [folder]


def test_force_spares_what_it_did_not_write(folder: Path) -> None:
    (folder / "features.h5").write_text("precious")
    before = snapshot(folder.parent)
    with pytest.raises(DataError, match=r"holds features\.h5, which prepare\.py did not write"):
        write_folder(folder, {"new": make_examples(1, [1])}, force=True)
    assert snapshot(folder.parent) == before


def test_force_spares_other_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match="is not a prepared dataset"):
        write_folder(tmp_path / "home", {"a": make_examples(1, [1])}, force=True)
    with pytest.raises(DataError, match="is a file"):
        write_folder(tmp_path / "file", {"a": make_examples(1, [1])}, force=True)
    assert snapshot(tmp_path) == before


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": make_examples(1, [1])})
    assert Prepared.open(tmp_path).splits == ("a",)


def test_further_files_appear_with_the_folder(tmp_path: Path) -> None:
    def also(folder: Path) -> None:
        assert not (tmp_path / "p").exists()
        (folder / "images.h5").write_text("images")

    write_folder(tmp_path / "p", {"a": make_examples(1, [1])}, also=also)
    assert (tmp_path / "p" / "images.h5").read_text() == "images"
    write_folder(tmp_path / "p", {"a": make_examples(1, [1])}, force=True)


BAD_EXAMPLES: list[tuple[str, list[Example]]] = [
    ("question id 7 occurs more than once", [Example(7, 1, "a"), Example(7, 1, "b")]),
    (
        "question id is 'x' while an earlier one is 7",
        [Example(7, 1, "a"), Example("x", 1, "b")],
    ),
    ("image id of question 8 is 'x' while", [Example(7, 1, "a"), Example(8, "x", "b")]),
    ("question id is None", [Example(None, 1, "a")]),  # type: ignore[arg-type]
    ("image id of question 7 is 1.0", [Example(7, 1.0, "a")]),  # type: ignore[arg-type]
    ("a text of question 7 is None", [Example(7, 1, None)]),  # type: ignore[arg-type]
    ("a text of question 7 is 3, expected a string", [Example(7, 1, "a", [3])]),  # type: ignore[list-item]
    ("a text of question 7 .* NUL", [Example(7, 1, "a\0b")]),
    ("a text of question 7 .* not valid Unicode", [Example(7, 1, "a", ["\udc00"])]),
    ("does not fit 64 bits", [Example(2**63, 1, "a")]),
    ("the split has no question", []),
]


@pytest.mark.parametrize(("message", "examples"), BAD_EXAMPLES)
def test_bad_examples_are_named(tmp_path: Path, message: str, examples: list[Example]) -> None:
    with pytest.raises(DataError, match=rf"train\.h5: .*{message}"):
        write_folder(tmp_path / "p", {"train": examples})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", [(5, 1.0), (-1, 1.0), (0, 0.0), (0, 1.5), (0, float("nan"))])
def test_bad_targets_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: tuple[int, float]
) -> None:
    monkeypatch.setattr("toys.targets", lambda answers: [target])
    with pytest.raises(DataError, match="the target of question 0 is answer"):
        write_folder(tmp_path / "p", {"train": make_examples(1, [1])})


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "tést"])
def test_split_names_must_be_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="split name"):
        write_folder(tmp_path / "p", {name: make_examples(1, [1])})


def test_memory_per_question_is_small(tmp_path: Path, peak_memory: Callable[..., int]) -> None:
    def write(count: int) -> int:
        name = tmp_path / str(count)
        return peak_memory(lambda: write_folder(name, {"train": make_stream(count)}))

    growth = (write(6000) - write(2000)) / 4000
    assert growth < 1000  # bytes; the full VQA v2 then stays below 0.7 GB


def make_stream(count: int) -> Any:
    return (example for first in range(count) for example in make_examples(1, [1, 2], first=first))
