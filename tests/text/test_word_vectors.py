import numpy as np
import pytest

from mcan.text.vocabulary import Vocabulary
from mcan.text.word_vectors import WordVectors, coverage, embedding_matrix

VOCABULARY = Vocabulary(("PAD", "UNK", "is", "it", "red"), ("yes",))
# PAD and UNK are no words, even where a file has vectors of that name.
VECTORS = WordVectors(
    {"red": 0, "UNK": 1, "is": 2}, np.array([[1, 2, 3], [9, 9, 9], [4, 5, 6]], np.float32)
)
NONE = WordVectors({}, np.zeros((0, 3), np.float32))


def test_unknown_rows_are_zero() -> None:
    matrix, covered = embedding_matrix(VOCABULARY, VECTORS, "zero", seed=0)
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [[0, 0, 0], [0, 0, 0], [4, 5, 6], [0, 0, 0], [1, 2, 3]]
    assert (covered.found, covered.total, covered.missing) == (2, 3, ("it",))
    assert covered == coverage(VOCABULARY, VECTORS)


def test_unknown_rows_are_random() -> None:
    matrix, _ = embedding_matrix(VOCABULARY, VECTORS, "random", seed=3)
    assert matrix.dtype == np.float32
    assert matrix[[2, 4]].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert (matrix[[0, 1, 3]] != 0).all()
    again, _ = embedding_matrix(VOCABULARY, VECTORS, "random", seed=3)
    other, _ = embedding_matrix(VOCABULARY, VECTORS, "random", seed=4)
    assert np.array_equal(matrix, again)
    assert not np.array_equal(matrix, other)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_random_rows_are_as_large_as_the_vectors(scale: float) -> None:
    words = [f"w{n}" for n in range(400)]
    rng = np.random.default_rng(0)
    known = scale * rng.standard_normal((200, 50)).astype(np.float32)
    vectors = WordVectors({word: row for row, word in enumerate(words[:200])}, known)
    vocabulary = Vocabulary(("PAD", "UNK", *words), ("yes",))
    matrix, covered = embedding_matrix(vocabulary, vectors, "random", seed=0)
    assert np.std(matrix[202:]) == pytest.approx(scale, rel=0.05)
    assert len(covered.missing) == 10
    assert str(covered).startswith("200 of 400 words (50.0 %) have a vector; without: w200, ")
    assert str(covered).endswith("w209, …")


def test_nothing_known() -> None:
    matrix, covered = embedding_matrix(VOCABULARY, NONE, "zero", seed=0)
    assert not matrix.any()
    assert matrix.shape == (5, 3)
    assert str(covered) == "0 of 3 words (0.0 %) have a vector; without: is, it, red"
    matrix, _ = embedding_matrix(VOCABULARY, NONE, "random", seed=0)
    assert 0.3 < np.std(matrix) < 3


def test_no_words() -> None:
    matrix, covered = embedding_matrix(Vocabulary(("PAD", "UNK"), ()), NONE, "zero", seed=0)
    assert matrix.shape == (2, 3)
    assert str(covered) == "0 of 0 words (100.0 %) have a vector"
