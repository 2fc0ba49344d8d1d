"""VQA v2: the official JSON files -> prepared/. Sources and counts: README.md here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from mcan.data.hdf5 import Id
from mcan.data.room import TRAIN, VAL, Room, read_splits, room_answers, room_parser, write_room
from mcan.data.vqa_layout import Annotation, Question, RawSplit, Record, read_records
from mcan.errors import DataError, command
from mcan.text.answers import normalise_answer

TEST, TEST_DEV, VG = "test", "test-dev", "vg"
ROOM = Room(
    name="vqa_v2",
    folder=Path(__file__).resolve().parent,
    splits={
        TRAIN: (
            "v2_Questions_Train_mscoco.zip/v2_OpenEnded_mscoco_train2014_questions.json",
            "v2_Annotations_Train_mscoco.zip/v2_mscoco_train2014_annotations.json",
        ),
        VAL: (
            "v2_Questions_Val_mscoco.zip/v2_OpenEnded_mscoco_val2014_questions.json",
            "v2_Annotations_Val_mscoco.zip/v2_mscoco_val2014_annotations.json",
        ),
        TEST: ("v2_Questions_Test_mscoco.zip/v2_OpenEnded_mscoco_test2015_questions.json",),
        TEST_DEV: ("v2_Questions_Test_mscoco.zip/v2_OpenEnded_mscoco_test-dev2015_questions.json",),
    },
)
# Visual Genome numbers its pairs below this, VQA v2 its questions too (image id · 1000 + n).
VG_FIRST_ID = 10_000_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the dataset and print its counts."""
    parser = room_parser(ROOM)
    parser.add_argument(
        "--visual-genome",
        nargs=2,
        type=Path,
        metavar=("QUESTION_ANSWERS", "IMAGE_DATA"),
        help=f"files of Visual Genome to make the split '{VG}' of",
    )
    parser.add_argument(
        "--reference-vocabulary",
        action="store_true",
        help="the vocabularies of the authors: words of train, val, test and vg (where given), "
        "answers of train and val",
    )
    options = parser.parse_args(arguments)
    if options.reference_vocabulary:
        options.answer_splits = [TRAIN, VAL]
        options.token_splits = [TRAIN, VAL, TEST] + ([VG] if options.visual_genome else [])
    splits = read_splits(ROOM, options)
    if options.visual_genome and VG in splits:
        raise DataError(f"--files {VG}: --visual-genome makes a split of that name")
    if options.visual_genome and VG in options.answer_splits:
        raise DataError(f"--answer-splits {VG}: that split is itself chosen by the answers")
    answers = room_answers(splits, options)
    if options.visual_genome:
        missing = [name for name in (TRAIN, VAL) if name not in splits]
        if missing:
            raise DataError(f"--visual-genome needs split '{missing[0]}', whose images it shares")
        images = {**splits[TRAIN].images, **splits[VAL].images}
        pairs, image_data = options.visual_genome
        splits[VG] = read_visual_genome(pairs, image_data, images, set(answers))
    return write_room(ROOM, options, splits, answers)


def read_visual_genome(
    pairs_path: Path, images_path: Path, images: Collection[Id], answers: Collection[str]
) -> RawSplit:
    """The pairs about one of `images` (COCO ids) whose normalised answer is one of `answers`.

    A question's id is `VG_FIRST_ID` + `qa_id`. It has one answer, so its target is 1.
    """
    coco_ids: dict[Id, Id | None] = {}
    for record in read_records(images_path):
        known = record.get("coco_id") is not None
        coco_ids[record.id("image_id", 0)] = record.id("coco_id", 0) if known else None
    questions: list[Question] = []
    annotations: dict[Id, Annotation] = {}
    for number, image in enumerate(read_records(pairs_path)):
        pairs = image.get("qas")
        if not isinstance(pairs, list):
            raise image.error("'qas' is no list")
        for place, value in enumerate(pairs):
            pair = Record(pairs_path, f"{number}, qas[{place}]", value)
            image_id = pair.id("image_id", 0)
            if image_id not in coco_ids:
                raise pair.error(f"image {image_id} is not in {images_path}")
            answer = pair.text("answer")
            coco_id = coco_ids[image_id]
            if coco_id is None or coco_id not in images or normalise_answer(answer) not in answers:
                continue
            question_id = VG_FIRST_ID + int(pair.id("qa_id", 0))
            if question_id in annotations:
                raise pair.error(f"'qa_id' {question_id - VG_FIRST_ID} occurred before")
            questions.append(Question(question_id, coco_id, pair.text("question")))
            annotations[question_id] = Annotation(coco_id, (answer,), answer)
    if not questions:
        raise DataError(
            f"{pairs_path}: no pair is about an image of train or val and has an answer of the "
            "vocabulary"
        )
    return RawSplit(questions, annotations, (pairs_path, images_path))


if __name__ == "__main__":
    command(main)
