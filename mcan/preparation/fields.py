"""The fields of a record: which one holds what, and the answers of people in all their forms."""

from __future__ import annotations

import ast
import json
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
_NAMES = {
    "question": "question sent sentence question_text question_string query",
    "image": "image_id img_id image_name img_name file_name image_file img_file image_filename "
    "image_path img_path file_path image img image_index",
    "answer": "answers direct_answers human_answers answer label labels ground_truth "
    "multiple_choice_answer",
    "id": "question_id qid question_index id",
    "type": "answer_type",
    "question_type": "question_type content_type",
    "chosen": "multiple_choice_answer",
}
NAMES = {role: names.split() for role, names in _NAMES.items()}
_REQUIRED = ("question", "image")
OTHER_ANSWER = "…"
"""Stands for the answers of people that a file with scores does not name. It is never a class."""
EXPECTED_ANSWERS = 'expected a text, a list of texts or of {"answer": text}, or text -> score'
Fields = Mapping[str, Sequence[str]]


def parse_fields(arguments: Iterable[str]) -> Fields:
    """What `--fields question=sent answer=a1,a2 id=` names; nothing after = is no field."""
    found = {}
    for argument in arguments:
        name, equals, fields = argument.partition("=")
        role = next((r for r, known in NAMES.items() if name in (r, *known)), None)
        if not equals or role is None or (role in _REQUIRED and not fields):
            raise DataError(f"--fields {argument}: expected {'=FIELD, '.join(NAMES)}=FIELD")
        found[role] = tuple(filter(None, fields.split(",")))
    return found


@cache
def find_fields(
    where: object, names: tuple[str, ...], given: tuple[tuple[str, Sequence[str]], ...]
) -> tuple[Fields, str]:
    """The fields of each role in records with the fields `names`, as `given` or by their names.

    Also describes the choice. `DataError` lists the fields if there is no question or no image.
    """
    found: dict[str, Sequence[str]] = {}
    folded, texts = {_fold(name): name for name in reversed(names)}, ["--fields"]
    for role, known in NAMES.items():
        likely = [folded[name] for name in map(_fold, known) if name in folded]
        chosen = dict(given).get(role, likely[:1])
        # A split without answers may lack their field.
        found[role] = [name for name in chosen if {name, name.split(".")[0]} & {*names}]
        if role in _REQUIRED and not found[role]:
            missing = f"'{chosen[0]}' is no field" if chosen else f"no field is known as {role}"
            raise DataError(
                f"{where}: {missing}; there is {shorten(names)}; choose with --fields {role}=FIELD"
            )
        texts += [f"{role}={','.join(found[role])}"] if found[role] else []
        if len(likely) > 1 and role in ("image", "answer"):
            texts.append(f"(not {', '.join(name for name in likely if name not in found[role])})")
    return found, " ".join(texts) + ("" if found["answer"] else " (no answers)")


def _fold(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


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
        if not isinstance(value.get("answer"), str | list):
            return _votes(value, scores_are_counts)
        value = value["answer"]
    items = value if isinstance(value, list) else [value]
    texts = [_answer_text(item["answer"] if isinstance(item, dict) else item) for item in items]
    return texts if any(text.strip() for text in texts) else []


def _answer_text(value: Any) -> str:
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:  # nan, an empty cell of pandas
        return ""
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r:.60} is not an answer")
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _votes(scores: Mapping[str, Any], are_counts: bool) -> list[str]:
    # Parquet has one column for each answer of any record, None in the others.
    given = {answer: float(score) for answer, score in scores.items() if score is not None}
    if are_counts:
        return [answer for answer, count in given.items() for _ in range(round(count))]
    votes: dict[str, int] = {}
    for answer, score in given.items():
        votes[answer] = min(range(5), key=lambda count: abs(soft_score(count) - score))
        if abs(soft_score(votes[answer]) - score) > 0.07:
            raise ValueError(f"{score} is not 0, 0.3, 0.6, 0.9 or 1, as 0 to 4 of ten people give")
    # The rest of ten gave an answer whose score stays 1 with more of them, or none of these.
    best = max(votes, key=lambda answer: votes[answer], default=OTHER_ANSWER)
    rest = best if votes.get(best) == 4 else OTHER_ANSWER
    votes[rest] = votes.get(rest, 0) + max(0, 10 - sum(votes.values()))
    return [answer for answer, count in votes.items() for _ in range(count)]


def from_cell(value: Any) -> Any:
    """The list or object whose text a table holds, in the notation of JSON or Python; else `value`.

    Arrays of numpy have no commas: Python would join "['yes' 'no']" into one answer.
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    spaced = re.sub(r"""(?<=['"}])\s+(?=['"{])""", ", ", value.strip())
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(spaced)
    return value
