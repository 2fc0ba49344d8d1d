import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mcan.errors import DataError
from mcan.text.word_vector_files import read_word_vectors, write_word_vectors
from mcan.text.word_vectors import WordVectors

GLOVE = (
    b"the 0.5 -1 2e-3\n. . . 1 2 3\nThe 7 8 9\n\xc3\xa9t\xc3\xa9 4 5 6\nat x@y.com 1 1 1\n2 3 3 3\n"
)
EXPECTED = {"the": [0.5, -1, 2e-3], "été": [4, 5, 6], "2": [3, 3, 3]}
WANTED = ["2", "the", "été", "at", ".", "absent"]


def read(path: Path, words: list[str] = WANTED) -> dict[str, list[float]]:
    vectors = read_word_vectors(path, words)
    assert vectors.matrix.dtype == np.float32
    assert list(vectors.index.values()) == list(range(len(vectors.matrix)))
    return {word: vectors.matrix[row].tolist() for word, row in vectors.index.items()}


def approx(expected: dict[str, list[float]]) -> dict[str, object]:
    return {word: pytest.approx(vector) for word, vector in expected.items()}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(content))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("folder/", "")
            archive.writestr("folder/vectors.txt", content)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["v.txt", "v.300d.txt", "v.vec", "v.vec.gz", "v.zip"])
@pytest.mark.parametrize(
    "content",
    [
        GLOVE,
        b"6 3\n" + GLOVE,
        GLOVE.replace(b"\n", b" \n"),
        GLOVE.replace(b"\n", b"\r\n"),
        GLOVE.rstrip(b"\n"),
        GLOVE + b"\n",
    ],
    ids=["glove", "word2vec", "fasttext", "windows", "no_last_newline", "blank_line"],
)
def test_text(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(write(tmp_path, name, content)) == approx(EXPECTED)


def test_words_with_spaces(tmp_path: Path) -> None:
    path = write(tmp_path, "v.txt", GLOVE)
    assert read(path, [". . .", "at x@y.com"]) == {". . .": [1, 2, 3], "at x@y.com": [1, 1, 1]}
    first = write(tmp_path, "first.txt", b". . 1 2 3\nthe 4 5 6\n")
    assert read(first, ["the", ". ."]) == {". .": [1, 2, 3], "the": [4, 5, 6]}


def test_case_and_first_of_two(tmp_path: Path) -> None:
    path = write(tmp_path, "v.txt", b"The 1 2\nthe 3 4\nthe 5 6\n")
    assert read(path, ["the"]) == {"the": [3, 4]}
    assert read(path, ["THE"]) == {}


def test_nothing_wanted_keeps_the_dimension(tmp_path: Path) -> None:
    assert read_word_vectors(write(tmp_path, "v.txt", GLOVE), []).matrix.shape == (0, 3)


def test_unwanted_numbers_are_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, "v.txt", b"the 1 2\nodd x y\n")
    assert read(path, ["the"]) == {"the": [1, 2]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "found an empty file"),
        (b"\n", r"in line 1, found '\\n'"),
        (b"word\n", "in line 1, found 'word"),
        (b"the\t1\t2\n", "in line 1, found 'the"),
        (b"\x80\x02}q\x00.", "in line 1"),
        (b"5 0\nthe\n", "in line 1, found '5 0"),
        (b"it 1 2 3\nthe 1 2\n", "line 2: expected a word and 3 numbers .* found 2 parts"),
        (b"it 1 2 3\nthe 1 2 3 4\n", "line 2: expected a word and 3 numbers .* found 4 parts"),
        (b"it 1 2 3\nthe  1 2 3\n", "line 2: expected .* single spaces"),
        (b"2 3\nit 1 2 3\nthe 1 2\n", "line 3: expected a word and 3 numbers"),
        (b"2 3\nit 1 2 3\n", "1 vectors, but its first line announces 2"),
        (b"2 3\n", "0 vectors, but its first line announces 2"),
        (b"it 1 2 3\nthe 1 two 3\n", "line 2: not a number .*two"),
        (b"the 1 nan 3\n", "the vector of 'the' has a value that is no finite number"),
        (b"2 1 2 3\nthe 1 2 -1e99\n", "the vector of 'the' has a value that is no finite"),
    ],
)
def test_malformed_text(tmp_path: Path, content: bytes, says: str) -> None:
    path = write(tmp_path, "v.txt", content)
    with pytest.raises(DataError, match=says) as raised:
        read_word_vectors(path, ["2", "the"])
    assert str(raised.value).startswith(str(path))


