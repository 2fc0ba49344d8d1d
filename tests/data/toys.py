"""Small stores and prepared folders to read back and to damage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.store_writer import RegionStoreWriter
from mcan.text.answers import soft_targets
from mcan.text.vocabulary import Vocabulary, build_tokens


@dataclass
class Image:
    """What was put into a store, to compare with what comes out."""

    id: Any
    features: np.ndarray
    boxes: np.ndarray
    size: tuple[int, int]
    grid_shape: tuple[int, int]


def make_images(ids: list[Any], dim: int = 5, seed: int = 0, uniform: bool = False) -> list[Image]:
    random = np.random.default_rng(seed)
    images = []
    for image_id in ids:
        rows, columns = (2, 3) if uniform else random.integers(1, 5, 2).tolist()
        count = rows * columns
        corners = np.sort(random.random((count, 2, 2)), axis=1).reshape(count, 4)
        images.append(
            Image(
                image_id,
                random.standard_normal((count, dim)).astype(np.float16),
                corners.astype(np.float32),
                (int(random.integers(1, 700)), int(random.integers(1, 500))),
                (rows, columns),
            )
        )
    return images


def write_store(path: Path, images: list[Image], dtype: Any = "float16", **flags: bool) -> Path:
    """A store with everything unless `flags` say otherwise."""
    flags = {"boxes": True, "sizes": True, "grid": True, **flags}
    dim = images[0].features.shape[1]
    with RegionStoreWriter(path, dim, dtype, provenance={"by": "test"}, **flags) as writer:
        for image in images:
            writer.add(
                image.id,
                image.features,
                image.boxes if flags["boxes"] else None,
                image.size if flags["sizes"] else None,
                image.grid_shape if flags["grid"] else None,
            )
    return path


QUESTIONS = [
    ("What color is the dog?", ["brown"] * 4 + ["black"] * 6, "other", "what color"),
    ("Is it raining?", ["yes"] * 10, "yes/no", "is it"),
    ("How many zebras?", ["2"] * 9 + ["3"], "number", "how many"),
    ("???", ["unanswerable"] * 10, "other", ""),
    ("Wie heißt das Tier – 犬?", ["Hund"] * 10, "other", "wie"),
]


def make_examples(
    count: int, image_ids: list[Any], first: int = 0, text_ids: bool = False
) -> list[Example]:
    examples = []
    for number in range(first, first + count):
        question, answers, answer_type, question_type = QUESTIONS[number % len(QUESTIONS)]
        examples.append(
            Example(
                f"q{number}" if text_ids else number * 7,
                image_ids[number * 5 % len(image_ids)],
                question,
                answers,
                answer_type,
                question_type,
            )
        )
    return examples


VOCABULARY = Vocabulary(
    build_tokens(["what color is the dog", "is it raining", "how many"]),
    ("yes", "brown", "black", "2", "3"),
)


def targets(answers: Any) -> list[tuple[int, float]]:
    return soft_targets(answers, VOCABULARY.answer_index)


def write_folder(folder: Path, splits: dict[str, list[Example]], **options: Any) -> Any:
    return write_prepared(
        folder,
        splits,
        VOCABULARY,
        targets,
        dataset="toy",
        metric="vqa",
        sources={"toy.json": "0" * 64},
        **options,
    )
