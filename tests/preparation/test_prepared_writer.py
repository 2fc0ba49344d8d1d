"""Examples become a prepared folder: content, refusals, and never half a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqa_toys import targets

from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.evaluation.metrics import soft_score
from mcan.preparation.prepared_writer import write_prepared
from mcan.preparation.questions import Example
from mcan.text.answers import normalise_answer
from mcan.text.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "is", "it", "red"), ("yes", "2", "dog", ""))
EXAMPLES = [
    Example(7, 1, "Is it red?", ["yes"] * 8 + ["Yes."] * 2, "yes/no", "is it"),
    Example(9, 2, "How many?", ["two"] * 2 + ["2"] + ["three"] * 7, "number", ""),
    Example(8, 1, "???", ["a"] * 10, "other", ""),
]


def write(folder: Path, splits: dict[str, Any], **options: Any) -> Any:
    options = {"dataset": "toy", "metric": "vqa", "sources": {}, **options}
    return write_prepared(folder, splits, VOCABULARY, **options)


POOL = ["yes", "Yes!", "a dog", "dog", "cat", "two", "2", "the", ""]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(POOL), max_size=10), min_size=1, max_size=6),
    st.sampled_from(["vqa", "vqa_pre2021", "vqa_normalised", "exact"]),
)
def test_targets_are_the_credit_of_each_answer(
    tmp_path_factory: pytest.TempPathFactory, answers: list[list[str]], metric: str
) -> None:
    folder = tmp_path_factory.mktemp("targets") / "p"
    examples = [Example(n, 0, "?", human) for n, human in enumerate(answers)]
    write(folder, {"a": examples}, metric=metric)
    found = targets(Prepared.open(folder), "a")
    for number, human in enumerate(answers):
        expected = {
            answer: pytest.approx(
                1 if metric == "exact" else soft_score(count, len(human)), abs=1e-6
            )
            for answer, count in Counter(map(normalise_answer, human)).items()
            if answer in VOCABULARY.answers
        }
        assert found[number] == expected
        assert list(found[number]) == list(expected)  # in order of first appearance


def test_counts(tmp_path: Path) -> None:
    counts = write(tmp_path / "p", {"a": EXAMPLES, "b": [Example(1, 1, "is it red")]})
    assert counts == Prepared.open(tmp_path / "p").meta["splits"]
    names = ["questions", "images", "words", "unknown_words", "without_target", "bound"]
    names.append("bound_normalised")
    assert counts["b"] == dict(zip(names, (1, 1, 3, 0, 1, None, None), strict=True))
    # "a", given by all, is not normalised by the metric; "2" is the best of the second question.
    bounds = pytest.approx((1 + 0.9 + 0) / 3), pytest.approx((1 + 0.9 + 1) / 3)
    assert counts["a"] == dict(zip(names, (3, 2, 6, 3, 0, *bounds), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "prepared", {"a": EXAMPLES, "b": EXAMPLES[:1]})
    return tmp_path / "prepared"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(error: BaseException) -> Iterator[Example]:
    yield from EXAMPLES
    raise error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_an_interrupted_writer_changes_nothing(folder: Path, error: BaseException) -> None:
    before = snapshot(folder.parent)
    for output in (folder, folder.parent / "new"):
        with pytest.raises(type(error)):
            write(output, {"a": EXAMPLES[:1], "b": failing(error)}, force=True)
    assert snapshot(folder.parent) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_existing_folder_needs_force(folder: Path) -> None:
    before = snapshot(folder.parent)
    with pytest.raises(DataError, match=r"prepared: already exists; replace it with --force"):
        write(folder, {"new": EXAMPLES[:1]})
    assert snapshot(folder.parent) == before
    write(folder, {"new": EXAMPLES[:1]}, force=True)
    assert {f.name for f in folder.iterdir()} == {"new.h5", "meta.json", "vocabulary.json"}
    assert list(folder.parent.iterdir()) == [folder]


def test_force_spares_what_it_did_not_write(folder: Path) -> None:
    (folder / "features.h5").write_text("precious")
    (folder.parent / "home").mkdir()
    (folder.parent / "home" / "thesis.tex").write_text("precious")
    (folder.parent / "file").write_text("precious")
    before = snapshot(folder.parent)
    for name, message in (
        ("prepared", r"contains features\.h5, which prepare\.py did not write"),
        ("home", r"contains thesis\.tex, which prepare\.py did not write"),
        ("file", "Not a directory"),
    ):
        with pytest.raises(DataError, match=message):
            write(folder.parent / name, {"a": EXAMPLES[:1]}, force=True)
    assert snapshot(folder.parent) == before


def test_an_empty_folder_is_used_and_further_files_appear_with_it(tmp_path: Path) -> None:
    def extra_files(folder: Path) -> None:
        assert list(tmp_path.iterdir()) == []
        (folder / "images.h5").write_text("images")

    write(tmp_path, {"a": EXAMPLES[:1]}, extra_files=extra_files)
    assert (tmp_path / "images.h5").read_text() == "images"
    write(tmp_path, {"a": EXAMPLES[:1]}, force=True)
    assert not (tmp_path / "images.h5").exists()


BAD_EXAMPLES: list[tuple[str, list[tuple[Any, ...]]]] = [
    ("question id 7 occurs more than once", [(7, 1, "a"), (7, 1, "b")]),
    ("question 'x': question id is 'x' while an earlier one is 7", [(7, 1, "a"), ("x", 1, "b")]),
    ("question 8: image id is 'x' while", [(7, 1, "a"), (8, "x", "b")]),
    ("question 7: image id is 1.0", [(7, 1.0, "a")]),
    ("question 7: None is not a string", [(7, 1, None)]),
    ("question 7: .* is not a string of valid Unicode", [(7, 1, "a", ["\udc00"])]),
    ("expected an integer of 64 bits", [(2**63, 1, "a")]),
    ("the split has no question", []),
]


@pytest.mark.parametrize(("message", "examples"), BAD_EXAMPLES)
def test_bad_examples_are_named(
    tmp_path: Path, message: str, examples: list[tuple[Any, ...]]
) -> None:
    with pytest.raises(DataError, match=rf"train\.h5: .*{message}"):
        write(tmp_path / "p", {"train": [Example(*fields) for fields in examples]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "/tmp"])
def test_split_names_must_be_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="split name"):
        write(tmp_path / "p", {name: EXAMPLES[:1]})
