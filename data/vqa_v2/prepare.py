"""VQA v2: the official JSON files -> prepared/. Sources and counts: README.md here."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from mcan.data.arrays import Id
from mcan.data.records import Record, read_records
from mcan.errors import DataError, command
from mcan.preparation.questions import Example, RawSplit
from mcan.preparation.recipe import TRAIN, VAL, DatasetRecipe, answer_vocabulary
from mcan.text.answers import normalise_answer

TEST, TEST_DEV, VG = "test", "test-dev", "vg"
RECIPE = DatasetRecipe(
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
    parser = RECIPE.parser()
    parser.add_argument(
        "--visual-genome",
        nargs=2,
        type=Path,
        metavar=("QUESTION_ANSWERS", "IMAGE_DATA"),
        help=f"files of Visual Genome for the split '{VG}'",
    )
    parser.add_argument(
        "--reference-vocabulary",
        action="store_true",
        help="the vocabularies of the authors: words of train, val, test and vg (if given), "
        "answers of train and val",
    )
    options = parser.parse_args(arguments)
    if options.reference_vocabulary:
        options.answer_splits = [TRAIN, VAL]
        options.token_splits = [TRAIN, VAL, TEST] + ([VG] if options.visual_genome else [])
    splits, sources = RECIPE.read_splits(options)
    answers = answer_vocabulary(splits, options)
    if options.visual_genome:
        if VG in splits or not {TRAIN, VAL} <= splits.keys():
            raise DataError(
                f"--visual-genome makes the split '{VG}', by the images of '{TRAIN}' and '{VAL}', "
                f"but there is {', '.join(splits)}"
            )
        images = {*splits[TRAIN].images.names, *splits[VAL].images.names}
        pairs, image_data = options.visual_genome
        examples = read_visual_genome(pairs, image_data, images, set(answers))
        splits[VG] = RawSplit.collect(examples, pairs)
        sources += options.visual_genome
    return RECIPE.write(arguments, options, splits, sources, answers)


def read_visual_genome(
    pairs_path: Path, images_path: Path, images: Collection[Id], answers: Collection[str]
) -> Iterator[Example]:
    """The pairs about one of `images` (COCO ids) whose normalised answer is one of `answers`.

    A question's id is `VG_FIRST_ID` + `qa_id`. It has one answer, so its target is 1.
    """
    coco_ids: dict[Id, Id | None] = {}
    for record in read_records(images_path):
        known = record.get("coco_id") is not None
        coco_ids[record.id("image_id", 0)] = record.id("coco_id", 0) if known else None
    for image in read_records(pairs_path):
        pairs = image.get("qas")
        if not isinstance(pairs, list):
            raise image.error("'qas' is not a list")
        for place, value in enumerate(pairs):
            pair = Record(pairs_path, image.number, value, f"{image.where}, qas[{place}]")
            image_id = pair.id("image_id", 0)
            if image_id not in coco_ids:
                raise pair.error(f"image {image_id} is not in {images_path}")
            answer = pair.text("answer")
            coco_id = coco_ids[image_id]
            wanted = coco_id in images and normalise_answer(answer) in answers
            if coco_id is not None and wanted:
                question_id = VG_FIRST_ID + int(pair.id("qa_id", 0))
                yield Example(question_id, coco_id, pair.text("question"), (answer,))


if __name__ == "__main__":
    command(main)
