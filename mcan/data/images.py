"""Image stores read as one: a batch of images packed into one buffer.

B images, T rows of all of them, D width of a feature row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcan.batch import ImageInput
from mcan.data.hdf5 import Id, Ids
from mcan.data.packed import Index, ranges
from mcan.data.store import ImageStore, Kind
from mcan.errors import DataError
from mcan.ragged import Layout, Ragged

_NAMED_IDS = 5


class ImageGroup:
    """One or more stores of one kind, searched in the order given.

    Raises `DataError`, which names two files, where kind, row shape or dtype differ. Boxes and grid
    cells are there only if every store has them.
    """

    def __init__(self, stores: Sequence[ImageStore]) -> None:
        first = stores[0]
        for store in stores[1:]:
            if _signature(store) != _signature(first):
                raise DataError(
                    f"{store.path} holds {_signature(store)} while {first.path} holds "
                    f"{_signature(first)}; stores used together must hold the same"
                )
        self.stores = tuple(stores)
        self.has_boxes = all(store.boxes is not None for store in stores)
        self.has_cells = all(store.grid_shapes is not None for store in stores)
        # Images are numbered through all stores; each has a store, a first row there, and a length.
        self._bases = np.cumsum([0, *(len(store) for store in stores)])
        self._store = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
        self._first = np.concatenate([store.offsets[:-1] for store in stores])
        self._length = np.concatenate([np.diff(store.offsets) for store in stores])
        self._columns = (
            np.concatenate([store.grid_shapes[:, 1] for store in stores])  # type: ignore[index]
            if self.has_cells
            else None
        )
        self._uniform = bool((self._length == self._length[0]).all())

    @property
    def kind(self) -> Kind:
        return self.stores[0].kind

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(D,) of regions or (3, H, W) of pixels."""
        return self.stores[0].row_shape

    def locate(self, image_ids: Ids) -> Index:
        """The number of each image, for `gather`; -1 where no store has it."""
        numbers = np.full(len(image_ids), -1, np.int64)
        for store, base in zip(self.stores, self._bases.tolist(), strict=False):
            missing = np.flatnonzero(numbers < 0)
            found = store.rows_of(image_ids[missing])
            numbers[missing] = np.where(found < 0, -1, found + base)
        return numbers

    def lengths(self, images: Index) -> Index:
        """The rows of each of these images."""
        return self._length[images]

    def missing(self, image_ids: Sequence[Id], questions: int) -> DataError:
        """The error for `image_ids`, wanted by `questions` questions, that no store has."""
        names = ", ".join(repr(image_id) for image_id in image_ids[:_NAMED_IDS])
        more = ", ..." if len(image_ids) > _NAMED_IDS else ""
        files = ", ".join(str(store.path) for store in self.stores)
        return DataError(
            f"{len(image_ids)} images of {questions} questions are in none of the image stores "
            f"({files}): {names}{more}; the stores hold ids such as "
            f"{self.stores[0].image_ids[:1].tolist()[0]!r}"
        )

    def gather(self, images: Index) -> ImageInput:
        """The images with these numbers: `regions`, `boxes`, `cells`, or `pixels`.

        Rows keep the dtype of the store. They come on the device of a store that was loaded there
        and else on the CPU; nothing waits for the device.
        """
        lengths = self._length[images]
        starts = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        values = self._rows(images, lengths, starts, total)
        if self.kind == "pixels":
            return ImageInput(pixels=values)
        layout = Layout(torch.from_numpy(lengths), int(lengths.max(initial=0)), total)
        boxes = cells = None
        if self.has_boxes:
            packed = np.empty((total, 4), np.float32)
            for store, at in self._parts(images):
                source = ranges(self._first[images[at]], lengths[at])
                packed[ranges(starts[at], lengths[at])] = store.boxes[source]  # type: ignore[index]
            boxes = torch.from_numpy(packed)
        if self._columns is not None:
            columns = np.repeat(self._columns[images], lengths)
            cell = np.arange(total) - np.repeat(starts, lengths)
            cells = torch.from_numpy(np.stack([cell // columns, cell % columns], 1))
        return ImageInput(regions=Ragged(values, layout), boxes=boxes, cells=cells)

    def _rows(
        self,
        images: Index,
        lengths: Index,
        starts: Index,
        total: int,
    ) -> Tensor:
        """(T, ...) rows of `images`, copied once into one buffer."""
        first = self.stores[0].rows
        if isinstance(first, Tensor):
            return self._rows_on_device(first, images, lengths, starts, total)
        sources: list[NDArray[Any]] = [np.asarray(store.rows) for store in self.stores]
        out = np.empty((total, *first.shape[1:]), first.dtype)
        if len(sources) == 1 and self._uniform:
            table = first.reshape(len(self._length), -1)
            # With mode="raise" numpy would collect in a second buffer first.
            np.take(table, images, 0, out=out.reshape(len(images), table.shape[1]), mode="clip")
        else:
            where = zip(
                self._store[images].tolist(),
                self._first[images].tolist(),
                starts.tolist(),
                lengths.tolist(),
                strict=True,
            )
            for store, row, start, length in where:
                out[start : start + length] = sources[store][row : row + length]
        return torch.from_numpy(out)

    def _rows_on_device(
        self,
        first: Tensor,
        images: Index,
        lengths: Index,
        starts: Index,
        total: int,
    ) -> Tensor:
        if len(self.stores) == 1:
            return first.index_select(0, _index(self._first[images], lengths, first.device))
        out = first.new_empty(total, *first.shape[1:])
        for store, at in self._parts(images):
            assert isinstance(store.rows, Tensor)
            rows = _index(self._first[images[at]], lengths[at], first.device)
            slots = _index(starts[at], lengths[at], first.device)
            out.index_copy_(0, slots, store.rows.index_select(0, rows))
        return out

    def _parts(self, images: Index) -> list[tuple[ImageStore, Index]]:
        """Each store with the places in `images` that are its own."""
        stores = self._store[images]
        return [(s, np.flatnonzero(stores == number)) for number, s in enumerate(self.stores)]


def _signature(store: ImageStore) -> str:
    return f"{store.kind} {store.row_shape} {str(store.rows.dtype).removeprefix('torch.')}"


def _index(firsts: Index, lengths: Index, device: torch.device) -> Tensor:
    return torch.from_numpy(ranges(firsts, lengths)).to(device, non_blocking=True)
