"""Tiny files in the VQA layout, and the dataset folders that read them."""

from __future__ import annotations

import gzip
import json
import runpy
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared, Split
from mcan.preparation.questions import Example

DATASETS = Path(__file__).parents[1] / "data"

Row = tuple[Any, Any, str, Sequence[str]]
"""Question id, image id, question, answers."""

TRAIN: list[Row] = [
    (11, 1, "Is it a cat?", ["yes"] * 9 + ["Yes."]),
    (10, 1, "How many cats - or dogs?", ["two"] * 5 + ["2"] * 2 + ["3"] * 3),
    (20, 2, "What's this?", ["a dog"] * 10),
    (21, 2, "Is it a dog?", ["yes"] * 8 + ["no"] * 2),
    (30, 3, "Is the sky blue?", ["no"] * 10),
    (31, 3, "What colour?", ["a"] * 10),
]
VAL: list[Row] = [
    (40, 4, "Is it a zebra?", ["yes"] * 10),
    (41, 4, "What animal?", ["zebra"] * 10),
]
TEST: list[Row] = [(50, 5, "Is it new?", []), (51, 5, "Is it old?", [])]


def load_recipe(name: str) -> Any:
    """The names of a `prepare.py`."""
    return SimpleNamespace(**runpy.run_path(str(DATASETS / name / "prepare.py")))


def prepare(script: Any, folder: Path, *arguments: str, **options: Any) -> Prepared:
    """Run a `prepare.py` that writes `folder`/prepared; `options` are those of its `main`."""
    output = folder / "prepared"
    run = script.main if hasattr(script, "main") else script.RECIPE.prepare
    assert run([*arguments, "--output", str(output)], **options) == 0
    return Prepared.open(output)


def questions_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{"question_id": q, "image_id": i, "question": text} for q, i, text, _ in rows]


def annotations_of(rows: Sequence[Row], chosen: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "question_id": question_id,
            "image_id": image_id,
            "answer_type": "other",
            "question_type": text.split()[0].lower(),
            "answers": [{"answer": answer, "answer_id": n} for n, answer in enumerate(answers, 1)],
            **({"multiple_choice_answer": answers[0]} if chosen and answers else {}),
        }
        for question_id, image_id, text, answers in rows
    ]


def write_json(path: Path, content: Any) -> Path:
    """Write plain, .gz, or (a path through an archive) into a .zip."""
    text = content if isinstance(content, str) else json.dumps(content)
    for archive in path.parents:
        if archive.suffix in (".zip", ".whl"):
            archive.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(archive, "a") as file:
                file.writestr(path.relative_to(archive).as_posix(), text)
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_split(folder: Path, name: str, rows: Sequence[Row], suffix: str = ".json") -> list[str]:
    """The arguments of --files for a split; without annotations where no question has answers."""
    header = {"info": {"version": 2.0, "tags": [[1], {}]}, "license": None}
    questions = {**header, "questions": questions_of(rows), "data_type": "mscoco"}
    files = [write_json(folder / f"questions_{name}{suffix}", questions)]
    if any(answers for _, _, _, answers in rows):
        annotations = {"annotations": annotations_of(rows), **header}
        files.append(write_json(folder / f"annotations_{name}{suffix}", annotations))
    return ["--files", name, *map(str, files)]


def targets(prepared: Prepared, split: str) -> dict[Any, dict[str, float]]:
    """Question id -> answer -> score."""
    content, names = prepared.split(split), prepared.vocabulary.answers
    columns = array_to_ids(content.question_ids), content.target_answers, content.target_scores
    return {
        question_id: {names[k]: round(float(score), 6) for k, score in zip(*target, strict=True)}
        for question_id, *target in zip(*columns, strict=True)
    }


def examples_of(split: Split) -> list[Example]:
    """The examples that a split was made of, but for their majority answers."""
    columns = (
        array_to_ids(split.question_ids),
        array_to_ids(split.image_ids[split.image_index]),
        split.questions,
        split.human_answers,
        [split.answer_types.names[code] for code in split.answer_types.codes],
        [split.question_types.names[code] for code in split.question_types.codes],
    )
    return [Example(*row) for row in zip(*columns, strict=True)]
