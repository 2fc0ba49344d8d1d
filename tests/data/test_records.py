"""Streaming of JSON lists, compared with the parser of the standard library."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqa_toys import write_json

from mcan.data import records
from mcan.data.records import read_items, read_records
from mcan.errors import DataError
from mcan.files import file_on_disk


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/b.json", content)
    return buffer.getvalue()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=2)
LISTS = st.lists(VALUES, min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    content=LISTS | st.builds(lambda a, b, c: {**a, "wanted": b, **c}, OBJECTS, LISTS, OBJECTS),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 9),
)
def test_equals_the_standard_parser(
    tmp_path_factory: pytest.TempPathFactory,
    content: Any,
    indent: int | None,
    ascii_only: bool,
    chunk: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "items.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), "utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK", chunk)
        expected = json.loads(path.read_text("utf-8"))
        wanted = expected if isinstance(content, list) else expected["wanted"]
        assert list(read_items(path, "wanted")) == wanted


def test_numbers_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"version": 12.5e-3, "wanted": [1.25, 2e+10, -3, 4], "last": 100}'
    path = write_json(tmp_path / "a.json", text)
    for chunk in range(1, len(text) + 1):
        monkeypatch.setattr(records, "_CHUNK", chunk)
        assert list(read_items(path, "wanted")) == [1.25, 2e10, -3, 4]


@pytest.mark.parametrize("suffix", ["", ".json", ".gz", ".gzip", ".zip"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zipped])
def test_compression_is_known_by_content(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack('{"x": [], "wanted": [{"é": 1}, 2]}'.encode()))
    assert list(read_items(path, "wanted")) == [{"é": 1}, 2]
    if pack is zipped:
        assert list(read_items(path / "b.json", "wanted")) == [{"é": 1}, 2]


ROWS = [{"q": "a?", "n": "1"}, {"q": 'b, "c"', "n": "2"}]
TABLE = 'q{0}n\r\n"a?"{0}1\r\n\r\n{0}\r\n"b, ""c"""{0}2\r\n'
LAYOUTS = {
    "a list": json.dumps(ROWS),
    "lines": "\n".join(map(json.dumps, ROWS)) + "\n\n",
    "a well-known key": json.dumps({"info": {}, "data": ROWS, "x": 1}, indent=1),
    "commas": TABLE.format(","),
    "tabs": TABLE.format("\t"),
    "semicolons": "\ufeff" + TABLE.format(";"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_any_layout(tmp_path: Path, layout: str) -> None:
    assert list(read_items(write_json(tmp_path / "a.x", LAYOUTS[layout]))) == ROWS


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ('q,n\n\na,1\n,\n"b\nc",2\nd,3\n', ["line 3", "line 5", "line 7"]),
        ("q\tn\r\na\t1\r\n", ["line 2"]),
        ('[{"q": "a"}, {"q": "b"}]', ["entry 0", "entry 1"]),
        ('{"q": "a"}\n\n{"q": "b"}\n', ["entry 0", "entry 1"]),
    ],
)
def test_rows_of_tables_are_named_by_their_line(
    tmp_path: Path, content: str, places: list[str]
) -> None:
    """As an editor counts them; rows in other files by their number from 0, as is a name."""
    found = list(read_records(write_json(tmp_path / "a.x", content)))
    errors = [str(record.error("wrong")) for record in found]
    assert errors == [f"{tmp_path}/a.x: {place}: wrong" for place in places]
    assert [record.name for record in found] == [f"a/{n}" for n in range(len(places))]


@pytest.mark.parametrize("pack", [bytes, zipped])
def test_rows_of_parquet_leave_out_images(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shown: dict[str, Any] = {"q": "a?", "answers": [{"answer": "x"}], "n": 3}
    image = {"image": {"bytes": b"abc", "path": "a.jpg"}, "raw": b"abc"}
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([shown | image] * 5000), buffer)
    (tmp_path / "b.json").write_bytes(pack(buffer.getvalue()))
    rows = list(read_items(tmp_path / "b.json"))
    assert rows == [shown | {"image": {"path": "a.jpg"}, "raw": {}}] * 5000
    (tmp_path / "b.json").write_bytes(buffer.getvalue()[:-30])
    with pytest.raises(DataError, match=r"b\.json: not the Parquet expected"):
        list(read_items(tmp_path / "b.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(DataError, match="Parquet files need pyarrow: pip install pyarrow"):
            list(read_items(tmp_path / "b.json"))


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
    assert file_on_disk(archive / "train.json") == file_on_disk(archive) == archive
    assert file_on_disk(tmp_path / "b.zip" / "train.json") == tmp_path / "b.zip" / "train.json"


def test_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak_memory: Callable[..., int]
) -> None:
    monkeypatch.setattr(records, "_CHUNK", 100)
    path = write_json(tmp_path / "a.json", [{"number": n} for n in range(50_000)])
    assert peak_memory(lambda: deque(read_items(path), maxlen=0)) < path.stat().st_size / 4


BROKEN = [
    ("", "there are no entries"),
    ("hello", "there are no entries"),
    ("[]", "there are no entries"),
    ('{"wanted": []}', "there are no entries"),
    ("a,b\n1,2,3\n", "line 2 has not as many cells as the first line; a text with separators"),
    ('a,b\n"x" y,2\n', "not the table expected"),
    ('{"a": 1}\n{"a"', "not the JSON expected"),
    ("q\nWas ist gr\udcfcn?\n", "not the table expected .* can't decode byte 0xfc"),
    ('{"wanted": [1]', "expected , or }, found the end"),
    ('{"wanted": [1 2]}', r"expected , or \], found 2; at character 14"),
    ('{"wanted": [1,]}', "Expecting value; at character 14"),
    ('{"wanted": [{"a": "b]}', "Unterminated string"),
    ("[1] x", "more text follows its end"),
    ('{"wanted" [1]}', "expected :, found"),
    ("[" * 100_000, "maximum recursion depth exceeded"),
    (f"[{'1' * 5000}]", "Exceeds the limit .* for integer string conversion"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as error:
        list(read_items(path, "wanted"))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_broken_files(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(list(range(5000))).encode())
    (tmp_path / "cut.json.gz").write_bytes(whole[:-20])
    write_json(tmp_path / "whole.zip" / "a.json", list(range(5000)))
    content = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "flipped.zip").write_bytes(content[:100] + b"x" + content[101:])
    for member in ("x/a.json", "y/a.json"):
        write_json(tmp_path / "two.zip" / member, [1])
    write_json(tmp_path / "none.zip" / "a.txt", "text")
    for name, message in [
        ("missing.json", "cannot be read (No such file or directory)"),
        ("missing.zip/a.json", "cannot be read (No such file or directory)"),
        (".", "cannot be read (Is a directory)"),
        ("cut.json.gz", "damaged or incomplete (Compressed file ended"),
        ("cut.json.gz/a.json", "is not a zip archive"),
        ("cut.zip", "damaged or incomplete (File is not a zip file)"),
        ("flipped.zip", "damaged or incomplete (Bad CRC-32"),
        ("two.zip", "2 such files in the archive, expected one that ends in .json or .jsonl or"),
        ("two.zip/a.json", "2 such files in the archive"),
        ("two.zip/c.json", "no such files in the archive"),
        ("none.zip", "it contains a.txt"),
    ]:
        with pytest.raises(DataError) as error:
            list(read_items(tmp_path / name))
        assert message in str(error.value), name
        assert str(error.value).startswith(str(tmp_path / name))
