"""The fields of a record: which one holds what, and the answers of people in all their forms."""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from mcan.data.arrays import Id
from mcan.data.records import Record
from mcan.errors import DataError, shorten
from mcan.evaluation.metrics import soft_score
from mcan.preparation.image_ids import IdRule, image_id

# Well-known names, the preferred ones first; capitals, spaces and underscores do not matter.
NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "sent", "sentence", "question_text", "question_string", "query"),
    "image": (
        *("image_id", "img_id", "image_name", "img_name", "file_name", "image_file"),
        *("image_filename", "image_path", "img_path", "file_path", "image", "img"),
    ),
    "answer": (
        *("answers", "direct_answers", "human_answers", "answer", "label", "labels"),
        *("ground_truth", "multiple_choice_answer"),
    ),
    "id": ("question_id", "qid", "question_index", "id"),
    "type": ("answer_type",),
    "question_type": ("question_type", "content_type"),
    "chosen": ("multiple_choice_answer",),
}
REQUIRED = ("question", "image")
OTHER_ANSWER = "…"
"""Stands for the answers of people that a file with scores does not name. It is never a class."""
EXPECTED_ANSWERS = (
    'expected a text, a list of at least one text or {"answer": text}, or an object text -> score'
)
Fields = Mapping[str, Sequence[str]]


def _fold(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def parse_fields(arguments: Iterable[str]) -> dict[str, list[str]]:
    """What `--fields question=sent answer=a1,a2 id=` names; nothing after = is no field.

    Raises `DataError` for what is not ROLE=FIELD with a role of `NAMES`.
    """
    found: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, fields = argument.partition("=")
        role = next((r for r, known in NAMES.items() if name in (r, *known)), None)
        if not equals or role is None or (role in REQUIRED and not fields):
            raise DataError(f"--fields {argument}: expected {'=FIELD, '.join(NAMES)}=FIELD")
        found[role] = [field.strip() for field in fields.split(",") if field.strip()]
    return found


@cache
def find_fields(
    where: object, names: tuple[str, ...], given: tuple[tuple[str, tuple[str, ...]], ...]
) -> Fields:
    """The fields of each role in records with the fields `names`, as `given` or by their names.

    Raises `DataError` that lists the fields if there is no question or no image.
    """
    folded = {_fold(name): name for name in reversed(names)}
    found: dict[str, Sequence[str]] = {}
    for role, known in NAMES.items():
        chosen = dict(given).get(role, _candidates(known, folded)[:1])
        # A split without answers may lack their field.
        found[role] = [name for name in chosen if {name, name.split(".")[0]} & {*names}]
        if role in REQUIRED and not found[role]:
            missing = f"'{chosen[0]}' is no field" if chosen else f"which field is the {role}?"
            raise DataError(
                f"{where}: {missing}; there is {shorten(names)}; choose with --fields {role}=FIELD"
            )
    return found


def _candidates(known: Iterable[str], folded: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(folded[_fold(name)] for name in known if _fold(name) in folded)


def describe_fields(found: Fields, names: Iterable[str]) -> str:
    """The choice as the option `--fields`, and which other fields would have done."""
    folded, texts = {_fold(name): name for name in names}, []
    for role, known in NAMES.items():
        others = [name for name in _candidates(known, folded) if name not in found[role]]
        also = f" (not {', '.join(others)})" if others and role in ("image", "answer") else ""
        texts += [f"{role}={','.join(found[role])}{also}"] if found[role] else []
    return f"--fields {' '.join(texts)}{'' if found['answer'] else ' (no answers)'}"


class ImageIds:
    """Image ids by a rule for names; `DataError` if two names of a dataset give one id."""

    def __init__(self, rule: IdRule = "stem") -> None:
        self._rule: IdRule = rule
        self._names: dict[Id, str] = {}

    def find(self, record: Record, value: Any, row: int = 0) -> Id:
        """The id that a field means: a number, a name, or an image with or without a path, which
        then has the number of its `row`."""
        if isinstance(value, dict):
            value = row if value.get("path") is None else value["path"]
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if value is None or value == "":
            raise record.error("the image is missing")
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


def people_answers(value: Any, scores_are_counts: bool = False) -> list[str]:
    """The answers of all people, in any form that files have; none for an empty value.

    One text, number or yes/no; a list of these or of {"answer"}; an object of lists; text -> score
    or number of people. Scores give the answers of ten people that have these scores by VQA's
    metric. Raises `ValueError`, `TypeError` or `LookupError` for anything else.
    """
    if isinstance(value, dict):
        if value.keys() == {"ids", "weights"}:
            value = dict(zip(value["ids"], value["weights"], strict=True))
        if "answer" not in value or isinstance(value["answer"], int | float):
            return _votes(value, scores_are_counts)
        return people_answers(value["answer"], scores_are_counts)
    if not isinstance(value, list):
        value = [value]
    texts = [_answer_text(item["answer"] if isinstance(item, dict) else item) for item in value]
    return texts if any(text.strip() for text in texts) else []


def from_cell(value: Any) -> Any:
    """The list or object whose text a table holds, in the notation of JSON or Python; else `value`.

    Arrays of numpy have no commas: Python would join "['yes' 'no']" into one answer.
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    spaced = re.sub(r"""(?<=['"}])\s+(?=['"{])""", ", ", value.strip())
    try:
        return json.loads(spaced)
    except (ValueError, RecursionError):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(spaced)
    return value


def _answer_text(value: Any) -> str:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:  # nan, an empty cell of pandas
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r:.60} is not an answer")
    return str(value)


def _votes(scores: Mapping[str, Any], are_counts: bool) -> list[str]:
    votes: dict[str, int] = {}
    for answer, score in scores.items():
        if score is None:  # Parquet has one column for each answer of any record
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not score >= 0:
            raise ValueError(f"{answer!r} has {score!r:.60}, not a score")
        if are_counts:
            votes[answer] = round(score)
            continue
        votes[answer] = min(range(5), key=lambda count: abs(soft_score(count) - score))
        if not math.isclose(soft_score(votes[answer]), score, abs_tol=0.07):
            raise ValueError(
                f"{answer!r} has the score {score}, but of ten people 0 to 4 give 0, 0.3, 0.6, "
                "0.9 and 1"
            )
    if not are_counts:
        # The others of ten gave an answer whose score stays 1 with more of them, or none of these.
        best = max(votes, key=lambda answer: votes[answer], default=OTHER_ANSWER)
        rest = best if votes.get(best) == 4 else OTHER_ANSWER
        votes[rest] = votes.get(rest, 0) + max(0, 10 - sum(votes.values()))
    return [answer for answer, count in votes.items() for _ in range(count)]
