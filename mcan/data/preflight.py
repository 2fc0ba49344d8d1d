"""What is checked over a whole dataset before training starts.

That every question's image is in a store is checked when a `VQADataset` is made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mcan.data.dataset import VQADataset
from mcan.errors import DataError
from mcan.text.vocabulary import UNK

_WARN_SHARE = 0.2


@dataclass(frozen=True)
class Preflight:
    """Counts over a dataset; `without_target` questions have no answer of the vocabulary."""

    questions: int
    images: int
    without_target: int
    words: int
    unknown_words: int
    warnings: tuple[str, ...]

    @property
    def unknown_word_share(self) -> float:
        return self.unknown_words / self.words


def preflight(dataset: VQADataset) -> Preflight:
    """Check a dataset for training.

    Raises `DataError` where a question id occurs twice or no question has a target; warns where
    more than a fifth of them have none.
    """
    names = ", ".join(str(split.path) for split in dataset.splits)
    _check_unique(dataset, names)
    targets = np.diff(dataset.targets.offsets)
    without = int((targets == 0).sum())
    words = dataset.tokens.values
    warnings = []
    if without == len(dataset):
        raise DataError(
            f"{names}: none of the {without} questions has an answer of the vocabulary, so there "
            "is nothing to learn from"
        )
    if without > _WARN_SHARE * len(dataset):
        warnings.append(
            f"{names}: {without} of {len(dataset)} questions ({without / len(dataset):.0%}) have "
            "no answer of the vocabulary and teach only what is wrong"
        )
    return Preflight(
        questions=len(dataset),
        images=len(np.unique(dataset.image_rows)),
        without_target=without,
        words=len(words),
        unknown_words=int((words == UNK).sum()),
        warnings=tuple(warnings),
    )


def _check_unique(dataset: VQADataset, names: str) -> None:
    ids = np.concatenate([split.question_ids for split in dataset.splits])
    distinct = set(ids) if ids.dtype == object else np.unique(ids)
    if len(distinct) < len(ids):
        twin, count = Counter(ids.tolist()).most_common(1)[0]
        raise DataError(f"{names}: question id {twin!r} occurs {count} times; ids must be unique")
