"""Questions and annotations: what is read, joined and refused; columns. Records of many origins:
names of fields, forms of answers, ids of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vqa_toys import TRAIN, annotations_of, load_recipe, prepare, questions_of, targets, write_json

from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared
from mcan.errors import DataError
from mcan.evaluation.metrics import soft_score
from mcan.preparation.questions import (
    OTHER_ANSWER,
    Example,
    RawSplit,
    people_answers,
    read_files,
    read_vqa,
)


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
    ("q.json: entry 2 (question 20): 'question' is missing", change(2, question=...)),
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


CUSTOM = load_recipe("custom")
ALL = ("--carve-validation", "0")
TEN = ["no"] + ["yes"] * 9


def prepare_file(folder: Path, content: Any, *arguments: str, name: str = "a.json") -> Prepared:
    path = write_json(folder / name, content)
    return prepare(CUSTOM, folder, "--files", "train", str(path), *ALL, *arguments)


def rows_of(prepared: Prepared, split: str = "train") -> list[tuple[Any, Any, str, list[str]]]:
    found = prepared.split(split)
    images = [array_to_ids(found.image_ids)[index] for index in found.image_index]
    columns = array_to_ids(found.question_ids), images, found.questions, found.human_answers
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        ("A dog", ["A dog"]),
        (["a", "b"], ["a", "b"]),
        ([{"answer": "a", "answer_id": 1}, {"answer": "b"}], ["a", "b"]),
        ({"answer": ["a", "b"], "answer_id": [1, 2]}, ["a", "b"]),
        ({"answer": "a", "answer_id": 1}, ["a"]),
        (3, ["3"]),
        (2.0, ["2"]),
        (0.5, ["0.5"]),
        (True, ["yes"]),
        ([False, 4], ["no", "4"]),
        ([None, float("nan")], ["", ""]),
        # As tables hold them: JSON, Python, arrays of numpy.
        ('["a", "it\'s", null]', ["a", "it's", ""]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['a' 'b'\n 'b']", ["a", "b", "b"]),
        ("[{'answer': 'a'}\n {'answer': 'b'}]", ["a", "b"]),
        ("{'yes': 1.0}", ["yes"] * 10),
        ("[unreadable", ["[unreadable"]),
        # Scores by ten people.
        ({"net": 1}, ["net"] * 10),
        ({"net": 1.0, "netting": 0.3, "nets": 0, "mesh": None}, ["net"] * 9 + ["netting"]),
        ({"a": 0.9, "b": 0.3}, ["a"] * 3 + ["b"] + [OTHER_ANSWER] * 6),
        ({}, [OTHER_ANSWER] * 10),
    ],
)
def test_answers_in_any_form(value: Any, answers: list[str]) -> None:
    assert sorted(people_answers(value)) == sorted(answers)


def test_scores_are_kept() -> None:
    scores = {"a": 1, "b": 1, "c": 0.333}
    answers = people_answers(scores)
    for answer, score in scores.items():
        assert soft_score(answers.count(answer)) == pytest.approx(score, abs=0.07)
    with pytest.raises(ValueError, match=r"0\.45 is not 0, 0\.3, 0\.6, 0\.9 or 1"):
        people_answers({"a": 0.45})


# What is read, the name of each file's layout, and the rows with ids, images and answers.
DATASETS: dict[str, tuple[Any, list[tuple[Any, Any, list[str]]]]] = {
    "VQA v2 of Hugging Face": (
        [
            {
                **{"question_id": 1000, "image_id": 0, "question": "q", "answers": TEN},
                **{"image": {"path": None}, "multiple_choice_answer": "yes", "answer_type": "t"},
            }
        ],
        [(1000, 0, TEN)],
    ),
    "A-OKVQA": (
        [{"image_id": 7, "question_id": "Q", "question": "q", "direct_answers": TEN, "x": []}],
        [("Q", 7, TEN)],
    ),
    "VQA-RAD": (
        [{"qid": "0", "image_name": "s00.jpg", "question": "q", "answer": "Yes"}],
        [("0", "s00", ["Yes"])],
    ),
    "SLAKE": (
        [{"img_id": 1, "img_name": "x1/source.jpg", "question": "q", "answer": "是", "qid": 5}],
        [(5, 1, ["是"])],
    ),
    "TextVQA": (
        {"dataset_type": "x", "data": [{"question": "q", "image_id": "5f", "answers": TEN}]},
        [("a/0", "5f", TEN)],
    ),
    "LXMERT": (
        [{"question_id": 3, "img_id": "COCO_1", "sent": "q", "label": {"yes": 1, "no": 0.3}}],
        [(3, "COCO_1", TEN)],
    ),
    "CLEVR": (
        {
            "info": {},
            "questions": [
                {"image_filename": "C_1.png", "question_index": k, "question": "q", "answer": k}
                for k in (3, 4)
            ],
        },
        [(3, "C_1", ["3"]), (4, "C_1", ["4"])],
    ),
    "a spreadsheet": (
        "Image Name;Question;Answer\ni1.jpg;q;Yes\n;;\ni1.jpg;q;\"a; b\"\n",
        [("a/0", "i1", ["Yes"]), ("a/1", "i1", ["a; b"])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATASETS)
def test_well_known_names(tmp_path: Path, name: str) -> None:
    content, expected = DATASETS[name]
    prepared = prepare_file(tmp_path, content)
    rows = [(i, image, sorted(answers)) for i, image, _, answers in rows_of(prepared)]
    assert rows == expected
    assert prepared.meta["splits"]["train"]["bound_normalised"] > 0.4


NAMED = [{"q": "a?", "a1": "x", "file": f"d{k}/s.jpg", "of": {"x": "y"}} for k in (0, 1)]


def test_named_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ["--fields", "question=q", "answer=a1", "image=file", "type=a1"]
    prepared = prepare_file(tmp_path, NAMED, *fields, "--ids", "path")
    assert rows_of(prepared) == [(f"a/{k}", f"d{k}/s", "a?", ["x"]) for k in (0, 1)]
    assert prepared.split("train").answer_types.names == ("x",)
    assert f"{tmp_path}/a.json: --fields question=q image=file answer=a1 type=a1\n" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a.json: no field is known as question; the fields are q, a1, file, of; choose with"),
        (["question=q"], "no field is known as image; the fields are q, a1, file, of; choose with"),
        (
            ["question=sent", "image=file"],
            "a.json: there is no 'sent' for question among q, a1, file, of; choose with --fields",
        ),
        (["question=q", "image=file", "type=t"], "there is no 't' for type among q, a1, file, of"),
        (
            ["question=q", "image=q"],
            "no answer occurs 1 time in train; choose with --answer-splits",
        ),
        (
            ["question=q", "image=file", "answer=a1"],
            "entry 1: image 'd1/s.jpg' has the id 's', as 'd0/s.jpg' before; use --ids path",
        ),
        (["colour=q"], "--fields colour=q: expected any of question=NAME image=NAME answer=NAME"),
        (["question"], "--fields question: expected any of question=NAME"),
        (["question=q", "image=a1", "answer=of"], "entry 0: 'of' is {'x': 'y'}, expected"),
    ],
)
def test_fields_that_cannot_be_known(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(DataError) as error:
        prepare_file(tmp_path, NAMED, *(["--fields", *arguments] if arguments else []))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rule", "image"),
    [("stem", "COCO_val2014_0042"), ("coco", 42), ("path", "d/COCO_val2014_0042")],
)
def test_ids_of_images(tmp_path: Path, rule: str, image: Any) -> None:
    row = {"question": "q", "answer": "a", "image": "d/COCO_val2014_0042.jpg"}
    assert rows_of(prepare_file(tmp_path, [row], "--ids", rule))[0][1] == image
    # Also in the VQA layout.
    asked = [{"question_id": 1, "image_id": row["image"], "question": "q"}]
    write_json(tmp_path / "q.json", asked)
    write_json(tmp_path / "an.json", [{**asked[0], "answers": ["a"]}])
    files = ["--files", "train", f"{tmp_path}/q.json", f"{tmp_path}/an.json", "--force"]
    assert rows_of(prepare(CUSTOM, tmp_path, *files, "--ids", rule, *ALL))[0][:2] == (1, image)


def test_images_without_names(tmp_path: Path) -> None:
    """Images after their file, as another tool may read the files in another order."""
    rows = [{"question": f"q{k}", "answer": "a", "image": {"path": None}} for k in range(4)]
    files = [str(write_json(tmp_path / f"{k}.json", rows[2 * k :][:2])) for k in range(2)]
    prepared = prepare(CUSTOM, tmp_path, "--files", "train", *files, "--fields", "id=")
    both = sorted([*rows_of(prepared), *rows_of(prepared, "val")])
    assert both == [(name := f"{k // 2}/{k % 2}", name, f"q{k}", ["a"]) for k in range(4)]


def test_answers_are_in_all_records_or_in_none(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": answer, "image": "i"} for answer in ("a", "")]
    train, test = (str(write_json(tmp_path / f"{k}.json", rows[k:])) for k in (0, 1))
    with pytest.raises(DataError, match=r"0.json: entry 1: it has no answer, unlike those before"):
        prepare(CUSTOM, tmp_path, "--files", "train", train)
    train = str(write_json(tmp_path / "0.json", rows[:1]))
    prepared = prepare(CUSTOM, tmp_path, "--files", "train", train, "--files", "test", test, *ALL)
    assert rows_of(prepared, "test") == [("1/0", "i", "q", [])]


def test_answers_that_a_file_of_scores_does_not_name(tmp_path: Path) -> None:
    labels = [{"no": 0.6}, {}, {"yes": 1.0}]
    rows = [{"sent": "q", "img_id": k, "label": label} for k, label in enumerate(labels)]
    for every in ("chosen", "every"):
        prepared = prepare_file(tmp_path / every, rows, "--count-answers", every)
        assert set(prepared.vocabulary.answers) == {"no", "yes"}
        assert [*targets(prepared, "train").values()] == [{"no": 0.6}, {}, {"yes": 1.0}]
        assert prepared.meta["splits"]["train"]["bound"] == pytest.approx(1.6 / 3)


def test_a_choice_that_nobody_gave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The image may stand in the annotations alone, as may a few more questions."""
    answers = ["fracture", "nodule", "cyst", "Cyst."]
    annotations = [
        {
            "question_id": k,
            "image_id": f"i{k}",
            "answers": [{"answer": answer}],
            "multiple_choice_answer": "cyst" if k == 3 else "ap",
        }
        for k, answer in enumerate(answers)
    ]
    write_json(tmp_path / "q.json", [{"question_id": k, "question": "what?"} for k in (1, 2, 3)])
    write_json(tmp_path / "a.json", {"annotations": annotations})
    files = ["--files", "train", f"{tmp_path}/q.json", f"{tmp_path}/a.json"]
    prepared = prepare(CUSTOM, tmp_path, *files, *ALL)
    assert prepared.vocabulary.answers == ("nodule", "cyst")
    assert [row[:2] for row in rows_of(prepared)] == [(k, f"i{k}") for k in (1, 2, 3)]
    left_out, contradiction = capsys.readouterr().err.splitlines()
    assert "a.json: left out 1 annotation, whose questions are not in" in left_out
    assert (
        "2 of 3 questions of train have a multiple_choice_answer that nobody gave" in contradiction
    )
