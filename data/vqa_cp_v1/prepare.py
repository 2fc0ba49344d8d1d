"""VQA-CP v1: the official JSON files -> prepared/. Sources and counts: README.md here."""

from pathlib import Path

from mcan.errors import command
from mcan.preparation.recipe import DatasetRecipe

RECIPE = DatasetRecipe(
    folder=Path(__file__).resolve().parent,
    splits={
        "train": ("vqacp_v1_train_questions.json", "vqacp_v1_train_annotations.json"),
        "test": ("vqacp_v1_test_questions.json", "vqacp_v1_test_annotations.json"),
    },
)

if __name__ == "__main__":
    command(RECIPE.prepare)
