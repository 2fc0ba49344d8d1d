"""Questions and their answers: the layout of the VQA datasets, and a split held as columns.

    questions:    {"questions": [{"question_id", "image_id", "question"}, ...]}
    annotations:  {"annotations": [{"question_id", "image_id", "answers": [{"answer"}, ...],
                  "multiple_choice_answer", "answer_type", "question_type"}, ...]}

Either file may also be the bare list. The last three fields may be missing, further ones are
ignored. The image may stand in the annotations alone. Ids are all integers or all strings. A
question has one answer or more. Files of records hold both, under names that `NAMES` lists.

Files are read record by record, and a split is kept as columns. With one answer each, 22 million
questions take 2.5 GB, or 4 GB if their ids are text.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcan.console import message_once
from mcan.data.arrays import Id, Ids, RaggedArray, Text, array_to_ids, first_duplicate, ids_to_array
from mcan.data.prepared import Categories, HumanAnswers
from mcan.data.records import Record, check_id, read_records
from mcan.errors import DataError, plural, shorten
from mcan.evaluation.metrics import soft_score
from mcan.preparation.names import ImageIds, find_names
from mcan.text.answers import normalise_answer

# Well-known names of fields, the preferred ones first.
NAMES = {
    "question": ("question", "sent", "sentence", "query"),
    "image": (
        *("image_id", "img_id", "image_name", "img_name", "file_name", "image_file"),
        *("image_filename", "image_path", "image", "img", "image_index"),
    ),
    "answer": ("answers", "direct_answers", "answer", "label", "multiple_choice_answer"),
    "id": ("question_id", "qid", "question_index", "id"),
    "type": ("answer_type",),
    "question_type": ("question_type", "content_type"),
    "chosen": ("multiple_choice_answer",),
}
OTHER_ANSWER = "…"
"""Stands for the answers of people that a file with scores does not name. It is never a class."""


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
            answers_of(record),
            sys.intern(record.text("answer_type", "")),
            sys.intern(record.text("question_type", "")),
            sys.intern(record.text("multiple_choice_answer")) if given else None,
        )


def answers_of(record: Record, name: str = "answers") -> tuple[str, ...]:
    """The answers in a field, by `people_answers`; `DataError` if there is none."""
    value, reason = record.get(name), ""
    try:
        if answers := tuple(people_answers(value)):
            return answers
    except (ValueError, TypeError, LookupError) as error:
        reason = f" ({error})"
    raise record.error(
        f"'{name}' is {value!r:.60}, expected a text, a list of texts or of "
        f'{{"answer": text}}, or text -> score{reason}'
    )


def people_answers(value: Any) -> list[str]:
    """The answers of all people, in any form that files have.

    One text, number or yes/no; a list of these or of {"answer"}; an object of lists; text -> score;
    the text of a list or object, as tables hold them. Scores give the answers of ten people that
    have these scores by VQA's metric. Raises `ValueError`, `TypeError` or `LookupError` for
    anything else.
    """
    if isinstance(value, str) and value.startswith(("[", "{")):
        value = _parse(value)
    if isinstance(value, dict):
        if not isinstance(value.get("answer"), str | list):
            return _votes(value)
        value = value["answer"]
    items = value if isinstance(value, list) else [value]
    return [_answer_text(item["answer"] if isinstance(item, dict) else item) for item in items]


def _answer_text(value: Any) -> str:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:  # nan, an empty cell of pandas
        return ""
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r:.60} is not an answer")
    return f"{value:.15g}"


def _votes(scores: Mapping[str, Any]) -> list[str]:
    answers: list[str] = []
    for answer, score in scores.items():
        if score is not None:  # Parquet has one column for each answer of any record
            count = min(range(5), key=lambda count: abs(soft_score(count) - score))
            if abs(soft_score(count) - score) > 0.07:
                raise ValueError(f"{score} is not 0, 0.3, 0.6, 0.9 or 1, as 0 to 4 of ten give")
            answers += [answer] * count
    # The rest of ten gave an answer whose score stays 1 with more of them, or none of these.
    best = max(answers, key=answers.count, default=OTHER_ANSWER)
    rest = best if answers.count(best) == 4 else OTHER_ANSWER
    return answers + [rest] * (10 - len(answers))


def _parse(text: str) -> Any:
    """A list or object in the notation of JSON or Python; else `text`.

    Arrays of numpy have no commas: Python would join "['yes' 'no']" into one answer.
    """
    spaced = re.sub(r"""(?<=['"}])\s+(?=['"{])""", ", ", text)
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError):
            return parse(spaced)
    return text


def by_question_id(examples: Iterable[Example], path: Path) -> dict[Id, Example]:
    """The examples of the file `path` by their id; `DataError` for an id that occurs twice."""
    found: dict[Id, Example] = {}
    for example in examples:
        if found.setdefault(example.question_id, example) is not example:
            raise DataError(f"{path}: question id {example.question_id!r} occurs more than once")
    return found


