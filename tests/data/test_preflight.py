"""Counts over the dataset, and what stops or warns before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_toys import make_images, write_store
from toys import make_examples, write_folder

from mcan.build import preflight
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.errors import DataError
from mcan.preparation.questions import Example


def open_dataset(folder: Path, splits: dict[str, list[Example]]) -> VQADataset:
    write_folder(folder / "p", splits)
    write_store(folder / "i.h5", make_images([0, 1]))
    prepared = Prepared.open(folder / "p")
    return VQADataset([prepared.split(name) for name in splits], [open_store(folder / "i.h5")])


def answered(count: int, total: int, first: int = 0) -> list[Example]:
    """`total` questions about image 0 of two known and one unknown word, `count` with a target."""
    return [
        Example(first + number, 0, "is the penguin?", ["yes" if number < count else "?"] * 10)
        for number in range(total)
    ]


def test_counts(tmp_path: Path) -> None:
    counts, warnings = preflight(
        open_dataset(tmp_path, {"a": answered(7, 8), "b": make_examples(2, [1], first=10)})
    )
    # One unknown word in each of eight questions, and 8 * 3 + 5 + 3 words.
    assert counts == "10 questions on 2 images, 25.0% unknown words"
    (warning,) = warnings  # none for the other split
    assert warning.startswith(f"{tmp_path}/p/a.h5: 8 of 24 words (33%) are unknown")


@pytest.mark.parametrize(("with_target", "warns"), [(8, False), (7, True), (1, True)])
def test_warns_above_a_fifth(tmp_path: Path, with_target: int, warns: bool) -> None:
    _, warnings = preflight(open_dataset(tmp_path, {"a": answered(with_target, 10)}))
    assert len(warnings) == 1 + warns
    if warns:
        share = f"{10 - with_target} of 10 questions ({(10 - with_target) * 10}%)"
        assert share in warnings[0]


def test_no_target_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.h5: none of the 4 questions has an answer"):
        preflight(open_dataset(tmp_path, {"a": answered(0, 4)}))


def test_ids_are_unique_over_splits(tmp_path: Path) -> None:
    splits = {"a": answered(3, 3), "b": answered(3, 3, first=2)}
    with pytest.raises(DataError, match=r"a\.h5, .*b\.h5: question id 2 occurs more than once"):
        preflight(open_dataset(tmp_path, splits))
