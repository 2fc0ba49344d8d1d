"""OK-VQA: the official JSON files -> prepared/. Sources and counts: README.md here."""

from pathlib import Path

from mcan.errors import command
from mcan.preparation.recipe import DatasetRecipe


def _files(split: str) -> tuple[str, str]:
    names = f"OpenEnded_mscoco_{split}_questions.json", f"mscoco_{split}_annotations.json"
    return f"{names[0]}.zip/{names[0]}", f"{names[1]}.zip/{names[1]}"


RECIPE = DatasetRecipe(
    folder=Path(__file__).resolve().parent,
    splits={"train": _files("train2014"), "test": _files("val2014")},
    # No answer is marked as the chosen one, and the questions are few.
    count_answers="every",
)

if __name__ == "__main__":
    command(RECIPE.prepare)
