"""Lists of different lengths, text and ids as arrays; the datasets of mapped HDF5 files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcan.data.arrays import RaggedArray, Text, first_duplicate, ids_to_array
from mcan.data.integrity import map_arrays
from mcan.data.records import check_id

LISTS = st.lists(st.lists(st.integers(0, 9)), min_size=1)


def ragged(lists: list[list[int]]) -> RaggedArray:
    offsets = np.cumsum([0, *map(len, lists)])
    return RaggedArray(np.array([value for one in lists for value in one], np.int32), offsets)


@given(st.lists(LISTS, min_size=1), st.data(), st.none() | st.integers(0, 4))
def test_take_is_what_indexing_each_list_gives(parts, data, max_length) -> None:
    whole = RaggedArray.concatenate([ragged(lists) for lists in parts])
    lists = [one for part in parts for one in part]
    assert len(whole) == len(lists)
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1)))
    values, lengths = whole.take(np.array(chosen, np.int64), max_length)
    expected = [lists[index][:max_length] for index in chosen]
    assert values.tolist() == [value for one in expected for value in one]
    assert lengths.tolist() == [len(one) for one in expected]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_comes_back(strings) -> None:
    assert list(Text.of(strings)) == strings


@pytest.mark.parametrize(
    ("value", "earlier", "message"),
    [
        *((value, None, "expected an integer of 64") for value in (True, 1.0, 2**63, "")),
        *((value, None, "text of 1 to 255") for value in ("é" * 128, "a\0b", "\ud800")),
        ("a", 1, "while an earlier one is 1; use one type"),
    ],
)
def test_ids_that_files_cannot_hold_are_refused(value, earlier, message) -> None:
    with pytest.raises(ValueError, match=f"image id is .*{message}"):
        check_id(value, "image id", earlier)


def test_a_mapped_file_gives_fixed_datasets_and_attributes_only(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["numbers"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file["empty"] = np.zeros((0, 4), np.int32)
        file["strings"] = np.array(["of", "variable", "length"], dtype=object)
        file.create_dataset("chunked", data=np.arange(4), chunks=(2,))
        file.attrs["format_version"] = 2
        file.attrs["kind"] = np.bytes_(b"regions")
        file.attrs["old"] = "variable length"
    arrays, attributes = map_arrays(tmp_path / "x.h5", "thing")
    assert attributes == {"format_version": 2, "kind": b"regions"}
    assert set(arrays) == {"numbers", "empty"}
    assert arrays["numbers"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["empty"].shape == (0, 4)
    assert not arrays["numbers"].flags.writeable


@pytest.mark.parametrize("ids", [[3, -1, 2, 3, 4], ["b", "ab", "a", "b", "c"]])
def test_the_id_that_occurs_twice_is_found(ids: list[int | str]) -> None:
    assert first_duplicate(ids_to_array(ids)) == ids[0]
    assert first_duplicate(ids_to_array(ids[1:])) is None


@given(st.lists(st.text(max_size=20)))
def test_hashes_are_those_that_checkpoints_hold(strings) -> None:
    """One string at a time, in Python's integers."""
    expected = []
    for content in map(str.encode, strings):
        value = len(content)
        for start in range(0, len(content), 8):
            word = content[start : start + 8].rjust(8, b"\0")
            value = (value ^ int.from_bytes(word, "little")) * 0x9E3779B97F4A7C15 % 2**64
            value ^= value >> 32
        expected.append(value - 2**64 if value >= 2**63 else value)
    assert Text.of(strings).hashes().tolist() == expected


def test_hashes_of_similar_strings_differ() -> None:
    digits = [f"is it {number}?" for number in range(50_000)]
    zeros = ["\0" * count for count in range(50)]
    assert len(np.unique(Text.of(digits + zeros).hashes())) == 50_050
