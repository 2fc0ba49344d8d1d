"""Questions and annotations: what is read, joined and refused; columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vqa_toys import TRAIN, annotations_of, questions_of, write_json

from mcan.errors import DataError
from mcan.preparation.questions import Example, RawSplit, read_files, read_vqa


def read(folder: Path, questions: Any, annotations: Any) -> list[Example]:
    paths = write_json(folder / "q.json", questions), write_json(folder / "a.json", annotations)
    return list(read_vqa(*paths))


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_files_are_joined_in_the_order_of_the_questions(
    tmp_path: Path, order: list[int], text_ids: bool
) -> None:
    rows = [(f"q{q}", f"i{i}", *rest) for q, i, *rest in TRAIN] if text_ids else TRAIN
    annotations = [annotations_of(rows)[place] for place in order]
    asked: Any = questions_of(rows)
    # Bare lists are read too.
    joined = read(tmp_path, asked if text_ids else {"questions": asked}, annotations)
    assert joined == [
        Example(q, i, text, tuple(answers), "other", text.split()[0].lower(), answers[0])
        for q, i, text, answers in rows
    ]


def test_fields_that_may_be_missing(tmp_path: Path) -> None:
    answers = [{"answer": text} for text in ("Two", "dog", "a dog", "2", "dogs")]
    examples = read(
        tmp_path,
        [{"question_id": 1, "image_id": 2, "question": "?"}],
        [{"question_id": 1, "image_id": 2, "answers": answers}],
    )
    assert examples == [Example(1, 2, "?", ("Two", "dog", "a dog", "2", "dogs"))]
    # As frequent as "dog", and first.
    assert RawSplit.collect(examples, tmp_path).majority_answers == {"2": 1}


def change(number: int, **fields: Any) -> Callable[[list[dict[str, Any]]], object]:
    """Set fields of an entry, or (...) delete them."""

    def apply(entries: list[dict[str, Any]]) -> None:
        merged = {**entries[number], **fields}
        entries[number] = {name: value for name, value in merged.items() if value is not ...}

    return apply


IN_QUESTIONS: list[tuple[str, Callable[[Any], object]]] = [
    ("q.json: entry 1: 'question_id' is missing", change(1, question_id=...)),
    (
        "q.json: entry 2 (question 20): 'question' is missing",
        change(2, question=...),
    ),
    ("(question 20): 'question' is None, expected text", change(2, question=None)),
    ("'question_id' is 1.5, expected an integer of 64 bits", change(0, question_id=1.5)),
    ("a.json: expected question 11 exactly once, here and in {}/q.json", change(4, question_id=11)),
    ("q.json: entry 6 is 'x', expected an object", lambda entries: entries.append("x")),
    ("(question 20): 'image_id' is '', expected an integer", change(2, image_id="")),
]
IN_ANNOTATIONS: list[tuple[str, Callable[[Any], object]]] = [
    ("a.json: entry 0 (question 11): 'answers' is missing", change(0, answers=...)),
    ("'answers' is [], expected a text, a list of texts", change(0, answers=[])),
    (
        "(question 31): 'answers' is [{'answer': 'yes'}, ['no']], expected",
        change(5, answers=[{"answer": "yes"}, ["no"]]),
    ),
    ("'answers' is [{'text': 'a'}], expected a text, a", change(5, answers=[{"text": "a"}])),
    ("'multiple_choice_answer' is 2", change(1, multiple_choice_answer=2)),
    ("'answer_type' is None, expected text", change(1, answer_type=None)),
    ("a.json: expected question 20 exactly once", change(2, question_id=11)),
    ("a.json: expected question 20 exactly once", lambda e: e.extend([e[2], e[2], e.pop(0)])),
    ("a.json: expected question 30 exactly once", lambda entries: entries.pop(4)),
    ("a.json: question 21 is about image 7, but {}/q.json says 2", change(3, image_id=7)),
]


@pytest.mark.parametrize(
    ("message", "damage", "annotated"),
    [(*case, False) for case in IN_QUESTIONS] + [(*case, True) for case in IN_ANNOTATIONS],
)
def test_malformed(
    tmp_path: Path, message: str, damage: Callable[[Any], object], annotated: bool
) -> None:
    asked, answered = questions_of(TRAIN), annotations_of(TRAIN)
    damage(answered if annotated else asked)
    with pytest.raises(DataError) as error:
        read(tmp_path, {"questions": asked}, {"annotations": answered})
    assert message.replace("{}/", f"{tmp_path}/") in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_one_question_file_alone(tmp_path: Path) -> None:
    path = write_json(tmp_path / "q.json", questions_of(TRAIN))
    assert list(read_files(path)) == [Example(q, i, text) for q, i, text, _ in TRAIN]


def test_memory_per_question_is_small(peak_memory: Callable[..., int]) -> None:
    def collect(count: int) -> int:
        stream = (Example(n, n % 50, "how many are there", ["two"]) for n in range(count))
        return peak_memory(lambda: RawSplit.collect(stream, Path("x")))

    # So that 22 million questions fit into 3 GB (4 GB with ids that are text).
    assert (collect(60_000) - collect(20_000)) / 40_000 < 125
