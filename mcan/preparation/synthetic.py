"""Made-up datasets of any size, in the real formats: for tests and benchmarks.

The answer is (class of the image + number in the question) modulo the number of answers, so both
are needed, and a model can learn it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mcan.console import progress
from mcan.data.arrays import Id
from mcan.data.store import Kind
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.preparation.store_writer import ImageRows, StoreWriter
from mcan.text.vocabulary import Vocabulary, build_tokens

_NOISE_ROWS = 4096
_SIDE = 16
UNIFORM = dict.fromkeys(range(1, 15), 1)
"""1 to 14 words, each as often."""


class SyntheticPaths(NamedTuple):
    """Where a made-up dataset was written; `grid` is None if none was asked for."""

    prepared: Path
    images: Path
    grid: Path | None


def make_synthetic(
    folder: str | Path,
    *,
    questions: int = 200,
    images: int = 40,
    answers: int = 8,
    vocabulary: int = 30,
    words: Mapping[int, int] = UNIFORM,
    kind: Kind = "regions",
    feature_dim: int = 16,
    regions: tuple[int, int] = (10, 100),
    boxes: bool = False,
    grid: bool = False,
    splits: tuple[str, ...] = ("train", "val"),
    metric: str = "vqa",
    seed: int = 0,
) -> SyntheticPaths:
    """Write `folder`/prepared, `folder`/images.h5 and, with `grid`, `folder`/grid.h5.

    - `questions`: in the first split; every further split has a quarter of it, at least one;
    - `vocabulary`: distinct words, besides numbers; `words`: how often a question has each number
      of words (number of words -> weight);
    - `images`: in the store, shared by the splits; `regions`: fewest and most rows of an image;
      `feature_dim`: also the width of the grid's rows; pixels are 16 x 16;
    - `metric`: with `exact`, a question has one human answer, else ten of which nine are right.

    Examples and features are made as they are written: memory does not grow with `images`.
    """
    folder = Path(folder)
    random = np.random.default_rng(seed)
    classes: list[int] = random.integers(answers, size=images).tolist()
    texts = [f"word{number}" for number in range(vocabulary)]
    numbers = [f"plus{number}" for number in range(answers)]
    names = [f"answer{number}" for number in range(answers)]

    def examples(first: int, count: int) -> Iterator[Example]:
        draw = np.random.default_rng((seed, first))
        shares = np.array(list(words.values())) / sum(words.values())
        lengths = draw.choice(list(words), size=count, p=shares).tolist()
        for question_id, length in enumerate(lengths, first):
            image, added = int(draw.integers(images)), int(draw.integers(answers))
            text = [texts[word] for word in draw.integers(vocabulary, size=length).tolist()]
            text[int(draw.integers(length))] = numbers[added]
            answer = (classes[image] + added) % answers
            right, wrong = names[answer], names[(answer + 1) % answers]
            yield Example(
                question_id=question_id,
                image_id=image,
                question=" ".join(text).capitalize() + "?",
                answers=[right] if metric == "exact" else [right] * 9 + [wrong],
                answer_type=("yes/no", "number", "other")[added % 3],
                question_type=f"{length} words",
            )

    counts = [questions] + [max(1, questions // 4)] * (len(splits) - 1)
    firsts = np.cumsum([0, *counts]).tolist()
    grid_path = folder / "grid.h5" if grid else None
    paths = SyntheticPaths(folder / "prepared", folder / "images.h5", grid_path)
    write_prepared(
        paths.prepared,
        {name: examples(*range_) for name, *range_ in zip(splits, firsts, counts, strict=False)},
        Vocabulary(build_tokens([*texts, *numbers]), tuple(names)),
        dataset="synthetic",
        metric=metric,
        sources={},
    )
    if kind == "pixels":
        colours = random.integers(32, 224, size=(answers, 3, 1, 1))
        with StoreWriter(paths.images) as writer:
            for image, label in enumerate(classes):
                noise = random.integers(-30, 31, size=(3, _SIDE, _SIDE))
                writer.add(ImageRows(image, (colours[label] + noise).astype(np.uint8)))
    else:
        write_features(paths.images, feature_dim, dict(enumerate(classes)), random, regions, boxes)
    if paths.grid is not None:
        write_features(paths.grid, feature_dim, dict(enumerate(classes)), random)
    return paths


def write_features(
    path: Path,
    width: int,
    classes: Mapping[Id, int],
    random: np.random.Generator,
    regions: tuple[int, int] | None = None,
    boxes: bool = False,
) -> None:
    """A direction for the class of each image plus noise; fewest and most `regions`, or a grid."""
    directions = random.standard_normal((max(classes.values()) + 1, width), np.float32)
    # Images are cut from one block of noise: drawing every number would take most of the time.
    noise = random.standard_normal((_NOISE_ROWS, width), np.float32)
    least, most = regions or (2, 5)
    with StoreWriter(path, provenance={"made_up": True}) as writer:
        for image, label in progress(classes.items(), unit=" images", delay=1):
            sides = random.integers(least, most + 1, size=1 if regions else 2).tolist()
            count = math.prod(sides)
            first = int(random.integers(_NOISE_ROWS - count + 1))
            corners = np.sort(random.random((count, 2, 2), np.float32), axis=1).reshape(count, 4)
            rows = directions[label] + noise[first : first + count]
            size, shape = ((640, 480), None) if regions else (None, (sides[0], sides[1]))
            writer.add(ImageRows(image, rows, corners if boxes else None, size, shape))
