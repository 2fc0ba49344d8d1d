"""Questions and their answers: the layout of the VQA datasets, and a split held as columns.

    questions:    {"questions": [{"question_id", "image_id", "question"}, ...]}
    annotations:  {"annotations": [{"question_id", "image_id", "answers": [{"answer"}, ...],
                  "multiple_choice_answer", "answer_type", "question_type"}, ...]}

Either file may also be the bare list. The last three fields may be missing, further ones are
ignored. The image and the question may stand in either. Ids are all integers or all strings. A
question has one answer or more. Files of records hold both; `fields.py` knows their names.

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

from mcan.console import message_once
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
from mcan.data.records import Record, check_id, read_records, read_rows
from mcan.errors import DataError, shorten
from mcan.preparation.fields import (
    EXPECTED_ANSWERS,
    NAMES,
    OTHER_ANSWER,
    Fields,
    ImageIds,
    find_fields,
    from_cell,
    people_answers,
)
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
    """The annotations of a file; `DataError` names a malformed record.

    Images and questions may be left to the file of questions: they are None.
    """
    for record in read_records(path, "annotations"):
        given = "multiple_choice_answer" in record
        yield _asked(record)._replace(
            answers=tuple(answers_of(record)),
            answer_type=sys.intern(record.text("answer_type", "")),
            question_type=sys.intern(record.text("question_type", "")),
            majority_answer=sys.intern(record.text("multiple_choice_answer")) if given else None,
        )


def _asked(record: Record) -> Example:
    image: Any = record.id("image_id") if "image_id" in record else None
    question: Any = record.text("question") if "question" in record else None
    return Example(record.id("question_id"), image, question)


def answers_of(
    record: Record, name: str = "answers", counts: bool = False, required: bool = True
) -> list[str]:
    """The answers in a field, by `people_answers`; `DataError` if none is there but required."""
    value, reason = record.get(name), ""
    try:
        # Nearly always a list of objects, and there are millions. Empty values go the other way.
        answers = [sys.intern(item["answer"]) for item in value or [None]]
    except (TypeError, LookupError):
        try:
            answers = people_answers(from_cell(value), counts)
        except (ValueError, TypeError, LookupError) as error:
            answers, required, reason = [], True, f" ({error})"
    if required and not answers:
        raise record.error(f"'{name}' is {value!r:.60}, {EXPECTED_ANSWERS}{reason}")
    return answers


def by_question_id(examples: Iterable[Example], path: Path) -> dict[Id, Example]:
    """The examples of the file `path` by their id; `DataError` for an id that occurs twice."""
    found: dict[Id, Example] = {}
    for example in examples:
        if found.setdefault(example.question_id, example) is not example:
            raise DataError(f"{path}: question id {example.question_id!r} occurs more than once")
    return found


def read_files(
    *paths: Path, fields: Fields | None = None, ids: ImageIds | None = None, first_row: int = 0
) -> Iterator[Example]:
    """The questions of a pair of files in the VQA layout, or of files of records in turn.

    Two files are a pair unless `fields` are named or the first has answers. `first_row` is the
    number of the first record, for ids that are missing. Raises `DataError` for a malformed record,
    and if only some have answers.
    """
    given, ids = tuple((fields or {}).items()), ids or ImageIds()
    for path in paths:
        place, row = next(read_rows(path))
        record = Record(path, place, row)
        if len(paths) == 2 and not given and not any(name in record for name in NAMES["answer"]):
            yield from read_vqa(*paths, ids)
            return
        found, choice = find_fields(path, tuple(row), given)
        if found["answer"] or found["image"] != ["image_id"]:  # more than questions as VQA has them
            message_once(f"{path}: {choice}")
    counts: dict[Path, bool] = {}
    answered: bool | None = None
    rows = ((path, place, row) for path in paths for place, row in read_rows(path))
    for number, (path, place, row) in enumerate(rows, first_row):
        record = Record(path, place, row)
        found, _ = find_fields(path, tuple(row), given)
        answers: list[str] = []
        for name in found["answer"]:
            value = record.get(name)
            if path not in counts and isinstance(from_cell(value), dict):
                counts[path] = any(_has_counts(other, name) for _, other in read_rows(path))
            answers += answers_of(record, name, counts.get(path, False), required=False)
        if answered not in (None, bool(answers)):
            raise record.error(
                f"it has {'no' if answered else 'an'} answer, unlike those before; make questions "
                "without answers a split of their own"
            )
        answered = bool(answers)
        types = [_type(record, found[role]) for role in ("type", "question_type", "chosen")]
        unnamed = place if isinstance(place, str) else number
        yield Example(
            record.id(found["id"][0]) if found["id"] else unnamed,
            ids.find(record, record.get(found["image"][0])),
            record.text(found["question"][0]),
            tuple(answers),
            types[0],
            types[1],
            types[2] or None if answers else None,
        )


def _type(record: Record, names: Sequence[str]) -> str:
    value = record.get(names[0]) if names else None
    return sys.intern("" if value is None else str(value).strip())


def _has_counts(row: Any, name: str) -> bool:
    """A score above 1 says that all scores of the file are numbers of people."""
    value = from_cell(row.get(name))
    scores = value.values() if isinstance(value, dict) else ()
    return any(isinstance(score, int | float) and score > 1 for score in scores)


def read_vqa(
    questions_path: Path, annotations_path: Path, ids: ImageIds | None = None
) -> Iterator[Example]:
    """The questions of a file with their annotations, in the order of the questions.

    The two files are read side by side; annotations in another order wait in memory. Annotations of
    other questions are left out, which is said. Raises `DataError` for a question without
    annotation, if the files disagree about an image, and if neither has the image or the question.
    """

    def mismatch(question_id: Id) -> DataError:
        return DataError(
            f"{annotations_path}: expected question {question_id!r} exactly once, here and in "
            f"{questions_path}"
        )

    ids = ids or ImageIds()
    annotations = read_annotations(annotations_path)
    waiting: dict[Id, Example] = {}
    for record in read_records(questions_path, "questions"):
        question_id, image_id, question = _asked(record)[:3]
        while question_id not in waiting:
            following = next(annotations, None)
            if following is None:
                raise mismatch(question_id)
            if waiting.setdefault(following.question_id, following) is not following:
                raise mismatch(following.question_id)
        found = waiting.pop(question_id)
        if None not in (found.image_id, image_id) and found.image_id != image_id:
            raise DataError(
                f"{annotations_path}: question {question_id!r} is about image {found.image_id!r}, "
                f"but {questions_path} says {image_id!r}"
            )
        image_id = found.image_id if image_id is None else image_id
        question = found.question if question is None else question
        for name, value in (("image_id", image_id), ("question", question)):
            if value is None:
                raise record.error(f"'{name}' is missing, also in {annotations_path}")
        yield found._replace(image_id=ids.find(record, image_id), question=question)
    extra = [each.question_id for each in (*waiting.values(), *annotations)]
    if extra:
        asked = {record.id("question_id") for record in read_records(questions_path, "questions")}
        if twice := asked.intersection(extra):
            raise mismatch(twice.pop())
        message_once(
            f"warning: {annotations_path}: {len(extra):,} annotations are left out, as their "
            f"questions are not in {questions_path}: {shorten(map(repr, extra))}"
        )


@dataclass(frozen=True)
class RawSplit:
    """The examples of a split as columns.

    `contradictions` counts the questions whose majority answer is one that nobody gave; the most
    common answer takes its place.
    """

    question_ids: Ids
    questions: Text
    images: Categories
    answers: HumanAnswers
    majority_answers: Counter[str]
    answer_types: Categories
    question_types: Categories
    contradictions: int = 0

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
        contradictions = 0
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
            if chosen is not None and example.answers and chosen not in example.answers:
                given = set(map(normalise_answer, example.answers))
                if normalise_answer(chosen) not in given:
                    chosen, contradictions = None, contradictions + 1
            if chosen is None:
                known = [answer for answer in example.answers if answer != OTHER_ANSWER]
                ranked = Counter(map(normalise_answer, known)).most_common(1)
                chosen = ranked[0][0] if ranked else None
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
            contradictions,
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