def find_fields(record: Record, given: Mapping[str, str]) -> dict[str, str]:
    """The fields of a record by their role, as `given` or by a well-known name.

    `DataError` lists the fields if one that is given is not there, or no question or image; a
    missing answer is a warning.
    """
    fields, answer = shorten(record.fields), given.get("answer")
    if answer and answer not in record.fields:  # the questions of a test split
        reason = f"there is no {answer!r} for answer among {fields}"
        message_once(f"warning: {record.path}: {reason}; its questions have no answers")
        given = {**given, "answer": ""}
    try:
        found = find_names(record.fields, NAMES, given)
        if missing := [role for role in ("question", "image") if role not in found]:
            raise ValueError(f"no field is known as {missing[0]}; the fields are {fields}")
    except ValueError as error:
        raise DataError(f"{record.path}: {error}; choose with --fields ROLE=FIELD") from None
    return found


def read_files(
    *paths: Path, fields: Mapping[str, str] | None = None, ids: ImageIds | None = None
) -> Iterator[Example]:
    """The questions of a pair of files in the VQA layout, or of files of records in turn.

    Two files are a pair unless `fields` are named or the first has answers. A question without id
    is called FILE/ROW. Raises `DataError` for a malformed record, and if only some have answers.
    """
    fields, ids = fields or {}, ids or ImageIds()
    if len(paths) == 2 and not fields:
        first = next(read_records(paths[0]))
        if not any(name in first for name in NAMES["answer"]):
            yield from read_vqa(*paths, ids)
            return
    answered: bool | None = None
    for path in paths:
        found = find_fields(next(read_records(path)), fields)
        named = " ".join(f"{role}={name}" for role, name in found.items())
        message_once(f"{path}: --fields {named}")
        for record in read_records(path):
            answers: tuple[str, ...] = ()
            if "answer" in found and record.get(found["answer"]) not in (None, []):
                answers = answers_of(record, found["answer"])
                answers = answers if any(map(str.strip, answers)) else ()
            if answered not in (None, bool(answers)):
                raise record.error(
                    f"it has {'no' if answered else 'an'} answer, unlike those before; make "
                    "questions without answers a split of their own"
                )
            answered = bool(answers)
            roles = ("type", "question_type", "chosen")
            kinds = [str(record.fields.get(found.get(role)) or "").strip() for role in roles]
            yield Example(
                record.id(found["id"]) if "id" in found else record.name,
                ids.find(record, record.get(found["image"])),
                record.text(found["question"]),
                answers,
                kinds[0],
                kinds[1],
                kinds[2] or None if answers else None,
            )


def read_vqa(
    questions_path: Path, annotations_path: Path, ids: ImageIds | None = None
) -> Iterator[Example]:
    """The questions of a file with their annotations, in the order of the questions.

    The two files are read side by side; annotations in another order wait in memory. The image may
    stand in the annotations alone. Annotations of other questions are left out, which is said.
    Raises `DataError` for a question without annotation, and if the files disagree about an image.
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
        question_id = record.id("question_id")
        while question_id not in waiting:
            following = next(annotations, None)
            if following is None:
                raise mismatch(question_id)
            if waiting.setdefault(following.question_id, following) is not following:
                raise mismatch(following.question_id)
        found = waiting.pop(question_id)
        image_id = record.id("image_id") if "image_id" in record else found.image_id
        if found.image_id != image_id:
            raise DataError(
                f"{annotations_path}: question {question_id!r} is about image {found.image_id!r}, "
                f"but {questions_path} says {image_id!r}"
            )
        yield found._replace(image_id=ids.find(record, image_id), question=record.text("question"))
    if extra := [each.question_id for each in (*waiting.values(), *annotations)]:
        message_once(
            f"warning: {annotations_path}: left out {plural(len(extra), 'annotation')}, whose "
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
            given = [normalise_answer(text) for text in example.answers if text != OTHER_ANSWER]
            if chosen is not None and given and normalise_answer(chosen) not in given:
                chosen, contradictions = None, contradictions + 1
            if chosen is None and given:
                ((chosen, _),) = Counter(given).most_common(1)
            if chosen is not None:
                majority_answers[chosen] += 1
            answer_types.append(example.answer_type)
            question_types.append(example.question_type)
        if not ids:
            raise DataError(f"{path}: the split has no question")
        question_ids = ids_to_array(ids)
        duplicate = first_duplicate(question_ids)
        if duplicate is not None:
            raise DataError(f"{path}: question id {duplicate!r} occurs more than once")
        return cls(
            question_ids,
            questions.build(Text),
            images.build(),
            HumanAnswers(answers.build(), tuple(strings)),
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


class RaggedBuilder:
    """Collects lists in about the memory of the arrays; `typecode` as in `array.array`."""

    def __init__(self, typecode: str) -> None:
        self._values = array(typecode)
        self._offsets = array("q", [0])

    def append(self, values: Iterable[Any]) -> None:
        self._values.extend(values)
        self._offsets.append(len(self._values))

    def build(self, kind: type[RaggedArray] = RaggedArray) -> Any:
        return kind(np.asarray(self._values), np.asarray(self._offsets))
