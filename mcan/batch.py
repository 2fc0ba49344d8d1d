"""What flows from the loader to the network, the loss and the metric.

B questions, n words of the longest, m rows of the longest image, T rows of all samples together, A
answers. The loader makes packed batches on the CPU, because they are small; `Batch.enter` is the
one place where a batch moves to a device and into the layout that the network computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mcan.rows import Packed, Padded, Rows

RowLayout = Literal["padded", "packed"]
MAX_SHAPES = 8
"""Pairs of padded lengths of a compiled network; each is compiled for training and evaluation."""


@dataclass(frozen=True)
class Question:
    """Word ids (T,) or (B, n), int64, zero where there is no word."""

    tokens: Tensor
    rows: Rows


@dataclass(frozen=True)
class Image:
    """Region features (T, D) or (B, m, D), or `pixels` (B, 3, H, W) in 0-255.

    - `boxes` (..., 4), normalised x1 y1 x2 y2, of regions that have them;
    - `cells` (..., 2), row and column, if regions are the cells of a grid;
    - `grid` (..., D'): more rows per image, with `grid_rows` and `grid_cells`;
    - `of_question` (B,), on the CPU: the index of each question's image, if questions share images;
      otherwise there is one image per question.

    With pixels, each image is one row.
    """

    rows: Rows
    regions: Tensor | None = None
    boxes: Tensor | None = None
    cells: Tensor | None = None
    grid: Tensor | None = None
    grid_rows: Rows | None = None
    grid_cells: Tensor | None = None
    pixels: Tensor | None = None
    of_question: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """Soft scores as a sparse (B, A) matrix: entry (`rows`[i], `answers`[i]) is `scores`[i]."""

    rows: Tensor
    answers: Tensor
    scores: Tensor

    def dense(self, batch: int, answers: int) -> Tensor:
        """(B, A) float32."""
        out = torch.zeros(batch, answers, device=self.scores.device)
        return out.index_put_((self.rows, self.answers), self.scores)


@dataclass(frozen=True)
class PaddedLengths:
    """The lengths to pad to: the smallest that fits, or the longest sample's if none does."""

    words: Sequence[int] = ()
    regions: Sequence[int] = ()
    grid: Sequence[int] = ()


@dataclass(frozen=True)
class Batch:
    """`index` (B,) int64 is the row of each question in the dataset."""

    question: Question
    image: Image
    targets: Targets
    index: Tensor

    @property
    def size(self) -> int:
        return len(self.index)

    def pin_memory(self) -> Batch:
        """Page-locked copies, from which `enter` copies to a GPU while it computes."""

        def pin(part: Any) -> Any:
            tensors = {key: x for key, x in vars(part).items() if torch.is_tensor(x) and x.is_cpu}
            return replace(part, **{key: x.pin_memory() for key, x in tensors.items()})

        return Batch(pin(self.question), pin(self.image), pin(self.targets), pin(self).index)

    def enter(
        self,
        device: torch.device | str,
        layout: RowLayout,
        dtype: torch.dtype = torch.float32,
        lengths: PaddedLengths | None = None,
    ) -> Batch:
        """This batch, made by the loader, on `device` in `layout`, features in `dtype`.

        Padded samples are as long as the longest in the batch, or as one of `lengths`. Nothing
        waits for the device.
        """
        device, lengths = torch.device(device), lengths or PaddedLengths()
        # Boxes and pixels are not rounded to bf16.
        exact = torch.promote_types(dtype, torch.float32)
        # Products in bf16 on a CPU want the filler rows that the loader allocated.
        keep_filler = dtype == torch.bfloat16 and device.type == "cpu"

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        def place(part: Any, of: str, choices: Sequence[int], **types: torch.dtype) -> Any:
            """The rows `of` a part and the tensors that have these rows, in `types`, by name."""
            old = getattr(part, of)
            if old is None:
                return {}
            rows = Packed(old.lengths, old.filler if keep_filler else 0, device)
            present = {name: x for name in types if (x := getattr(part, name)) is not None}
            placed = {n: move(x[: rows.total]).to(types[n]) for n, x in present.items()}
            if layout == "packed":
                return {of: rows, **placed}
            # All samples become as long as the next length that was chosen.
            rows.longest = min((n for n in choices if n >= old.longest), default=old.longest)
            padded = {name: rows.pad(x) for name, x in placed.items()}
            return {of: Padded(rows.mask, rows.some_empty), **padded}

        image, whole = self.image, torch.int64
        entered = Image(
            **place(image, "rows", lengths.regions, regions=dtype, boxes=exact, cells=whole),
            **place(image, "grid_rows", lengths.grid, grid=dtype, grid_cells=whole),
            pixels=None if image.pixels is None else move(image.pixels).to(exact),
            of_question=image.of_question,
        )
        question = Question(**place(self.question, "rows", lengths.words, tokens=whole))
        targets = Targets(*(move(x) for x in vars(self.targets).values()))
        return Batch(question, entered, targets, move(self.index))
