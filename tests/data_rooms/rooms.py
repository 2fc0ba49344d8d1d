"""Tiny files in the VQA layout, and the rooms that read them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mcan.data.prepared import Prepared

ROOMS = Path(__file__).parents[2] / "data"

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


def load_room(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"room_{name}", ROOMS / name / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
            **({"multiple_choice_answer": answers[0]} if chosen else {}),
        }
        for question_id, image_id, text, answers in rows
    ]


def write_json(path: Path, content: Any) -> Path:
    """Write plain, .gz, or (a path through an archive) into a .zip."""
    text = content if isinstance(content, str) else json.dumps(content)
    archive = next((parent for parent in path.parents if parent.suffix == ".zip"), None)
    if archive is not None:
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
    content = prepared.split(split)
    starts = content.target_answers.offsets
    indices, scores = content.target_answers.values, content.target_scores.values
    return {
        question_id: {
            prepared.vocabulary.answers[indices[k]]: round(float(scores[k]), 6)
            for k in range(starts[row], starts[row + 1])
        }
        for row, question_id in enumerate(content.question_ids.tolist())
    }
