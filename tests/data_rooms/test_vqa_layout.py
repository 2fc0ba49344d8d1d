"""Questions and annotations: what is read, and what is refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rooms import TRAIN, annotations_of, questions_of, write_json

from mcan.data.prepared_writer import Example
from mcan.data.vqa_layout import RawSplit, read_vqa
from mcan.errors import DataError


def read(folder: Path, questions: Any, annotations: Any) -> RawSplit:
    return read_vqa(
        write_json(folder / "q.json", questions), write_json(folder / "a.json", annotations)
    )


def test_reads_what_is_there(tmp_path: Path) -> None:
    annotations = annotations_of(TRAIN)
    split = read(tmp_path, {"questions": questions_of(TRAIN)}, {"annotations": annotations[::-1]})
    assert list(split.examples()) == [
        Example(question_id, image_id, text, tuple(answers), "other", text.split()[0].lower())
        for question_id, image_id, text, answers in TRAIN
    ]
    assert list(split.annotations) == [row[0] for row in TRAIN[::-1]]
    assert list(split.images) == [1, 2, 3]
    assert split.sources == (tmp_path / "q.json", tmp_path / "a.json")


def test_bare_lists_and_string_ids(tmp_path: Path) -> None:
    rows = [(f"q{q}", f"i{i}", text, answers) for q, i, text, answers in TRAIN]
    split = read(tmp_path, questions_of(rows), annotations_of(rows))
    assert split.questions[0].question_id == "q11"
    assert split.annotations["q11"].image_id == "i1"


def test_fields_that_may_be_missing(tmp_path: Path) -> None:
    answers = [{"answer": text} for text in ("Two", "dog", "a dog", "2", "dogs")]
    (split,) = read(
        tmp_path,
        [{"question_id": 1, "image_id": 2, "question": "?"}],
        [{"question_id": 1, "image_id": 2, "answers": answers}],
    ).annotations.values()
    assert (split.answer_type, split.question_type) == ("", "")
    assert split.chosen == "2"  # as frequent as dog, and first
    assert split.answers == ("Two", "dog", "a dog", "2", "dogs")


def change(number: int, **fields: Any) -> Callable[[list[dict[str, Any]]], object]:
    """Set fields of an entry, or (...) delete them."""

    def apply(entries: list[dict[str, Any]]) -> None:
        for name, value in fields.items():
            if value is ...:
                del entries[number][name]
            else:
                entries[number][name] = value

    return apply


def nothing(_: list[dict[str, Any]]) -> None:
    pass


MALFORMED: list[tuple[str, Callable[[Any], object], Callable[[Any], object]]] = [
    # Questions
    ("q.json: entry 1 (question 10): 'image_id' is missing", change(1, image_id=...), nothing),
    ("q.json: entry 1: 'question_id' is missing", change(1, question_id=...), nothing),
    ("q.json: entry 2 (question 20): 'question' is missing", change(2, question=...), nothing),
    ("(question 20): 'question' is None, expected text", change(2, question=None), nothing),
    (
        "(question 20): 'question' is ['Is it'], expected text",
        change(2, question=["Is it"]),
        nothing,
    ),
    ("'question_id' is 1.5, expected an integer or text", change(0, question_id=1.5), nothing),
    ("'question_id' is True, expected an integer or text", change(0, question_id=True), nothing),
    ("'image_id' is {}, expected an integer or text", change(0, image_id={}), nothing),
    (
        "q.json: entry 3 (question '21'): 'question_id' is '21' while an earlier one is 20; ids "
        "must be all integers or all strings",
        change(3, question_id="21"),
        nothing,
    ),
    ("'image_id' is '2' while an earlier one is 1", change(2, image_id="2"), nothing),
    (
        "q.json: entry 4 (question 11): this question id occurred before",
        change(4, question_id=11),
        nothing,
    ),
    ("q.json: entry 6 is 'x', expected an object", lambda entries: entries.append("x"), nothing),
    ("q.json: the list 'questions' is empty", lambda entries: entries.clear(), nothing),
    # Annotations
    ("a.json: entry 0 (question 11): 'answers' is missing", nothing, change(0, answers=...)),
    ("'answers' is [], expected a list of at least one", nothing, change(0, answers=[])),
    ("'answers' is 'yes', expected a list of at least one", nothing, change(0, answers="yes")),
    (
        "a.json: entry 5 (question 31): answers[1] is 'no', expected an object with the text",
        nothing,
        change(5, answers=[{"answer": "yes"}, "no"]),
    ),
    ("answers[0] is {'answer': 3}", nothing, change(5, answers=[{"answer": 3}])),
    ("answers[0] is {'text': 'a'}", nothing, change(5, answers=[{"text": "a"}])),
    ("'multiple_choice_answer' is 2", nothing, change(1, multiple_choice_answer=2)),
    ("'answer_type' is None, expected text", nothing, change(1, answer_type=None)),
    ("'question_type' is 1, expected text", nothing, change(1, question_type=1)),
    ("(question 11): 'image_id' is missing", nothing, change(0, image_id=...)),
    ("(question 11): this question id occurred before", nothing, change(2, question_id=11)),
    ("'question_id' is 'b' while an earlier one is 10", nothing, change(2, question_id="b")),
    ("a.json: entry 6 is None, expected an object", nothing, lambda entries: entries.append(None)),
    ("a.json: the list 'annotations' is empty", nothing, lambda entries: entries.clear()),
    # Both
    ("a.json: question 30 of {}/q.json has no annotation", nothing, lambda e: e.pop(4)),
    ("a.json: question 30 is annotated but not in {}/q.json", lambda e: e.pop(4), nothing),
    (
        "a.json: question 21 is about image 7, but {}/q.json says 2",
        nothing,
        change(3, image_id=7),
    ),
]


@pytest.mark.parametrize(("message", "questions", "annotations"), MALFORMED)
def test_malformed(
    tmp_path: Path,
    message: str,
    questions: Callable[[Any], object],
    annotations: Callable[[Any], object],
) -> None:
    asked, answered = questions_of(TRAIN), annotations_of(TRAIN)
    questions(asked)
    annotations(answered)
    with pytest.raises(DataError) as error:
        read(tmp_path, {"questions": asked}, {"annotations": answered})
    assert message.replace("{}/", f"{tmp_path}/") in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_in_the_wrong_order(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"q\.json: .*it has no list 'questions'"):
        read(tmp_path, {"annotations": annotations_of(TRAIN)}, {"questions": questions_of(TRAIN)})


def test_long_values_are_shortened(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, ["x" * 1000], [])
    assert len(str(error.value)) < len(str(tmp_path)) + 150
