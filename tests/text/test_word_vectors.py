"""Files of word vectors, the embedding made from them, and the script that extracts a few."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mcan.errors import DataError
from mcan.text.vocabulary import Vocabulary
from mcan.text.word_vectors import embedding_matrix, read_word_vectors

GLOVE = (
    b"the 0.5 -1 2e-3\n. . . 1 2 3\nThe 7 8 9\n\xc3\xa9t\xc3\xa9 4 5 6\nat x@y.com 1 1 1\n2 3 3 3\n"
)
EXPECTED = {"the": [0.5, -1, 2e-3], "été": [4, 5, 6], "2": [3, 3, 3]}
WANTED = ["2", "the", "été", "at", ".", "absent"]


def read(path: Path, words: list[str] = WANTED) -> dict[str, list[float]]:
    vectors = read_word_vectors(path, words)
    assert {vector.dtype for vector in vectors.values()} == {np.dtype(np.float32)}
    return {word: vector.tolist() for word, vector in vectors.items()}


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


def test_which_words_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, "v.txt", GLOVE)
    with pytest.raises(DataError, match=r"v\.txt: no vector for any of 2 words"):
        read(path, ["at", "absent"])
    # The case counts, and the first of two; the numbers of other words are not parsed.
    path = write(tmp_path, "two.txt", b"The 1 2\nthe 3 4\nthe 5 6\nodd x y\n")
    assert read(path, ["the", "THE"]) == {"the": [3, 4]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "in line 1, found b''"),
        (b"the\t1\t2\n", "in line 1, found b'the"),
        (b"5 0\nthe\n", "in line 1, found b'5 0"),
        (b"it 1 2 3\nthe 1 2\n", "line 2: expected 3 numbers, found 2"),
        (b"2 3\nit 1 2 3\n", "1 vectors, but its first line announces 2"),
        (b"it 1 2 3\nthe 1 two 3\n", "line 2: not a number .*two"),
        (b"the 1 nan 3\n", "the vector of 'the' has a value that is not finite"),
        (b"2 1 2 3\nthe 1 2 -1e99\n", "the vector of 'the' has a value that is not finite"),
    ],
)
def test_malformed_text(tmp_path: Path, content: bytes, says: str) -> None:
    path = write(tmp_path, "v.txt", content)
    with pytest.raises(DataError, match=says) as raised:
        read_word_vectors(path, ["2", "the"])
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("name", ["absent.txt", "absent.zip"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file; to train without word vectors, set"):
        read_word_vectors(tmp_path / name, WANTED)


def test_a_damaged_file_and_one_of_several_in_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.vec.gz").write_bytes(gzip.compress(GLOVE)[:-9])
    with pytest.raises(DataError, match=r"a\.vec\.gz: damaged or incomplete \(Compressed file"):
        read_word_vectors(tmp_path / "a.vec.gz", WANTED)
    with zipfile.ZipFile(tmp_path / "glove.zip", "w") as archive:
        archive.writestr("50d.txt", b"the 1 2\n")
        archive.writestr("300d.txt", GLOVE)
    assert read(tmp_path / "glove.zip" / "300d.txt") == approx(EXPECTED)


VOCABULARY = Vocabulary(("PAD", "UNK", "is", "it", "red"), ("yes",))


def test_unknown_rows_are_zero() -> None:
    # PAD and UNK are not words, even if a file has vectors of that name.
    rows = {"red": [1, 2, 3], "UNK": [9, 9, 9], "is": [4, 5, 6]}
    vectors = {word: np.array(row, np.float32) for word, row in rows.items()}
    matrix, covered = embedding_matrix(VOCABULARY, vectors, "zero", seed=0)
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[0, 0, 0], [0, 0, 0], [4, 5, 6], [0, 0, 0], [1, 2, 3]]
    assert covered == "2 of 3 words (66.7 %) have a vector; without: it"


@pytest.mark.parametrize("scale", [0.05, 20.0])
def test_unknown_rows_are_random_and_as_large_as_the_vectors(scale: float) -> None:
    words = [f"w{n}" for n in range(400)]
    known = scale * np.random.default_rng(0).standard_normal((200, 50)).astype(np.float32)
    vectors = dict(zip(words, known, strict=False))
    vocabulary = Vocabulary(("PAD", "UNK", *words), ("yes",))
    matrix, covered = embedding_matrix(vocabulary, vectors, "random", seed=0)
    np.testing.assert_array_equal(matrix[2:202], known)
    assert np.std(matrix[202:]) == pytest.approx(scale, rel=0.05)
    assert (matrix[:2] != 0).all()
    assert covered.startswith("200 of 400 words (50.0 %) have a vector; without: w200, ")
    assert covered.endswith("w209 and 190 more")
    for seed, equal in ((0, True), (1, False)):
        again, _ = embedding_matrix(vocabulary, vectors, "random", seed)
        assert np.array_equal(matrix, again) == equal


SCRIPT = Path(__file__).parents[2] / "scripts" / "extract_word_vectors.py"


def test_the_script_extracts_and_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(VOCABULARY.to_json(), encoding="utf-8")
    (tmp_path / "glove.txt").write_text("red 0.1 2e-9\nblue 3 4\nis 5 6\n", "utf-8")
    (tmp_path / "other.txt").write_text("green 1 2\n", encoding="utf-8")

    def extract(vectors: str, output: str) -> subprocess.CompletedProcess[str]:
        options = ["--vocabulary", "vocabulary.json", "--output", output]
        command = [sys.executable, str(SCRIPT), vectors, *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = extract("glove.txt", "subset.txt")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "subset.txt: 2 of 3 words (66.7 %) have a vector; without: it\n"
    files = (tmp_path / "glove.txt", tmp_path / "subset.txt")
    np.testing.assert_equal(*(read_word_vectors(file, ["red", "is"]) for file in files))
    for vectors, output, message in (
        ("glove.txt", "other.txt", "other.txt: exists; choose another --output"),
        ("other.txt", "new.txt", "other.txt: no vector for any of 3 words"),
    ):
        refused = extract(vectors, output)
        assert (refused.returncode, refused.stderr) == (2, f"error: {message}\n")
    assert len(list(tmp_path.iterdir())) == 4
