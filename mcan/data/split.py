"""One split of a prepared dataset, read and checked. Fields: data/README.md.

Q questions, V tokens and A answers of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mcan.data.hdf5 import (
    TEXT,
    Ids,
    check_offsets,
    ids_digest,
    read_array,
    read_ids,
    read_strings,
    reading,
    require,
)
from mcan.data.packed import Index, Packed
from mcan.errors import DataError
from mcan.text.tokens import tokenise
from mcan.text.vocabulary import Vocabulary

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Types:
    """A type per question: question q is of type `names[codes[q]]`; `codes` (Q,) int32."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class HumanAnswers:
    """The raw answers of all questions, as numbers (packed, int32) of the different `strings`."""

    codes: Packed
    strings: tuple[str, ...]

    def of(self, question: int) -> list[str]:
        first, last = self.codes.offsets[question : question + 2].tolist()
        return [self.strings[code] for code in self.codes.values[first:last].tolist()]


@dataclass(frozen=True)
class Split:
    """Arrays are in memory; question ids and raw text are read from the file when first asked for.

    - `tokens`: int32 token ids of each question, at least one;
    - `image_ids`: the different images; question q is about `image_ids[image_index[q]]`;
    - `target_answers` (int32) and `target_scores` (float32): the sparse soft target of each
      question; both have the same offsets.
    """

    path: Path
    name: str
    vocabulary_digest: str
    tokens: Packed
    image_ids: Ids
    image_index: NDArray[np.int32]
    target_answers: Packed
    target_scores: Packed
    answer_types: Types
    question_types: Types

    def __len__(self) -> int:
        return len(self.image_index)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be read again, so that worker processes get little."""
        lazy = {"question_ids", "questions", "human_answers", "digest"}
        return {name: value for name, value in self.__dict__.items() if name not in lazy}

    @cached_property
    def question_ids(self) -> Ids:
        """(Q,) int64, or str objects."""
        with reading(self.path, "prepared split") as file:
            return read_ids(file, "question_ids", len(self))

    @cached_property
    def questions(self) -> list[str]:
        """The questions as they were asked."""
        with reading(self.path, "prepared split") as file:
            return read_strings(file, "questions", len(self))

    @cached_property
    def human_answers(self) -> HumanAnswers:
        """The answers that people gave, as they wrote them; none in a test split."""
        with reading(self.path, "prepared split") as file:
            strings = tuple(read_strings(file, "answer_strings"))
            codes = _packed(
                file, "human_answers", "human_answer_offsets", np.int32, len(self), 0, len(strings)
            )
            return HumanAnswers(codes, strings)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the question ids in their order, in hexadecimal."""
        return ids_digest(self.question_ids)

    @property
    def content_digest(self) -> str:
        """SHA-256 of what training sees: ids, tokens, images and targets of all questions."""
        digest = hashlib.sha256(self.digest.encode())
        digest.update(json.dumps(self.image_ids.tolist()).encode())
        for packed in (self.tokens, self.target_answers, self.target_scores):
            digest.update(packed.offsets.tobytes())
            digest.update(packed.values.tobytes())
        digest.update(self.image_index.tobytes())
        return digest.hexdigest()


def reencode(split: Split, vocabulary: Vocabulary) -> Split:
    """The split with its questions in the tokens of another vocabulary, and without targets."""
    encoded = [vocabulary.encode(tokenise(question)) for question in split.questions]
    offsets = np.cumsum([0, *map(len, encoded)])
    nothing = np.zeros(len(split) + 1, np.int64)
    return replace(
        split,
        vocabulary_digest=vocabulary.digest,
        tokens=Packed(np.fromiter(chain.from_iterable(encoded), np.int32), offsets),
        target_answers=Packed(np.zeros(0, np.int32), nothing),
        target_scores=Packed(np.zeros(0, np.float32), nothing),
    )


def read_split(path: Path, name: str, vocabulary: Vocabulary) -> Split:
    """Raises `DataError` where the file is missing, damaged or not as documented."""
    with reading(path, "prepared split") as file:
        return _read(file, path, name, vocabulary)


def read_answer_types(path: Path) -> tuple[str, ...]:
    """The names of a split's answer types, without reading the split."""
    with reading(path, "prepared split") as file:
        return tuple(read_strings(file, "answer_type_names"))


def _read(file: h5py.File, path: Path, name: str, vocabulary: Vocabulary) -> Split:
    version = file.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version is {version}, this program reads {FORMAT_VERSION}; run the "
            "prepare.py of the dataset again"
        )
    digest = file.attrs.get("vocabulary")
    if digest != vocabulary.digest:
        raise DataError(
            f"{path}: was made with another vocabulary than {path.parent / 'vocabulary.json'}; "
            "run the prepare.py of the dataset again"
        )
    image_index = read_array(file, "image_index", np.int32, (None,))
    count, tokens, answers = len(image_index), len(vocabulary.tokens), len(vocabulary.answers)
    require(file, "question_ids", [np.int64, TEXT], (count,))
    require(file, "questions", [TEXT], (count,))
    require(file, "human_answers", [np.int32], (None,))
    image_ids = read_ids(file, "image_ids")
    _check_range(file, "image_index", image_index, len(image_ids))
    targets = _packed(file, "target_index", "target_offsets", np.int32, count, 0, answers)
    scores = read_array(file, "target_score", np.float32, targets.values.shape)
    if not bool(((scores > 0) & (scores <= 1)).all()):
        raise DataError(f"{path}: dataset 'target_score' holds values outside (0, 1]")
    return Split(
        path,
        name,
        str(digest),
        _packed(file, "tokens", "token_offsets", np.int32, count, 1, tokens),
        image_ids,
        image_index,
        targets,
        Packed(scores, targets.offsets),
        _types(file, "answer_type", count),
        _types(file, "question_type", count),
    )


def _packed(
    file: h5py.File, name: str, offsets: str, dtype: Any, count: int, least: int, limit: int
) -> Packed:
    """`count` lists of at least `least` numbers from [0, `limit`)."""
    values = read_array(file, name, dtype, (None,))
    starts: Index = read_array(file, offsets, np.int64, (count + 1,))
    check_offsets(file.filename, offsets, starts, len(values), least)
    _check_range(file, name, values, limit)
    return Packed(values, starts)


def _types(file: h5py.File, name: str, count: int) -> Types:
    names = tuple(read_strings(file, f"{name}_names"))
    codes = read_array(file, name, np.int32, (count,))
    _check_range(file, name, codes, len(names))
    return Types(codes, names)


def _check_range(file: h5py.File, name: str, values: NDArray[Any], limit: int) -> None:
    wrong = values[(values < 0) | (values >= limit)]
    if len(wrong):
        raise DataError(
            f"{file.filename}: dataset '{name}' holds {wrong[0]}, expected 0 to {limit - 1}"
        )
