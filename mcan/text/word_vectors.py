"""Pretrained word vectors as the first state of the word embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcan.text.vocabulary import SPECIAL_TOKENS, Vocabulary

_NAMED_MISSING = 10


@dataclass(frozen=True)
class WordVectors:
    """`matrix` (found, D) float32; `index` gives the row of each word, in the order of the rows."""

    index: Mapping[str, int]
    matrix: NDArray[np.float32]

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.matrix.shape[1])


@dataclass(frozen=True)
class Coverage:
    """How many words of a vocabulary have a vector, and the first ones that have none."""

    found: int
    total: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        share = 100 * self.found / self.total if self.total else 100.0
        text = f"{self.found:,} of {self.total:,} words ({share:.1f} %) have a vector"
        if not self.missing:
            return text
        more = ", …" if self.total - self.found > len(self.missing) else ""
        return f"{text}; without: {', '.join(self.missing)}{more}"


def coverage(vocabulary: Vocabulary, vectors: WordVectors) -> Coverage:
    """How many words of `vocabulary` (PAD and UNK are none) are in `vectors`."""
    missing = [word for word in vocabulary.words if word not in vectors.index]
    total = len(vocabulary.words)
    return Coverage(total - len(missing), total, tuple(missing[:_NAMED_MISSING]))


def embedding_matrix(
    vocabulary: Vocabulary, vectors: WordVectors, unknown: Literal["zero", "random"], seed: int
) -> tuple[NDArray[np.float32], Coverage]:
    """(V, D) the vector of each token of `vocabulary`, and how many words have one.

    The rows of PAD, UNK and words without a vector are zeros (as in the authors' code), or random:
    normal, with the standard deviation of the vectors found (1 where there is none).
    """
    shape = (len(vocabulary.tokens), vectors.dimension)
    if unknown == "zero":
        matrix = np.zeros(shape, np.float32)
    else:
        scale = vectors.matrix.std() if vectors.matrix.size else np.float32(1)
        matrix = scale * np.random.default_rng(seed).standard_normal(shape, np.float32)
    for number, word in enumerate(vocabulary.words, len(SPECIAL_TOKENS)):
        if word in vectors.index:
            matrix[number] = vectors.matrix[vectors.index[word]]
    return matrix, coverage(vocabulary, vectors)
