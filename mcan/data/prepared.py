"""Prepared datasets: the one format that training and evaluation read. Fields: data/README.md.

`meta.json` holds the SHA-256 of every file of the folder. A split is compared with it before the
HDF5 library sees the file, and then mapped into memory. Its content is not checked again.

Q questions of a split.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcan.data.arrays import Ids, Index, RaggedArray, Text, array_to_ids
from mcan.data.integrity import check_file, map_arrays, read_meta
from mcan.errors import DataError, shorten
from mcan.text.vocabulary import Vocabulary, tokenise

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Categories:
    """A category per question: question q has `names[codes[q]]`; `codes` (Q,) int32."""

    codes: NDArray[np.int32]
    names: tuple[Any, ...]


@dataclass(frozen=True)
class HumanAnswers(Sequence[list[str]]):
    """The raw answers of each question; `codes` are int32 indices of the distinct `strings`."""

    codes: RaggedArray
    text: Iterable[str]

    @cached_property
    def strings(self) -> tuple[str, ...]:
        return tuple(self.text)

    @property
    def complete(self) -> bool:
        """Every question has an answer; those of a test split may be withheld."""
        return bool((np.diff(self.codes.offsets) > 0).all())

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, question: int) -> list[str]:  # type: ignore[override]
        return [self.strings[code] for code in self.codes[question].tolist()]


class Split:
    """The questions of a split, as arrays mapped from its file.

    `digest` is the SHA-256 of the file, empty if there is none. `changed` arrays replace those of
    the file.

    - `question_ids` (Q,) are unique; `questions` are the texts as they were asked;
    - `tokens`: int32 token indices of each question, at least one;
    - `image_ids`: the distinct images; question q is about `image_ids[image_index[q]]`;
    - `target_answers` (int32) and `target_scores` (float32): the sparse soft target of each
      question, with the same offsets;
    - `human_answers`: as people wrote them; none in a test split.
    """

    def __init__(self, path: Path, digest: str, changed: Mapping[str, NDArray[Any]]) -> None:
        self.path = path
        self.name = path.stem
        self.digest = digest
        self.changed = changed
        arrays = {**(map_arrays(path, "prepared split")[0] if digest else {}), **changed}

        def text(key: str) -> Text:
            return Text(arrays[key], arrays[f"{key}_offsets"])

        def categories(key: str) -> Categories:
            return Categories(arrays[key], tuple(text(f"{key}_names")))

        self.question_ids: Ids = arrays["question_ids"]
        self.questions = text("questions")
        self.tokens = RaggedArray(arrays["tokens"], arrays["token_offsets"])
        self.image_ids: Ids = arrays["image_ids"]
        self.image_index: NDArray[np.int32] = arrays["image_index"]
        self.target_answers = RaggedArray(arrays["target_index"], arrays["target_offsets"])
        self.target_scores = RaggedArray(arrays["target_score"], arrays["target_offsets"])
        answers = RaggedArray(arrays["human_answers"], arrays["human_answer_offsets"])
        self.human_answers = HumanAnswers(answers, text("answer_strings"))
        self.answer_types = categories("answer_type")
        self.question_types = categories("question_type")

    def __len__(self) -> int:
        return len(self.image_index)

    @cached_property
    def question_keys(self) -> Index:
        """(Q,) a 64-bit hash of image id and text. Ids of questions may start again in every
        dataset, so they are not part of it."""
        images = Text.of(map(str, array_to_ids(self.image_ids))).hashes()
        return self.questions.hashes() ^ 3 * images[self.image_index]

    @property
    def questions_digest(self) -> str:
        """SHA-256 of images and questions in their order, which older checkpoints hold."""
        digest = hashlib.sha256("\n".join(map(str, array_to_ids(self.image_ids))).encode())
        for values in (self.image_index, self.questions.values, self.questions.offsets):
            digest.update(values.tobytes())
        return digest.hexdigest()

    def first(self, count: int) -> Split:
        """Its first `count` questions, or all if there are fewer, and their images alone."""
        types = {"answer_type": self.answer_types, "question_type": self.question_types}
        changed: dict[str, Any] = {
            name: categories.codes[:count] for name, categories in types.items()
        }
        changed["question_ids"] = self.question_ids[:count]
        images, index = np.unique(self.image_index[:count], return_inverse=True)
        changed |= {"image_ids": self.image_ids[images], "image_index": index.astype(np.int32)}
        for lists, offsets, values in (
            (self.questions, "questions_offsets", "questions"),
            (self.tokens, "token_offsets", "tokens"),
            (self.human_answers.codes, "human_answer_offsets", "human_answers"),
            (self.target_answers, "target_offsets", "target_index"),
            (self.target_scores, "target_offsets", "target_score"),
        ):
            changed[offsets] = lists.offsets[: count + 1]
            changed[values] = lists.values[: changed[offsets][-1]]
        return Split(self.path, self.digest, {**self.changed, **changed})

    def __reduce__(self) -> Any:
        # A worker process maps the file again, so all share its pages.
        return Split, (self.path, self.digest, self.changed)


def encode_questions(questions: Text, vocabulary: Vocabulary) -> RaggedArray:
    """The token indices of each question, int32, at least one."""
    tokens, offsets = array("i"), array("q", [0])
    for question in questions:
        tokens.extend(vocabulary.encode(tokenise(question)))
        offsets.append(len(tokens))
    return RaggedArray(np.asarray(tokens), np.asarray(offsets))


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: its vocabulary, the names of its splits, and all of `meta.json`."""

    folder: Path
    vocabulary: Vocabulary
    dataset: str
    metric: str
    splits: tuple[str, ...]
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Prepared:
        """Raises `DataError` if the folder, `meta.json` or `vocabulary.json` is not as written."""
        folder = Path(folder)
        meta = read_meta(folder, FORMAT_VERSION)
        check_file(folder, "vocabulary.json", meta)
        vocabulary = Vocabulary.read(folder / "vocabulary.json")
        splits = tuple(meta["splits"])
        return cls(folder, vocabulary, meta["dataset"], meta["metric"], splits, meta)

    def digest(self, name: str) -> str:
        """SHA-256 of a split's file, without reading it; `DataError` for an unknown split."""
        if name not in self.splits:
            known = shorten(self.splits)
            raise DataError(f"{self.folder}: there is no split '{name}'; there is {known}")
        return str(self.meta["files"][f"{name}.h5"])

    def split(self, name: str) -> Split:
        """Map a split. Raises `DataError` if it is unknown, damaged or not as written."""
        digest = self.digest(name)
        check_file(self.folder, f"{name}.h5", self.meta)
        return Split(self.folder / f"{name}.h5", digest, {})

    def verify(self) -> None:
        """Read every file of the folder; `DataError` names one that is damaged or changed."""
        for name in self.meta["files"]:
            check_file(self.folder, name, self.meta)
