"""Questions and annotations in the layout of the VQA datasets, whose files many others share.

    questions:    {"questions": [{"question_id", "image_id", "question"}, ...]}
    annotations:  {"annotations": [{"question_id", "image_id", "answers": [{"answer"}, ...],
                  "multiple_choice_answer", "answer_type", "question_type"}, ...]}

Either file may also be the bare list. The last three fields may be missing, further ones are
ignored. Ids are all integers or all strings. A question has one answer or more.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcan.data.hdf5 import Id
from mcan.data.json_items import read_items
from mcan.data.prepared_writer import Example
from mcan.errors import DataError
from mcan.text.answers import normalise_answer


@dataclass(frozen=True, slots=True)
class Question:
    """A question as its file has it."""

    question_id: Id
    image_id: Id
    text: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """What people answered; `chosen` is the one answer that stands for all of them."""

    image_id: Id
    answers: tuple[str, ...]
    chosen: str
    answer_type: str = ""
    question_type: str = ""


@dataclass(frozen=True)
class RawSplit:
    """Questions and, by question id, annotations, both in the order of their files.

    `annotations` is empty where answers are held back. `sources` are the files that were read.
    """

    questions: Sequence[Question]
    annotations: Mapping[Id, Annotation] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()

    @property
    def images(self) -> dict[Id, None]:
        """The different images, in the order of their first question."""
        return dict.fromkeys(question.image_id for question in self.questions)

    def examples(self) -> Iterator[Example]:
        """What `write_prepared` takes."""
        for question in self.questions:
            found = self.annotations.get(question.question_id)
            yield Example(
                question.question_id,
                question.image_id,
                question.text,
                found.answers if found else (),
                found.answer_type if found else "",
                found.question_type if found else "",
            )


class Record:
    """An object of a JSON list; its errors name the file, the entry and the question."""

    def __init__(self, path: Path, place: int | str, value: Any) -> None:
        self._path = path
        self._place = place
        if not isinstance(value, dict):
            raise DataError(f"{path}: entry {place} is {_shown(value)}, expected an object")
        self._fields = value

    def error(self, text: str) -> DataError:
        known = self._fields.get("question_id")
        about = f" (question {known!r})" if isinstance(known, (int, str)) else ""
        return DataError(f"{self._path}: entry {self._place}{about}: {text}")

    def has(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            raise self.error(f"'{name}' is missing") from None

    def text(self, name: str, default: str | None = None) -> str:
        """A text; `default`, where given, for a missing field."""
        if default is not None and name not in self._fields:
            return default
        value = self.get(name)
        if not isinstance(value, str):
            raise self.error(f"'{name}' is {_shown(value)}, expected text")
        return value

    def id(self, name: str, like: Id | None) -> Id:
        """An integer or text, of the same type as `like`, an earlier one."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise self.error(f"'{name}' is {_shown(value)}, expected an integer or text")
        if like is not None and type(like) is not type(value):
            raise self.error(
                f"'{name}' is {value!r} while an earlier one is {like!r}; ids must be all integers "
                "or all strings"
            )
        return value

    def answers(self) -> tuple[str, ...]:
        """The texts of the field `answers`, at least one."""
        value = self.get("answers")
        if not isinstance(value, list) or not value:
            raise self.error(f"'answers' is {_shown(value)}, expected a list of at least one")
        for number, item in enumerate(value):
            if not isinstance(item, dict) or not isinstance(item.get("answer"), str):
                raise self.error(
                    f"answers[{number}] is {_shown(item)}, expected an object with the text "
                    "'answer'"
                )
        return tuple([sys.intern(item["answer"]) for item in value])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_records(path: Path, key: str | None = None) -> Iterator[Record]:
    """The objects of a JSON list; see `read_items`."""
    for number, value in enumerate(read_items(path, key)):
        yield Record(path, number, value)


def most_given(answers: Sequence[str]) -> str:
    """The normalised answer that most people gave, the first such."""
    return Counter(map(normalise_answer, answers)).most_common(1)[0][0]


def read_questions(path: Path) -> list[Question]:
    """The questions of a file; `DataError` names the entry that is not as documented."""
    questions: dict[Id, Question] = {}
    question_id = image_id = None
    for record in read_records(path, "questions"):
        question_id = record.id("question_id", question_id)
        image_id = record.id("image_id", image_id)
        if question_id in questions:
            raise record.error("this question id occurred before")
        questions[question_id] = Question(question_id, image_id, record.text("question"))
    return list(questions.values())


def read_annotations(path: Path) -> dict[Id, Annotation]:
    """The annotations of a file; `DataError` names the entry that is not as documented."""
    annotations: dict[Id, Annotation] = {}
    question_id = image_id = None
    for record in read_records(path, "annotations"):
        question_id = record.id("question_id", question_id)
        image_id = record.id("image_id", image_id)
        if question_id in annotations:
            raise record.error("this question id occurred before")
        answers = record.answers()
        if record.has("multiple_choice_answer"):
            chosen = record.text("multiple_choice_answer")
        else:
            chosen = most_given(answers)
        annotations[question_id] = Annotation(
            image_id,
            answers,
            sys.intern(chosen),
            sys.intern(record.text("answer_type", "")),
            sys.intern(record.text("question_type", "")),
        )
    return annotations


def read_vqa(questions_path: Path, annotations_path: Path | None = None) -> RawSplit:
    """A split of a question file and, where answers are known, an annotation file.

    Raises `DataError` where the two do not cover the same questions, or disagree on an image.
    """
    questions = read_questions(questions_path)
    if annotations_path is None:
        return RawSplit(questions, sources=(questions_path,))
    annotations = read_annotations(annotations_path)
    for question in questions:
        name = f"question {question.question_id!r}"
        found = annotations.get(question.question_id)
        if found is None:
            raise DataError(f"{annotations_path}: {name} of {questions_path} has no annotation")
        if found.image_id != question.image_id:
            raise DataError(
                f"{annotations_path}: {name} is about image {found.image_id!r}, but "
                f"{questions_path} says {question.image_id!r}"
            )
    if len(annotations) > len(questions):
        known = {question.question_id for question in questions}
        extra = next(question_id for question_id in annotations if question_id not in known)
        raise DataError(
            f"{annotations_path}: question {extra!r} is annotated but not in {questions_path}"
        )
    return RawSplit(questions, annotations, (questions_path, annotations_path))
