"""VQA v1: the official JSON files -> prepared/. Sources and counts: README.md here."""

from pathlib import Path

from mcan.errors import command
from mcan.preparation.recipe import DatasetRecipe

RECIPE = DatasetRecipe(
    folder=Path(__file__).resolve().parent,
    splits={
        "train": (
            "Questions_Train_mscoco.zip/OpenEnded_mscoco_train2014_questions.json",
            "Annotations_Train_mscoco.zip/mscoco_train2014_annotations.json",
        ),
        "val": (
            "Questions_Val_mscoco.zip/OpenEnded_mscoco_val2014_questions.json",
            "Annotations_Val_mscoco.zip/mscoco_val2014_annotations.json",
        ),
        "test": ("Questions_Test_mscoco.zip/OpenEnded_mscoco_test2015_questions.json",),
        "test-dev": ("Questions_Test_mscoco.zip/OpenEnded_mscoco_test-dev2015_questions.json",),
    },
)

if __name__ == "__main__":
    command(RECIPE.prepare)
