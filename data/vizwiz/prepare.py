"""VizWiz-VQA: the official JSON files -> prepared/. Sources and counts: README.md here.

One list per split, of {"image", "question", "answers": [{"answer"}, ...], "answer_type",
"answerable"}; the last three are held back in the test split.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mcan.data.hdf5 import Id
from mcan.data.image_names import name_stem
from mcan.data.room import Room, prepare_room
from mcan.data.vqa_layout import Annotation, Question, RawSplit, Record, most_given, read_records
from mcan.errors import DataError, command

ANSWERABLE = ("unanswerable", "answerable")


def read_vizwiz(path: Path) -> RawSplit:
    """A split; an image has one question, whose id is the name of the image file.

    The id of the image is that name without its suffix, as stores made of image folders have it.
    """
    questions: dict[Id, Question] = {}
    annotations: dict[Id, Annotation] = {}
    for record in read_records(path):
        name = record.text("image")
        if name in questions:
            raise record.error(f"image {name!r} occurred before")
        image_id = name_stem(name)
        questions[name] = Question(name, image_id, record.text("question"))
        if record.has("answers"):
            answers = record.answers()
            annotations[name] = Annotation(
                image_id,
                answers,
                most_given(answers),
                record.text("answer_type"),
                _answerable(record),
            )
    without = [name for name in questions if name not in annotations]
    if annotations and without:
        raise DataError(f"{path}: image {without[0]!r} has no answers while others have")
    return RawSplit(list(questions.values()), annotations, (path,))


def _answerable(record: Record) -> str:
    value = record.get("answerable")
    if value not in (0, 1):
        raise record.error(f"'answerable' is {value!r}, expected 0 or 1")
    return ANSWERABLE[value]


ROOM = Room(
    name="vizwiz",
    folder=Path(__file__).resolve().parent,
    splits={split: (f"Annotations.zip/{split}.json",) for split in ("train", "val", "test")},
    read=read_vizwiz,
    min_answer_count=None,
    top_answers=3000,
    every_answer=True,
)
main = partial(prepare_room, ROOM)

if __name__ == "__main__":
    command(main)
