"""Pretrained word vectors: reading files of them, and the initial word embedding.

A file (.txt, .vec, gzipped or in a .zip) has one word a line, then its D numbers, separated by
single spaces, as in GloVe. word2vec and fastText begin with `count D`. A word is looked up as it is
written; its first vector counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcan.console import progress
from mcan.errors import DataError, shorten
from mcan.files import file_on_disk, open_packed
from mcan.text.vocabulary import SPECIAL_TOKENS, Vocabulary

WordVectors = Mapping[str, NDArray[np.float32]]
"""Word -> (D,) its vector; at least one word."""


def coverage(vocabulary: Vocabulary, vectors: WordVectors) -> str:
    """How many words of `vocabulary` have a vector, and the first ones that have none."""
    missing = [word for word in vocabulary.words if word not in vectors]
    total = len(vocabulary.words)
    found = total - len(missing)
    text = f"{found:,} of {total:,} words ({100 * found / total:.1f} %) have a vector"
    if missing:
        text += f"; without: {shorten(missing)}"
    return text


def embedding_matrix(
    vocabulary: Vocabulary, vectors: WordVectors, unknown: Literal["zero", "random"], seed: int
) -> tuple[NDArray[np.float32], str]:
    """(V, D) the vector of each token of `vocabulary`, and the `coverage`.

    The rows of PAD, UNK and words without a vector are zero (as in the authors' code), or random:
    normal, with the standard deviation of the vectors.
    """
    known = np.stack(list(vectors.values()))
    shape = (len(vocabulary.tokens), known.shape[1])
    if unknown == "zero":
        matrix = np.zeros(shape, np.float32)
    else:
        matrix = known.std() * np.random.default_rng(seed).standard_normal(shape, np.float32)
    for token, word in enumerate(vocabulary.words, len(SPECIAL_TOKENS)):
        if word in vectors:
            matrix[token] = vectors[word]
    return matrix, coverage(vocabulary, vectors)


def read_word_vectors(path: Path, words: Collection[str]) -> WordVectors:
    """The vectors of those `words` that the file `path` has, in the order of the file."""
    if not file_on_disk(path).is_file():
        raise DataError(
            f"{path}: no such file; to train without word vectors, set "
            "model.question.word_vectors=null"
        )
    with np.errstate(over="ignore"), open_packed(path, (".txt", ".vec")) as lines:
        vectors = _read_lines(path, lines, words)
    if not vectors:
        raise DataError(f"{path}: no vector for any of {len(words):,} words")
    for word, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise DataError(f"{path}: the vector of '{word}' has a value that is not finite")
    return vectors


def _read_lines(path: Path, lines: Iterable[bytes], words: Collection[str]) -> WordVectors:
    lines = iter(lines)
    first = next(lines, b"")
    fields = first.split()
    has_header = len(fields) == 2 and all(field.isdigit() for field in fields)
    count, dimension = map(int, fields) if has_header else (None, first.rstrip().count(b" "))
    if not dimension:
        raise DataError(f"{path}: expected a word and its numbers in line 1, found {first[:40]!r}")
    rest = enumerate(lines, 2) if has_header else enumerate(itertools.chain([first], lines), 1)
    wanted = {word.encode("utf-8", "surrogatepass"): word for word in words}
    vectors: dict[str, NDArray[np.float32]] = {}
    rows = 0
    bar = progress(rest, path.name, count, delay=2, unit=" words", unit_scale=True, disable=None)
    for number, raw in bar:
        line = raw.rstrip(b" \r\n")
        rows += bool(line)
        word = wanted.get(line.split(b" ", 1)[0])
        if word is None or word in vectors:
            continue
        name, *numbers = line.rsplit(b" ", dimension)
        if b" " in name:  # A few words of GloVe contain spaces; those of questions do not.
            continue
        try:
            vectors[word] = np.array([float(part) for part in numbers], np.float32)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not a number ({error})") from None
        if len(numbers) != dimension:
            raise DataError(
                f"{path}, line {number}: expected {dimension} numbers, found {len(numbers)}"
            )
    if count is not None and rows != count:
        raise DataError(f"{path}: {rows} vectors, but its first line announces {count}")
    return vectors
