"""Streaming of JSON lists, compared with the parser of the standard library."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import write_json

from mcan.data import json_items
from mcan.data.json_items import file_sha256, read_items
from mcan.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    before=st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
    items=st.lists(VALUES, min_size=1, max_size=4),
    after=st.dictionaries(st.text(max_size=3), VALUES, max_size=2),
    bare=st.booleans(),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 9),
)
def test_equals_the_standard_parser(
    tmp_path_factory: pytest.TempPathFactory,
    before: dict[str, Any],
    items: list[Any],
    after: dict[str, Any],
    bare: bool,
    indent: int | None,
    ascii_only: bool,
    chunk: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "items.json"
    content = items if bare else {**before, **after, "wanted": items}
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), "utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "_CHUNK", chunk)
        expected = json.loads(path.read_text("utf-8"))
        assert list(read_items(path, "wanted")) == (expected if bare else expected["wanted"])


def test_numbers_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"version": 12.5e-3, "wanted": [1.25, 2e+10, -3, 4], "last": 100}'
    path = write_json(tmp_path / "a.json", text)
    for chunk in range(1, len(text) + 1):
        monkeypatch.setattr(json_items, "_CHUNK", chunk)
        assert list(read_items(path, "wanted")) == [1.25, 2e10, -3, 4]


@pytest.mark.parametrize(
    "name",
    [
        "a.json",
        "a.json.gz",
        "a.zip/train.json",
        "a.zip/folder/train.json",
    ],
)
def test_packings_are_equal(tmp_path: Path, name: str) -> None:
    path = write_json(tmp_path / name, {"x": [], "wanted": [{"é": 1}, 2]})
    assert list(read_items(path, "wanted")) == [{"é": 1}, 2]


def test_members_are_found(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    write_json(archive / "folder" / "train.json", [1])
    write_json(archive / "__MACOSX" / "folder" / "train.json", [2])
    write_json(archive / "struct.txt", "no JSON")
    assert list(read_items(archive)) == [1]
    assert list(read_items(archive / "train.json")) == [1]
    write_json(archive / "train.json", [3])
    assert list(read_items(archive / "train.json")) == [3]
    assert list(read_items(archive / "folder" / "train.json")) == [1]


def test_sha256_is_that_of_the_file_on_disk(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.zip" / "train.json", [1])
    expected = hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest()
    assert file_sha256(path) == file_sha256(tmp_path / "a.zip") == expected


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_CHUNK", 100)
    path = write_json(tmp_path / "a.json", [{"number": n} for n in range(500)])
    longest = 0
    original = json_items._Reader._extend

    def extend(reader: Any) -> bool:
        nonlocal longest
        more = original(reader)
        longest = max(longest, len(reader._window))
        return more

    monkeypatch.setattr(json_items._Reader, "_extend", extend)
    assert len(list(read_items(path))) == 500
    assert longest < 300


BROKEN = [
    ("", r"expected \[ or \{, found the end"),
    ("hello", r"expected \[ or \{, found h; at character 0"),
    ("7", r"expected \[ or \{, found 7"),
    ("[]", "the list 'wanted' is empty"),
    ('{"wanted": []}', "the list 'wanted' is empty"),
    ("{}", "it has no list 'wanted'"),
    ('{"other": [1, 2]}', "it has no list 'wanted'"),
    ('{"wanted": {"a": 1}}', "'wanted' is no list"),
    ('{"wanted": [1]', "expected , or }, found the end"),
    ('{"wanted": [1, 2', "found the end"),
    ('{"wanted": [1 2]}', r"expected , or \], found 2; at character 14"),
    ('{"wanted": [1,]}', "Expecting value; at character 14"),
    ('{"wanted": [{"a": "b]}', "Unterminated string"),
    ('{"wanted": [1]} x', "more text follows its end"),
    ("{wanted: [1]}", "Expecting value"),
    ('{"wanted" [1]}', "expected :, found"),
    ("[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    path = write_json(tmp_path / "a.json", text)
    with pytest.raises(DataError, match=message) as error:
        list(read_items(path, "wanted"))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_objects_where_a_list_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected \[, found \{"):
        list(read_items(write_json(tmp_path / "a.json", {"a": [1]})))


def test_damage_does_not_swallow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_CHUNK", 10)
    monkeypatch.setattr(json_items, "_LONGEST_VALUE", 50)
    path = write_json(tmp_path / "a.json", '["never closed' + " and so on" * 100)
    with pytest.raises(DataError, match="Unterminated string"):
        list(read_items(path))


def test_broken_files(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(list(range(5000))).encode())
    (tmp_path / "cut.json.gz").write_bytes(whole[:-20])
    (tmp_path / "plain.json.gz").write_text("[1]")
    (tmp_path / "packed.json").write_bytes(whole)
    (tmp_path / "text.zip").write_text("[1]")
    write_json(tmp_path / "whole.zip" / "a.json", list(range(5000)))
    content = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped.zip").write_bytes(content[:100] + b"x" + content[101:])
    write_json(tmp_path / "two.zip" / "a.json", [1])
    write_json(tmp_path / "two.zip" / "b.json", [1])
    write_json(tmp_path / "none.zip" / "a.txt", "text")
    with zipfile.ZipFile(tmp_path / "same.zip", "w") as file:
        file.writestr("x/a.json", "[1]")
        file.writestr("y/a.json", "[2]")
    for name, message in [
        ("missing.json", "cannot be read (No such file or directory)"),
        ("missing.zip/a.json", "cannot be read (No such file or directory)"),
        (".", "cannot be read (Is a directory)"),
        ("cut.json.gz", "damaged or incomplete (Compressed file ended"),
        ("plain.json.gz", "damaged or incomplete (Not a gzipped file"),
        ("packed.json", "not JSON (not UTF-8 text)"),
        ("text.zip", "damaged or incomplete (File is not a zip file)"),
        ("cut.zip", "damaged or incomplete (File is not a zip file)"),
        ("flipped.zip", "damaged or incomplete (Bad CRC-32"),
        ("two.zip", "holds 2 JSON files; say which, as in"),
        ("two.zip/c.json", "holds no c.json (it holds a.json, b.json)"),
        ("none.zip", "holds no JSON file (it holds a.txt)"),
        ("same.zip/a.json", "holds 2 a.json (it holds x/a.json, y/a.json)"),
    ]:
        with pytest.raises(DataError) as error:
            list(read_items(tmp_path / name))
        assert message in str(error.value), name
        assert str(tmp_path / name.split("/")[0]) in str(error.value)
