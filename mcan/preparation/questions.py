"""Questions and their answers: the layout of the VQA datasets, and a split held as columns.

    questions:    {"questions": [{"question_id", "image_id", "question"}, ...]}
    annotations:  {"annotations": [{"question_id", "image_id", "answers": [{"answer"}, ...],
                  "multiple_choice_answer", "answer_type", "question_type"}, ...]}

Either file may also be the bare list. The last three fields may be missing, further ones are
ignored. Ids are all integers or all strings. A question has one answer or more.

Files are read record by record, and a split is kept as columns. With one answer each, 22 million
questions take 2.5 GB, or 4 GB if their ids are text.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcan.data.arrays import (
    Id,
    Ids,
    RaggedBuilder,
    Text,
    array_to_ids,
    first_duplicate,
    ids_to_array,
)
from mcan.data.prepared import Categories, HumanAnswers
from mcan.data.records import check_id, read_records
from mcan.errors import DataError
from mcan.text.answers import normalise_answer


class Example(NamedTuple):
    """A question of a dataset. `answers` are the raw human ones, none in a test split.

    `majority_answer` stands for all of them when an answer vocabulary is counted; by default it is
    the most common answer after normalisation, the first such.
    """

    question_id: Id
    image_id: Id
    question: str
    answers: Sequence[str] = ()
    answer_type: str = ""
    question_type: str = ""
    majority_answer: str | None = None


def read_questions(path: Path) -> Iterator[Example]:
    """The questions of a file; `DataError` names a record that is not as documented."""
    for record in read_records(path, "questions"):
        yield Example(record.id("question_id"), record.id("image_id"), record.text("question"))


def read_annotations(path: Path) -> Iterator[Example]:
    """The annotations of a file, without the questions; `DataError` names a malformed record."""
    for record in read_records(path, "annotations"):
        given = "multiple_choice_answer" in record
        yield Example(
            record.id("question_id"),
            record.id("image_id"),
            "",
            record.answers(),
            sys.intern(record.text("answer_type", "")),
            sys.intern(record.text("question_type", "")),
            sys.intern(record.text("multiple_choice_answer")) if given else None,
        )


def by_question_id(examples: Iterable[Example], path: Path) -> dict[Id, Example]:
    """The examples of the file `path` by their id; `DataError` for an id that occurs twice."""
    found: dict[Id, Example] = {}
    for example in examples:
        if found.setdefault(example.question_id, example) is not example:
            raise DataError(f"{path}: question id {example.question_id!r} occurs more than once")
    return found


def read_vqa(questions_path: Path, annotations_path: Path | None = None) -> Iterator[Example]:
    """The questions of a file with their annotations, if any, in the order of the questions.

    The two files are read side by side; annotations in another order wait in memory. Raises
    `DataError` if the files do not cover the same questions, or disagree about an image.
    """
    if annotations_path is None:
        yield from read_questions(questions_path)
        return

    def mismatch(question_id: Id) -> DataError:
        return DataError(
            f"{annotations_path}: expected question {question_id!r} exactly once, here and in "
            f"{questions_path}"
        )

    annotations = read_annotations(annotations_path)
    waiting: dict[Id, Example] = {}
    for question in read_questions(questions_path):
        question_id = question.question_id
        while question_id not in waiting:
            following = next(annotations, None)
            if following is None:
                raise mismatch(question_id)
            if waiting.setdefault(following.question_id, following) is not following:
                raise mismatch(following.question_id)
        found = waiting.pop(question_id)
        if found.image_id != question.image_id:
            raise DataError(
                f"{annotations_path}: question {question_id!r} is about image {found.image_id!r}, "
                f"but {questions_path} says {question.image_id!r}"
            )
        yield found._replace(question=question.question)
    for extra in (*waiting.values(), *annotations):
        raise mismatch(extra.question_id)


@dataclass(frozen=True)
class RawSplit:
    """The examples of a split as columns."""

    question_ids: Ids
    questions: Text
    images: Categories
    answers: HumanAnswers
    majority_answers: Counter[str]
    answer_types: Categories
    question_types: Categories

    def __len__(self) -> int:
        return len(self.question_ids)

    @classmethod
    def collect(
        cls, examples: Iterable[Example], path: Path, earlier: RawSplit | None = None
    ) -> RawSplit:
        """Read `examples`, from `path`, to their end.

        Raises `DataError` for an example that cannot be stored, for an id that occurs twice or is
        of another type than those of the `earlier` split, and if there is no example.
        """
        ids: list[Id] = []
        questions, answers = RaggedBuilder("B"), RaggedBuilder("i")
        images, strings, answer_types, question_types = (_Column() for _ in range(4))
        majority_answers: Counter[str] = Counter()
        question_id = array_to_ids(earlier.question_ids[:1])[0] if earlier else None
        image_id = earlier.images.names[0] if earlier else None
        for example in examples:
            try:
                question_id = check_id(example.question_id, "question id", question_id)
                image_id = check_id(example.image_id, "image id", image_id)
                types = example.answer_type, example.question_type
                for text in (example.question, *example.answers, *types):
                    text.encode()
            except (AttributeError, UnicodeEncodeError):
                raise DataError(
                    f"{path}: question {question_id!r}: {text!r} is not a string of valid Unicode"
                ) from None
            except ValueError as error:
                raise DataError(f"{path}: question {example.question_id!r}: {error}") from None
            ids.append(question_id)
            questions.append(example.question.encode())
            images.append(image_id)
            answers.append(strings[answer] for answer in example.answers)
            chosen = example.majority_answer
            if chosen is None and example.answers:
                ranked = Counter(map(normalise_answer, example.answers)).most_common(1)
                chosen = ranked[0][0]
            if chosen is not None:
                majority_answers[chosen] += 1
            answer_types.append(example.answer_type)
            question_types.append(example.question_type)
        if not ids:
            raise DataError(f"{path}: the split has no question")
        question_ids, texts = ids_to_array(ids), questions.build()
        duplicate = first_duplicate(question_ids)
        if duplicate is not None:
            raise DataError(f"{path}: question id {duplicate!r} occurs more than once")
        return cls(
            question_ids,
            Text(texts.values, texts.offsets),
            images.build(),
            HumanAnswers(answers.build(), Text.of(strings)),
            majority_answers,
            answer_types.build(),
            question_types.build(),
        )


class _Column(dict[Any, int]):
    """Codes of values; they count the distinct values in order of first appearance."""

    def __init__(self) -> None:
        self.codes = array("i")

    def __missing__(self, value: Any) -> int:
        return self.setdefault(value, len(self))

    def append(self, value: Any) -> None:
        self.codes.append(self[value])

    def build(self) -> Categories:
        return Categories(np.asarray(self.codes), tuple(self))
