"""Made-up questions and images with the sizes and lengths of VQA v2.

Q questions, N images, n regions of an image, D width of a region feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.store_writer import RegionStoreWriter
from mcan.text.answers import soft_targets
from mcan.text.vocabulary import Vocabulary, build_tokens

WORD_COUNTS = {
    2: 2, 3: 1857, 4: 6859, 5: 15564, 6: 12141, 7: 11338, 8: 5952, 9: 2960, 10: 1597, 11: 795,
    12: 447, 13: 214, 14: 122, 15: 61, 16: 40, 17: 24, 18: 15, 19: 11, 20: 1,
}  # fmt: skip
"""Words of a question: how many of 60,000 questions of VQA v2 have so many (mean 6.24)."""

QUESTIONS_PER_IMAGE = 5
ANNOTATORS = 10
_NOISE_ROWS = 4096


@dataclass(frozen=True)
class Workload:
    """`questions` Q about Q / 5 images (VQA v2: 5.4 per image), which follow each other.

    An image has `regions` (fewest, most) rows of `features` numbers, uniformly; `answers` and
    `words` are the sizes of the vocabulary.
    """

    questions: int
    regions: tuple[int, int] = (10, 100)
    features: int = 2048
    answers: int = 3129
    words: int = 18_000

    @property
    def images(self) -> int:
        return -(-self.questions // QUESTIONS_PER_IMAGE)


def make(folder: Path, workload: Workload) -> None:
    """Write `folder`/prepared with the split `train`, and `folder`/images.h5."""
    random = np.random.default_rng(0)
    text = Vocabulary(
        build_tokens([f"word{number}" for number in range(workload.words)]),
        tuple(f"answer{number}" for number in range(workload.answers)),
    )
    write_prepared(
        folder / "prepared",
        {"train": _questions(workload, text, random)},
        text,
        lambda answers: soft_targets(answers, text.answer_index),
        dataset="made up",
        metric="vqa",
        sources={},
    )
    with RegionStoreWriter(folder / "images.h5", workload.features) as writer:
        for image, rows in enumerate(_images(workload, random)):
            writer.add(image, rows)


def _questions(
    workload: Workload, text: Vocabulary, random: np.random.Generator
) -> Iterator[Example]:
    shares = np.array(list(WORD_COUNTS.values())) / sum(WORD_COUNTS.values())
    lengths = random.choice(list(WORD_COUNTS), size=workload.questions, p=shares)
    for number, length in enumerate(lengths.tolist()):
        words = random.integers(len(text.words), size=length).tolist()
        # Six of ten annotators agree; the others' answers are in the vocabulary too.
        answers = random.integers(len(text.answers), size=ANNOTATORS)
        answers[:6] = answers[0]
        yield Example(
            question_id=number,
            image_id=number // QUESTIONS_PER_IMAGE,
            question=" ".join(text.words[word] for word in words) + "?",
            answers=[text.answers[answer] for answer in answers.tolist()],
            answer_type="other",
        )


def _images(workload: Workload, random: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """(n, D) each, cut from one block of noise: drawing each anew is slow."""
    fewest, most = workload.regions
    noise = random.standard_normal((_NOISE_ROWS + most, workload.features), np.float32)
    for _ in range(workload.images):
        first, count = random.integers(_NOISE_ROWS), random.integers(fewest, most + 1)
        yield noise[first : first + count]
