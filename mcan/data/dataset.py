"""Questions and images as one indexable dataset that builds whole batches.

B questions of a batch, Q of the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mcan.batch import Batch, Image, Question, Targets
from mcan.data.arrays import Id, Index, RaggedArray, array_to_ids
from mcan.data.prepared import Categories, Split
from mcan.data.store import ImageStore, StoreGroup
from mcan.errors import DataError, plural, shorten
from mcan.rows import Packed, filler_rows


class VQADataset:
    """One or more splits with their image stores; `dataset[rows]` is the `Batch` of these rows.

    `splits` follow each other as one dataset. Each image is looked up in `images`, and in `grid` if
    there is any, in the order of the stores. `max_tokens` cuts questions. For a `DataLoader` with
    `batch_size=None` and a sampler of lists of rows.

    Of all questions: `tokens`, uncut; `targets`, the answers with a score above zero; `image_rows`
    (Q,), the image of each, equal for equal images, and `grid_rows` (Q,) or None, its grid.

    Raises `DataError` if an image is in no store, or stores or splits do not fit together.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        images: Sequence[ImageStore],
        grid: Sequence[ImageStore] = (),
        max_tokens: int | None = None,
    ) -> None:
        if grid and grid[0].kind != "regions":
            raise DataError(f"{grid[0].path} holds {grid[0].kind}, expected grid features")
        self.splits = tuple(splits)
        self.images = StoreGroup(images)
        self.grid = StoreGroup(grid) if grid else None
        self.tokens = RaggedArray.concatenate([split.tokens for split in splits])
        self.targets = RaggedArray.concatenate([split.target_answers for split in splits])
        self.image_rows = _locate(splits, self.images)
        self.grid_rows: Any = None if self.grid is None else _locate(splits, self.grid)
        self._scores = RaggedArray.concatenate([split.target_scores for split in splits])
        self._max_tokens = max_tokens
        self._share_images = False

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        index = np.array(rows, np.int64)
        tokens, counts = self.tokens.take(index, self._max_tokens)
        lengths = torch.from_numpy(counts)
        word_rows = Packed(lengths, filler_rows(lengths))
        tokens = np.pad(tokens.astype(np.int64), (0, word_rows.filler))
        answers, counts = self.targets.take(index)
        scores, _ = self._scores.take(index)
        targets = (np.repeat(np.arange(len(index)), counts), answers.astype(np.int64), scores)
        return Batch(
            question=Question(torch.from_numpy(tokens), word_rows),
            image=self._gather_images(index),
            targets=Targets(*map(torch.from_numpy, targets)),
            index=torch.from_numpy(index),
        )

    def _gather_images(self, index: Index) -> Image:
        of_question = None
        if self._share_images:
            _, first, places = np.unique(self.image_rows[index], True, True)
            if len(first) < len(index):
                index, of_question = index[first], torch.from_numpy(places)
        rows, content, boxes, cells = self.images.gather(self.image_rows[index])
        if self.images.kind == "pixels":
            return Image(rows, pixels=content, of_question=of_question)
        image = Image(rows, content, boxes, cells, of_question=of_question)
        if self.grid is None:
            return image
        rows, content, _, cells = self.grid.gather(self.grid_rows[index])
        return replace(image, grid=content, grid_rows=rows, grid_cells=cells)

    def find(self, row: int) -> tuple[Split, int]:
        """The split of a question, and the question's place there."""
        row = range(len(self))[row]
        for split in self.splits:
            if row < len(split):
                break
            row -= len(split)
        return split, row

    def lengths(self) -> tuple[Index, Index, Index | None]:
        """(Q,) words, image rows and grid rows of each question."""
        words = np.clip(np.diff(self.tokens.offsets), 0, self._max_tokens)
        grid = None if self.grid is None else self.grid.lengths[self.grid_rows]
        return words, self.images.lengths[self.image_rows], grid

    def with_shared_images(self) -> VQADataset:
        """The same questions; in a batch, those about one image share it."""
        shared = copy(self)
        shared._share_images = True
        return shared

    def evaluation_order(self) -> Index:
        """(Q,) the rows: questions about one image are neighbours, and so are similar lengths."""
        # The longest come first: they need the most memory.
        words, regions, _ = self.lengths()
        return np.lexsort((-words, self.image_rows, -regions))

    @cached_property
    def answer_types(self) -> Categories:
        return _merge([split.answer_types for split in self.splits])

    @cached_property
    def question_types(self) -> Categories:
        return _merge([split.question_types for split in self.splits])

    def question_ids(self) -> list[Id]:
        """(Q,) the ids of the source: int or str."""
        return [i for split in self.splits for i in array_to_ids(split.question_ids)]


def _locate(splits: Sequence[Split], group: StoreGroup) -> Index:
    """(Q,) the image of each question as the group numbers it."""
    images = []
    for split in splits:
        found = group.locate(split.image_ids)
        images.append(found[split.image_index])
        missing = split.image_ids[found < 0]
        if len(missing):
            questions = int((images[-1] < 0).sum())
            files = shorten(store.path for store in group.stores)
            counts = f"{plural(len(missing), 'image')} of {plural(questions, 'question')}"
            others = array_to_ids(group.stores[0].image_ids[:5])
            raise DataError(
                f"{split.path}: the image stores ({files}) lack {counts}: "
                f"{shorten(map(repr, array_to_ids(missing)))}; they hold ids such as "
                f"{shorten(map(repr, others))}"
            )
    return np.concatenate(images)


def _merge(types: Sequence[Categories]) -> Categories:
    """The types of splits that follow each other, under one numbering."""
    names = tuple(dict.fromkeys(name for part in types for name in part.names))
    numbers = [np.array([names.index(name) for name in part.names], np.int32) for part in types]
    codes = [new[part.codes] for new, part in zip(numbers, types, strict=True)]
    return Categories(np.concatenate(codes), names)
