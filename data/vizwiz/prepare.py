"""VizWiz-VQA: the official JSON files -> prepared/. Sources and counts: README.md here.

One list per split, of {"image", "question", "answers": [{"answer"}, ...], "answer_type",
"answerable"}; the last three are held back in the test split.
"""

from collections.abc import Iterator
from pathlib import Path

from mcan.data.records import read_records
from mcan.errors import command
from mcan.preparation.names import image_id
from mcan.preparation.questions import Example, answers_of
from mcan.preparation.recipe import DatasetRecipe


def read_vizwiz(path: Path) -> Iterator[Example]:
    """The questions of a split; an image has one, whose id is the name of the image file.

    The id of the image is that name without its suffix, as in stores made from image folders.
    """
    for record in read_records(path):
        name = record.text("image")
        example = Example(name, image_id(name, "stem"), record.text("question"))
        if "answers" in record:
            example = example._replace(
                answers=answers_of(record),
                answer_type=record.text("answer_type"),
                question_type="answerable" if record.get("answerable") else "unanswerable",
            )
        yield example


RECIPE = DatasetRecipe(
    folder=Path(__file__).resolve().parent,
    splits={split: (f"Annotations.zip/{split}.json",) for split in ("train", "val", "test")},
    read=read_vizwiz,
    min_answer_count=None,
    top_answers=3000,
    count_answers="every",
)

if __name__ == "__main__":
    command(RECIPE.prepare)
