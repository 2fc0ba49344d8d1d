"""Made-up datasets of any size, in the real formats: for tests and benchmarks.

The answer is (class of the image + number in the question) modulo the number of answers, so both
are needed, and a model can learn it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.store import Kind
from mcan.data.store_writer import PixelStoreWriter, RegionStoreWriter
from mcan.text.answers import soft_targets
from mcan.text.vocabulary import Vocabulary, build_tokens

_NOISE_ROWS = 4096


@dataclass(frozen=True)
class SyntheticPaths:
    """Where a made-up dataset was written; `grid` is None where none was asked for."""

    prepared: Path
    images: Path
    grid: Path | None


@dataclass(frozen=True)
class _Recipe:
    """What generators share; `classes` (I,) is the class of each image."""

    classes: NDArray[np.int64]
    answers: int
    annotators: int
    words: tuple[int, int]
    vocabulary: tuple[str, ...]


def make_synthetic(
    folder: str | Path,
    *,
    questions: int = 200,
    images: int = 40,
    answers: int = 8,
    vocabulary: int = 30,
    words: tuple[int, int] = (1, 14),
    kind: Kind = "regions",
    feature_dim: int = 16,
    regions: tuple[int, int] = (10, 100),
    pixels: tuple[int, int] = (16, 16),
    boxes: bool = False,
    grid: bool = False,
    splits: tuple[str, ...] = ("train", "val"),
    metric: str = "vqa",
    seed: int = 0,
) -> SyntheticPaths:
    """Write `folder`/prepared, `folder`/images.h5 and, with `grid`, `folder`/grid.h5.

    - `questions`: in the first split; every further split has a quarter of it, at least one;
    - `images`: in the store, shared by the splits; `regions`: fewest and most rows of an image;
      `pixels`: height and width; `feature_dim`: also the width of the grid's rows;
    - `words`: fewest and most words of a question; `vocabulary`: different words, besides numbers;
    - `metric`: with `exact`, a question has one human answer, else ten of which nine are right.

    Examples and features are made as they are written: memory does not grow with `images`.
    """
    folder = Path(folder)
    random = np.random.default_rng(seed)
    recipe = _Recipe(
        classes=random.integers(answers, size=images),
        answers=answers,
        annotators=1 if metric == "exact" else 10,
        words=words,
        vocabulary=tuple(f"word{number}" for number in range(vocabulary)),
    )
    numbers = tuple(_number(number) for number in range(answers))
    text = Vocabulary(
        build_tokens([*recipe.vocabulary, *numbers]), tuple(_answer(i) for i in range(answers))
    )
    counts = [questions] + [max(1, questions // 4)] * (len(splits) - 1)
    firsts = np.cumsum([0, *counts]).tolist()
    paths = SyntheticPaths(
        folder / "prepared", folder / "images.h5", folder / "grid.h5" if grid else None
    )
    write_prepared(
        paths.prepared,
        {
            split: _examples(recipe, first, count, np.random.default_rng((seed, first)))
            for split, first, count in zip(splits, firsts, counts, strict=False)
        },
        text,
        lambda raw: soft_targets(raw, text.answer_index),
        dataset="synthetic",
        metric=metric,
        sources={},
    )
    if kind == "pixels":
        _write_pixels(paths.images, recipe, pixels, random)
    else:
        _write_regions(paths.images, recipe, feature_dim, regions, boxes, random)
    if paths.grid is not None:
        _write_grid(paths.grid, recipe, feature_dim, random)
    return paths


def _number(number: int) -> str:
    return f"plus{number}"


def _answer(number: int) -> str:
    return f"answer{number}"


def _examples(
    recipe: _Recipe, first: int, count: int, random: np.random.Generator
) -> Iterator[Example]:
    fewest, most = recipe.words
    for question_id in range(first, first + count):
        image = int(random.integers(len(recipe.classes)))
        added = int(random.integers(recipe.answers))
        filler = random.integers(len(recipe.vocabulary), size=random.integers(fewest, most + 1))
        text = [recipe.vocabulary[word] for word in filler.tolist()]
        text[int(random.integers(len(text)))] = _number(added)
        answer = (int(recipe.classes[image]) + added) % recipe.answers
        wrong = 1 if recipe.annotators > 1 else 0
        yield Example(
            question_id=question_id,
            image_id=image,
            question=" ".join(text).capitalize() + "?",
            answers=[_answer(answer)] * (recipe.annotators - wrong)
            + [_answer((answer + 1) % recipe.answers)] * wrong,
            answer_type=("yes/no", "number", "other")[added % 3],
            question_type=f"{len(text)} words",
        )


def _rows(
    recipe: _Recipe, feature_dim: int, random: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A direction per class, and noise rows to cut images from (drawing each anew is slow)."""
    directions = random.standard_normal((recipe.answers, feature_dim), np.float32)
    noise = random.standard_normal((_NOISE_ROWS, feature_dim), np.float32)
    return directions, noise


def _write_regions(
    path: Path,
    recipe: _Recipe,
    feature_dim: int,
    regions: tuple[int, int],
    boxes: bool,
    random: np.random.Generator,
) -> None:
    directions, noise = _rows(recipe, feature_dim, random)
    with RegionStoreWriter(path, feature_dim, boxes=boxes, sizes=True) as writer:
        for image, label in enumerate(recipe.classes.tolist()):
            count = int(random.integers(regions[0], regions[1] + 1))
            first = int(random.integers(_NOISE_ROWS - count + 1))
            corners = np.sort(random.random((count, 2, 2), np.float32), axis=1).reshape(count, 4)
            writer.add(
                image,
                directions[label] + noise[first : first + count],
                corners if boxes else None,
                size=(640, 480),
            )


def _write_grid(path: Path, recipe: _Recipe, feature_dim: int, random: np.random.Generator) -> None:
    directions, noise = _rows(recipe, feature_dim, random)
    with RegionStoreWriter(path, feature_dim, grid=True) as writer:
        for image, label in enumerate(recipe.classes.tolist()):
            rows, columns = random.integers(2, 6, size=2).tolist()
            first = int(random.integers(_NOISE_ROWS - rows * columns))
            cells = directions[label] + noise[first : first + rows * columns]
            writer.add(image, cells, grid_shape=(rows, columns))


def _write_pixels(
    path: Path, recipe: _Recipe, size: tuple[int, int], random: np.random.Generator
) -> None:
    colours = random.integers(32, 224, size=(recipe.answers, 3, 1, 1))
    with PixelStoreWriter(path, (3, *size)) as writer:
        for image, label in enumerate(recipe.classes.tolist()):
            noise = random.integers(-30, 31, size=(3, *size))
            writer.add(image, (colours[label] + noise).astype(np.uint8))