def test_malformed_files(tmp_path: Path) -> None:
    broken = {
        "cut.gz": gzip.compress(GLOVE * 1000)[:-200],
        "not.gz": GLOVE,
        "flipped.gz": gzip.compress(GLOVE)[:20] + b"\xff" * 40,
        "not.zip": GLOVE,
        "cut.zip": write(tmp_path, "whole.zip", GLOVE).read_bytes()[:-10],
        "vectors.bin": GLOVE,
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as raised:
            read_word_vectors(path, WANTED)
        assert str(raised.value).startswith(f"{path}: ")
    for path in (tmp_path / "absent.txt", tmp_path / "absent.npy", tmp_path / "absent.zip"):
        with pytest.raises(DataError, match="No such file"):
            read_word_vectors(path, WANTED)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        read_word_vectors(tmp_path / "folder.txt", WANTED)


def test_damage_inside_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "v.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("v.txt", GLOVE)
    path.write_bytes(path.read_bytes().replace(b"The 7", b"The 6"))
    with pytest.raises(DataError, match="damaged"):
        read_word_vectors(path, WANTED)


def test_zip_with_another_number_of_files(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("50d.txt", GLOVE)
        archive.writestr("../300d.txt", GLOVE)
    with pytest.raises(DataError, match=r"found 50d\.txt, \.\./300d\.txt; extract the one meant"):
        read_word_vectors(path, WANTED)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(DataError, match="found none"):
        read_word_vectors(path, WANTED)


def test_array_round_trip(tmp_path: Path) -> None:
    vectors = read_word_vectors(write(tmp_path, "glove.txt", GLOVE), WANTED)
    path = tmp_path / "subset.npy"
    write_word_vectors(path, vectors)
    assert (tmp_path / "subset.txt").read_text(encoding="utf-8") == "the\nété\n2\n"
    assert read(path) == approx(EXPECTED)
    assert read(path, ["2", "nothing"]) == {"2": [3, 3, 3]}
    assert read(path, []) == {}
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "glove.txt",
        "subset.npy",
        "subset.txt",
    ]


def test_array_of_any_precision_and_list_with_odd_words(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(8, dtype=">f8").reshape(4, 2))
    (tmp_path / "v.txt").write_bytes("a\u2028b\r\nx\r\nx\r\n\x85\r\n".encode())
    assert read(tmp_path / "v.npy", ["x", "a\u2028b"]) == {"a\u2028b": [0, 1], "x": [2, 3]}


def test_malformed_arrays(tmp_path: Path) -> None:
    path, words = tmp_path / "v.npy", tmp_path / "v.txt"

    def fails(says: str) -> None:
        with pytest.raises(DataError, match=says):
            read_word_vectors(path, ["b"])

    np.save(path, np.ones((2, 3), np.float32))
    fails(r"word list v\.txt is missing")
    words.write_bytes(b"a\xff\nb\n")
    fails("not UTF-8")
    words.write_text("a\nb\nc\n")
    fails("2 rows, but 3 words")
    words.write_text("a\nb\n")
    np.save(path, np.array([[1, 2], [np.inf, 0]]))
    fails("'b' has a value that is no finite number")
    np.save(path, np.array([[1, 2], [1e99, 0]]))
    fails("'b' has a value that is no finite number")
    for content in (np.ones(2), np.ones((2, 2), np.int64), np.ones((0, 3)), np.ones((2, 0))):
        np.save(path, content)
        fails("expected a matrix of floating-point numbers")
    np.save(path, np.array([["a", {}]], dtype=object), allow_pickle=True)
    fails("not an array")
    whole = b"".join([b"\x93NUMPY", bytes(200)])
    for damaged in (b"", b"text", whole):
        path.write_bytes(damaged)
        fails("not an array")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    vectors = WordVectors({"a": 0}, np.ones((1, 2), np.float32))
    (tmp_path / "v.txt").write_text("mine")
    with pytest.raises(DataError, match=r"v\.txt: exists already"):
        write_word_vectors(tmp_path / "v.npy", vectors)
    assert [file.name for file in tmp_path.iterdir()] == ["v.txt"]
    with pytest.raises(DataError, match=r"suffix \.npy"):
        write_word_vectors(tmp_path / "w.txt", vectors)
    with pytest.raises(DataError, match="could not be written"):
        write_word_vectors(tmp_path / "absent" / "v.npy", vectors)
    assert (tmp_path / "v.txt").read_text() == "mine"


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_word_vectors(tmp_path / "v.npy", WordVectors({"a": 0}, np.ones((1, 2), np.float32)))
    assert not list(tmp_path.iterdir())
