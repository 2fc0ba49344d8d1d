"""Result files, made here or elsewhere: a JSON list of {question_id, answer}."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from mcan.data.hdf5 import Id
from mcan.data.vqa_layout import read_records
from mcan.errors import DataError

_NAMED = 5


def read_results(path: Path, question_ids: Sequence[Id], where: str) -> list[str]:
    """The answer to each of `question_ids`, in their order; `where` names the file they are from.

    The file must answer every question once. Raises `DataError`, which names the entries, where
    questions are missing, unknown or answered twice, or an answer is not text.
    """
    answers: dict[Id, str] = {}
    twice: list[Id] = []
    for record in read_records(path):
        question_id = record.id("question_id", None)
        if question_id in answers:
            twice.append(question_id)
        answers[question_id] = record.text("answer")
    expected = set(question_ids)
    for ids, what in (
        (twice, "answered more than once"),
        ([i for i in answers if i not in expected], f"not in {where}"),
        ([i for i in question_ids if i not in answers], f"of {where} without an answer"),
    ):
        if ids:
            raise DataError(f"{path}: {name_ids(ids)} {what}")
    return [answers[question_id] for question_id in question_ids]


def submission(
    entries: Iterable[dict[str, Any]], question_ids: Collection[Id], where: str
) -> list[dict[str, Any]]:
    """The entries of `question_ids`, as the evaluation server takes them: each question once.

    test-dev is a part of test: answers to further questions are left out. Raises `DataError` where
    a question has no answer or an id is not an integer.
    """
    answers = {entry["question_id"]: entry["answer"] for entry in entries}
    if missing := [i for i in question_ids if i not in answers]:
        raise DataError(f"{name_ids(missing)} of {where} not predicted; choose its split")
    if texts := [i for i in question_ids if not isinstance(i, int)]:
        raise DataError(f"{where}: {name_ids(texts)}: the server takes integer ids only")
    return [{"question_id": i, "answer": answers[i]} for i in question_ids]


def name_ids(ids: Sequence[Id]) -> str:
    """`questions 1, 2 and 3 more`"""
    named = ", ".join(map(repr, ids[:_NAMED]))
    more = f" and {len(ids) - _NAMED:,} more" if len(ids) > _NAMED else ""
    return f"question{'s' if len(ids) > 1 else ''} {named}{more}"
