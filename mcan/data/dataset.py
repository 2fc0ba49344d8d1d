"""Questions and images as one indexable dataset that builds whole batches.

B questions of a batch, Q of the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcan.batch import Batch, ImageInput, Targets
from mcan.data.hdf5 import Id
from mcan.data.images import ImageGroup
from mcan.data.packed import Index, Packed
from mcan.data.split import Split, Types
from mcan.data.store import ImageStore
from mcan.errors import DataError
from mcan.ragged import Layout, Ragged


class VQADataset:
    """One or more splits with their image stores; `dataset[rows]` is the `Batch` of these rows.

    `splits` follow each other as one dataset. Each image is looked up in `images`, and in `grid` if
    there is any, in the order of the stores. `max_tokens` cuts questions. For
    `DataLoader(dataset, batch_size=None, sampler=...)` with a sampler of lists of rows.

    Raises `DataError` where a question's image is in no store, stores used together do not fit
    together, or splits were made with different vocabularies.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        images: Sequence[ImageStore],
        grid: Sequence[ImageStore] = (),
        max_tokens: int | None = None,
    ) -> None:
        for split in splits[1:]:
            if split.vocabulary_digest != splits[0].vocabulary_digest:
                raise DataError(
                    f"{split.path} and {splits[0].path} were made with different vocabularies"
                )
        if grid and grid[0].kind != "regions":
            raise DataError(f"{grid[0].path} holds {grid[0].kind}, expected grid features")
        self.splits = tuple(splits)
        self.images = ImageGroup(images)
        self.grid = ImageGroup(grid) if grid else None
        self._max_tokens = max_tokens
        self._tokens = Packed.concatenate([split.tokens for split in splits])
        self._targets = Packed.concatenate([split.target_answers for split in splits])
        self._scores = Packed.concatenate([split.target_scores for split in splits])
        self._bases = np.cumsum([0, *(len(split) for split in splits)])
        self._image = _locate(self.images, splits)
        self._grid_image = _locate(self.grid, splits) if self.grid else None
        self._shares = False

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        index = np.asarray(rows, np.int64)
        tokens, lengths = self._tokens.take(index, self._max_tokens)
        layout = Layout(torch.from_numpy(lengths), int(lengths.max(initial=0)), int(lengths.sum()))
        answers, counts = self._targets.take(index)
        scores, _ = self._scores.take(index)
        return Batch(
            question=Ragged(torch.from_numpy(tokens.astype(np.int64)), layout),
            image=self._image_input(index),
            targets=Targets(
                rows=torch.from_numpy(np.repeat(np.arange(len(index)), counts)),
                answers=torch.from_numpy(answers.astype(np.int64)),
                scores=torch.from_numpy(scores),
            ),
            index=torch.from_numpy(index.copy()),
        )

    def for_evaluation(self) -> VQADataset:
        """The same questions; in a batch, those about one image share it."""
        shared = copy(self)
        shared._shares = True
        return shared

    def evaluation_order(self) -> Index:
        """(Q,) the rows, such that questions about one image are neighbours, and like lengths.

        The longest come first: they need the most memory.
        """
        keys = (-np.diff(self._tokens.offsets), self._image, -self.images.lengths(self._image))
        return np.lexsort(keys)

    def _image_input(self, index: Index) -> ImageInput:
        of_question = None
        if self._shares:
            _, first, places = np.unique(self._image[index], return_index=True, return_inverse=True)
            if len(first) < len(index):
                index, of_question = index[first], torch.from_numpy(places)
        image = replace(self.images.gather(self._image[index]), of_question=of_question)
        if self.grid is None or self._grid_image is None:
            return image
        cells = self.grid.gather(self._grid_image[index])
        return replace(image, grid=cells.regions, grid_cells=cells.cells)

    def __getstate__(self) -> dict[str, Any]:
        """Without what evaluation reads again when it needs it."""
        lazy = {"answer_types", "question_types"}
        return {name: value for name, value in self.__dict__.items() if name not in lazy}

    @property
    def tokens(self) -> Packed:
        """The token ids of all questions, uncut."""
        return self._tokens

    @property
    def targets(self) -> Packed:
        """The answers with a score above zero of all questions."""
        return self._targets

    @property
    def image_rows(self) -> Index:
        """(Q,) the image of each question, equal for equal images."""
        return self._image

    @cached_property
    def answer_types(self) -> Types:
        return _merge([split.answer_types for split in self.splits])

    @cached_property
    def question_types(self) -> Types:
        return _merge([split.question_types for split in self.splits])

    def question_ids(self, rows: Sequence[int]) -> list[Id]:
        """The ids of the source: int or str."""
        return self._per_row(rows, lambda split, row: split.question_ids[row : row + 1].tolist()[0])

    def questions(self, rows: Sequence[int]) -> list[str]:
        """The questions as they were asked."""
        return self._per_row(rows, lambda split, row: split.questions[row])

    def human_answers(self, rows: Sequence[int]) -> list[list[str]]:
        """The raw human answers of each question."""
        return self._per_row(rows, lambda split, row: split.human_answers.of(row))

    def image_ids(self, rows: Sequence[int]) -> list[Id]:
        """The image of each question."""

        def image_id(split: Split, row: int) -> Id:
            found: Id = split.image_ids[split.image_index[row : row + 1]].tolist()[0]
            return found

        return self._per_row(rows, image_id)

    def _per_row(self, rows: Sequence[int], get: Callable[[Split, int], Any]) -> list[Any]:
        index = np.asarray(rows, np.int64)
        owners = np.searchsorted(self._bases, index, side="right") - 1
        within = index - self._bases[owners]
        return [
            get(self.splits[owner], row)
            for owner, row in zip(owners.tolist(), within.tolist(), strict=True)
        ]


def _locate(group: ImageGroup, splits: Sequence[Split]) -> Index:
    """(Q,) the image of each question as the group numbers it."""
    found = [group.locate(split.image_ids)[split.image_index] for split in splits]
    images = np.concatenate(found)
    if questions := int((images < 0).sum()):
        missing: dict[Id, None] = {}
        for split, numbers in zip(splits, found, strict=True):
            unique = np.unique(split.image_index[numbers < 0])
            missing.update(dict.fromkeys(split.image_ids[unique].tolist()))
        raise group.missing(list(missing), questions)
    return images


def _merge(types: Sequence[Types]) -> Types:
    """The types of splits that follow each other, under one numbering."""
    names = tuple(dict.fromkeys(name for part in types for name in part.names))
    codes: list[NDArray[np.int32]] = [
        np.array([names.index(name) for name in part.names], np.int32)[part.codes] for part in types
    ]
    return Types(np.concatenate(codes), names)
