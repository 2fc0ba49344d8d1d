"""The fields of a record: which one holds what, and the answers of people in all their forms."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from mcan.console import message_once
from mcan.data.arrays import Id
from mcan.data.records import Record
from mcan.errors import DataError, shorten
from mcan.evaluation.metrics import soft_score
from mcan.preparation.image_ids import IdRule, image_id

# Well-known names, the preferred ones first; capitals do not matter, spaces are underscores.
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
Fields = Mapping[str, str]


def parse_fields(arguments: Iterable[str]) -> Fields:
    """What `--fields question=sent id=` names; nothing after = is no field."""
    found = {}
    for argument in arguments:
        role, equals, field = argument.partition("=")
        if not equals or role not in NAMES:
            raise DataError(f"--fields {argument}: expected {'=FIELD, '.join(NAMES)}=FIELD")
        found[role] = field
    return found


def find_fields(record: Record, given: Fields) -> Fields:
    """The field of each role in a record, as `given` or by a well-known name; "" for none.

    `DataError` lists the fields if one that is given is not there, or no question or image; a
    missing answer is a warning.
    """
    known = {name.lower().replace(" ", "_"): name for name in record.fields}
    found = {}
    for role, names in NAMES.items():
        likely = (known[name] for name in names if name in known)
        found[role] = name = given[role] if role in given else next(likely, "")
        if name not in record.fields and (name or role in ("question", "image")):
            missing = f"there is no field '{name}'" if name else f"no field is known as {role}"
            reason = f"{record.path}: {missing}; the fields are {shorten(record.fields)}"
            if role != "answer":
                raise DataError(f"{reason}; choose with --fields {role}=FIELD")
            found[role] = ""  # the questions of a test split
            message_once(f"warning: {reason}; its questions have no answers")
    return found


class ImageIds:
    """Image ids by a rule for names; `DataError` if two names of a dataset give one id."""

    def __init__(self, rule: IdRule = "stem") -> None:
        self._rule: IdRule = rule
        self._names: dict[Id, str] = {}

    def find(self, record: Record, value: Any) -> Id:
        """The id that a field means: a number, a name, or an image with a path or without, which is
        then called after its file and its place in it."""
        if isinstance(value, dict):
            if value.get("path") is None:
                return f"{record.path.stem}/{record.place}"
            value = value["path"]
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return] # checked when it is stored
        try:
            found = image_id(value, self._rule)
        except ValueError as error:
            raise record.error(str(error)) from None
        if (earlier := self._names.setdefault(found, value)) != value:
            raise record.error(
                f"image {value!r} has the id {found!r}, as {earlier!r} before; use --ids path"
            )
        return found


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
