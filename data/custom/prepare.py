"""Questions and annotations of your own in the VQA layout -> prepared/. How: README.md here."""

from pathlib import Path

from mcan.errors import command
from mcan.preparation.recipe import DatasetRecipe

RECIPE = DatasetRecipe(
    folder=Path(__file__).resolve().parent,
    splits={"train": ("questions.json", "annotations.json")},
    min_answer_count=1,
    carve_validation=0.1,
    metric="vqa_normalised",
)

if __name__ == "__main__":
    command(RECIPE.prepare)
