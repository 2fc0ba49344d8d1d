"""The padded views that attention computes on: heads apart, samples of similar lengths together.

B samples, T packed rows, h heads, d_h width of a head. A block has b samples, the longest L
rows.

On CPU padding costs what rows cost, and what fits the cache is computed faster: blocks of a dozen
images of 10-100 regions take half the time of one padded batch. Elsewhere all samples are one
block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcan.ragged import Layout, gather_rows, scatter_rows

# Scores of a block, over all its heads: two to four megabytes.
BLOCK_SCORES = 2**20

# Numbers in a vector register: scores of fewer keys are computed one by one.
VECTOR = 16

# Where rows are rounded up, L is a multiple of this.
MULTIPLE = 8


class HeadBlocks:
    """Packed rows (T, parts · h · d_h) <-> `parts` padded tensors (b, h, L, d_h) for each block.

    `groups` are the numbers of the samples in each block, None where all are one block. `exact`
    keeps L at the longest sample. `masks` are (b, 1, 1, L), true where a row is, or None where all
    samples of a block have L rows.
    """

    def __init__(
        self, layout: Layout, heads: int, groups: tuple[Tensor, ...] | None, exact: bool = False
    ) -> None:
        self.groups = groups
        self._heads = heads
        self._total = layout.total
        self._rows: list[Tensor | slice] = [slice(None)]
        # Not the layout itself, which keeps what is made here: they would keep each other.
        self._blocks = [Layout(layout.lengths, layout.longest, layout.total)]
        if groups is not None:
            self._blocks = [Layout.of(layout.lengths[group]) for group in groups]
            self._rows = [
                layout.starts[group][block.sample] + block.position
                for block, group in zip(self._blocks, groups, strict=True)
            ]
        if not exact and layout.on_host:
            multiple = MULTIPLE if layout.rounded else 1
            self._blocks = [_lengthened(block, multiple) for block in self._blocks]
        self.masks = [None if block.dense else block.mask[:, None, None] for block in self._blocks]
        self._slots: dict[int, Tensor] = {}

    def split(self, values: Tensor, parts: int) -> list[tuple[Tensor, ...]]:
        """(T, parts · h · d_h) -> per block, its `parts` tensors."""
        heads, width = self._heads, values.shape[1] // (parts * self._heads)
        shapes = [(block.batch, heads, block.longest, width) for block in self._blocks]
        if self._is_a_reshape:
            batch, _, longest, _ = shapes[0]
            return [
                values.view(batch, longest, parts, heads, width).permute(2, 0, 3, 1, 4).unbind()
            ]
        sizes = [batch * heads * longest for batch, _, longest, _ in shapes for _ in range(parts)]
        padded = iter(scatter_rows(values.reshape(-1, width), self._slots_of(parts), sizes))
        return [tuple(next(padded).view(shape) for _ in range(parts)) for shape in shapes]

    def merge(self, blocks: list[Tensor]) -> Tensor:
        """A (b, h, L, d_h) per block -> (T, h · d_h)."""
        if self._is_a_reshape:
            return blocks[0].transpose(1, 2).flatten(2).flatten(0, 1)
        width = blocks[0].shape[3]
        rows = gather_rows(self._slots_of(1), [block.reshape(-1, width) for block in blocks])
        return rows.view(self._total, self._heads * width)

    @property
    def _is_a_reshape(self) -> bool:
        return self.groups is None and self.masks[0] is None

    def _slots_of(self, parts: int) -> Tensor:
        """(T · parts · h,) where each row of a head stands in all blocks, one after the other."""
        if parts not in self._slots:
            self._slots[parts] = self._find_slots(parts)
        return self._slots[parts]

    def _find_slots(self, parts: int) -> Tensor:
        device = self._blocks[0].lengths.device
        part = torch.arange(parts, device=device)[:, None]
        head = torch.arange(self._heads, device=device)
        slots = torch.empty(self._total, parts, self._heads, dtype=torch.int64, device=device)
        first = 0
        for block, rows in zip(self._blocks, self._rows, strict=True):
            sample, place = block.sample[:, None, None], block.position[:, None, None]
            grid = (part * block.batch + sample) * self._heads + head
            slots[rows] = first + grid * block.longest + place
            first += parts * block.batch * self._heads * block.longest
        return slots.flatten()


def blocks_of(
    query: Layout, source: Layout, heads: int, whole: bool = False
) -> tuple[HeadBlocks, HeadBlocks]:
    """The blocks of queries and of keys, of the same samples; found once for a pair of layouts.

    `whole` asks for a single block that is as long as the longest sample.
    """
    mine = query.once(
        ("blocks", heads, whole),
        lambda: HeadBlocks(query, heads, None if whole else _similar(query, heads), whole),
    )
    if source is query:
        return mine, mine
    theirs = query.once(
        ("blocks", heads, whole, source), lambda: HeadBlocks(source, heads, mine.groups, whole)
    )
    return mine, theirs


def _similar(layout: Layout, heads: int) -> tuple[Tensor, ...] | None:
    """Samples of similar lengths whose scores among themselves fit the cache.

    What they are guided by is cut into the same groups.
    """
    if not layout.on_host or layout.dense:
        return None
    samples = max(1, BLOCK_SCORES // (heads * layout.longest**2))
    if samples >= layout.batch:
        return None
    return layout.lengths.argsort().chunk(-(-layout.batch // samples))


def _lengthened(block: Layout, multiple: int) -> Layout:
    longest = max(VECTOR, -(-block.longest // multiple) * multiple)
    if block.dense or longest == block.longest:
        return block
    return Layout(block.lengths, longest, block.total)
