"""Which rows belong to which sample: the two layouts that the network computes in.

B samples, n rows of the longest, T rows of all samples together, d width, h heads, d_h = d / h.

Linear, LayerNorm, feed-forward, dropout and residual work on the last dimension and take either
layout. Attention, attentional reduction and recurrent encoders ask a `Rows` object:

- `Padded(mask)`: rows are (B, n, d), as hooks, `torch.compile` and GPUs expect them;
- `Packed(lengths)`: rows are (T, d), and attention works on groups of samples of similar length,
  several times as fast on a CPU.

Both have the same methods and give the same results. Read `Padded`; `Packed` is about speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores of one group over all heads, 2-4 MB: what the caches of one core hold.
GROUP_SCORES = 2**20
# A group is at least a vector register wide, and a multiple of eight: products are slow otherwise.
MIN_WIDTH, WIDTH_MULTIPLE = 16, 8
# bf16 products on a CPU are prepared again for each T that is new: T is a multiple of this.
TOTAL_MULTIPLE = 128


@dataclass(frozen=True)
class Padded:
    """Rows (B, n, d), valid where `mask` (B, n) is true; with `some_empty`, perhaps nowhere."""

    mask: Tensor
    some_empty: bool = True

    @property
    def position(self) -> Tensor:
        """The index of each row in its sample, to be broadcast: (n,)."""
        return torch.arange(self.mask.shape[1], device=self.mask.device)

    def pad(self, x: Tensor) -> Tensor:
        """The padded view (B, n, ...) of rows, to which `mask` belongs."""
        return x

    def unpad(self, x: Tensor) -> Tensor:
        """The rows in a padded view."""
        return x

    def split_heads(self, x: Tensor, heads: int, queries: Rows) -> Sequence[Tensor]:
        """(B, n, d) -> (b, h, n, d_h) for each group of samples; here all samples are one group.

        `queries` decide the groups; `x` has their rows, or those of their keys or values.
        """
        return [x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)]

    def key_masks(self, heads: int, queries: Rows) -> Sequence[Tensor | None]:
        """(b, 1, 1, n) for each group, None if all keys are valid."""
        return [self.mask[:, None, None]]

    def join_heads(self, groups: Sequence[Tensor]) -> Tensor:
        """(b, h, n, d_h) for each group -> (B, n, d)"""
        return groups[0].transpose(1, 2).flatten(2)

    def take(self, x: Tensor, samples: Tensor) -> tuple[Tensor, Rows]:
        """The samples with these indices (B',) on the CPU, each as often as it occurs."""
        samples = samples.to(x.device, non_blocking=True)
        return x[samples], Padded(self.mask[samples], self.some_empty)

    def append(self, x: Tensor, other: Tensor, other_rows: Any) -> tuple[Tensor, Rows]:
        """Each sample's rows followed by the same sample's rows of `other` in the same layout."""
        mask = torch.cat([self.mask, other_rows.mask], 1)
        return torch.cat([x, other], 1), Padded(mask, self.some_empty and other_rows.some_empty)

    def equal(self, x: Tensor) -> tuple[Tensor, Rows]:
        """Rows (B, n, d) that are all valid, in the layout of this object."""
        return x, Padded(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), False)


class Packed:
    """Rows (T, d): `lengths[i]` rows of each sample i, then `filler` unused rows.

    `lengths` (B,) int64 is on the CPU wherever the rows are, so that nothing waits for a `device`.
    Filler rows make T repeat (`filler_rows`); nothing reads them. `longest` is n if padded.
    """

    def __init__(self, lengths: Tensor, filler: int = 0, device: Any = "cpu") -> None:
        self.lengths, self.filler, self.device = lengths, filler, torch.device(device)
        self.longest: int = max(lengths.tolist(), default=0)
        self.valid = int(lengths.sum())
        self.total = self.valid + filler
        self._plans: dict[tuple[int, Packed], _Plan] = {}

    @cached_property
    def some_empty(self) -> bool:
        return bool((self.lengths == 0).any())

    @cached_property
    def mask(self) -> Tensor:
        return self._move(torch.arange(self.longest) < self.lengths[:, None])

    @cached_property
    def is_dense(self) -> bool:
        """All samples are equally long: padding is a reshape, and no mask is needed."""
        return self.total == self.valid == len(self.lengths) * self.longest

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)

    @cached_property
    def starts(self) -> Tensor:
        """(B,) the first row of each sample, on the CPU."""
        return self.lengths.cumsum(0) - self.lengths

    def slots(self, starts: Tensor) -> Tensor:
        """(valid,) where each row goes if the rows of sample i begin at `starts[i]`, on the CPU."""
        moves = (starts - self.starts).repeat_interleave(self.lengths, output_size=self.valid)
        return torch.arange(self.valid) + moves

    @property
    def position(self) -> Tensor:
        return self._move(F.pad(self.slots(torch.zeros_like(self.lengths)), (0, self.filler)))

    @cached_property
    def _padded_slots(self) -> Tensor:
        return self._move(self.slots(torch.arange(len(self.lengths)) * self.longest))

    def pad(self, x: Tensor) -> Tensor:
        if not self.is_dense:
            x = scatter_rows(x[: self.valid], self._padded_slots, len(self.lengths) * self.longest)
        return x.view(len(self.lengths), self.longest, *x.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        cells = x.flatten(0, 1)
        return cells if self.is_dense else gather_rows(cells, self._padded_slots, self.total)

    def split_heads(self, x: Tensor, heads: int, queries: Rows) -> Sequence[Tensor]:
        plan, width = self._plan(heads, queries), x.shape[1] // heads
        if plan.is_reshape:
            return Padded(self.mask).split_heads(self.pad(x), heads, queries)
        rows = x[: self.valid].reshape(self.valid * heads, width)
        groups = torch.split(scatter_rows(rows, plan.slots, sum(plan.sizes)), plan.sizes)
        return [g.view(*shape, width) for g, shape in zip(groups, plan.shapes, strict=True)]

    def key_masks(self, heads: int, queries: Rows) -> Sequence[Tensor | None]:
        return self._plan(heads, queries).masks

    def join_heads(self, groups: Sequence[Tensor]) -> Tensor:
        heads, width = groups[0].shape[1], groups[0].shape[3]
        plan = self._plan(heads, self)
        if plan.is_reshape:
            return groups[0].transpose(1, 2).flatten(2).flatten(0, 1)
        rows = torch.cat([group.reshape(-1, width) for group in groups])
        return gather_rows(rows, plan.slots, self.total * heads).view(self.total, heads * width)

    def take(self, x: Tensor, samples: Tensor) -> tuple[Tensor, Rows]:
        lengths = self.lengths[samples]
        taken = Packed(lengths, filler_rows(lengths) if self.filler else 0, self.device)
        source = F.pad(taken.slots(self.starts[samples]), (0, taken.filler))
        return x.index_select(0, self._move(source)), taken

    def append(self, x: Tensor, other: Tensor, other_rows: Any) -> tuple[Tensor, Rows]:
        lengths, filler = self.lengths + other_rows.lengths, self.filler + other_rows.filler
        joined = Packed(lengths, filler, self.device)
        rows = torch.cat([x[: self.valid], other[: other_rows.valid]])
        others = other_rows.slots(joined.starts + self.lengths)
        slots = self._move(torch.cat([self.slots(joined.starts), others]))
        return scatter_rows(rows, slots, joined.total), joined

    def equal(self, x: Tensor) -> tuple[Tensor, Rows]:
        return x.flatten(0, 1), Packed(torch.full(x.shape[:1], x.shape[1]), 0, x.device)

    def groups(self, heads: int) -> Sequence[Tensor]:
        """The samples of each group: of similar length, and with scores that fit a cache."""
        size = GROUP_SCORES // max(1, heads * self.longest**2)
        if self.is_dense or self.device.type != "cpu" or size >= len(self.lengths):
            return [torch.arange(len(self.lengths))]
        return self.lengths.argsort().chunk(-(-len(self.lengths) // max(1, size)))

    def _plan(self, heads: int, queries: Rows) -> _Plan:
        assert isinstance(queries, Packed)
        if (heads, queries) not in self._plans:
            self._plans[heads, queries] = _Plan(self, heads, queries.groups(heads))
        return self._plans[heads, queries]


Rows = Padded | Packed


class _Plan:
    """Where each row of each head is in the tensors of all groups, one after the other.

    `slots` (valid · h,); `shapes` (b, h, w), `sizes` b · h · w and `masks` of each group.
    """

    def __init__(self, rows: Packed, heads: int, groups: Sequence[Tensor]) -> None:
        self.is_reshape = rows.is_dense and len(groups) == 1
        self.shapes: list[tuple[int, int, int]] = []
        self.sizes: list[int] = []
        self.masks: list[Tensor | None] = []
        starts = torch.empty(heads, len(rows.lengths), dtype=torch.int64)
        for samples in groups:
            lengths, mask = rows.lengths[samples], None
            width = max(lengths.tolist(), default=0)
            if bool((lengths < width).any()):
                width = max(MIN_WIDTH, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
                mask = (torch.arange(width) < lengths[:, None])[:, None, None].to(rows.device)
            cells = sum(self.sizes) + torch.arange(len(samples) * heads) * width
            starts[:, samples] = cells.view(-1, heads).T
            self.masks.append(mask)
            self.shapes.append((len(samples), heads, width))
            self.sizes.append(len(samples) * heads * width)
        slots = torch.stack([rows.slots(of_head) for of_head in starts], 1)  # (valid, h)
        self.slots = slots.flatten().to(rows.device)


def filler_rows(lengths: Tensor) -> int:
    """How many unused rows to add to samples of these lengths (B,), so that T is often the same.

    T becomes a multiple of 128, or of a smaller power of two if samples are short. Samples of equal
    length need none: their T repeats.
    """
    longest, valid = max(lengths.tolist(), default=0), int(lengths.sum())
    if valid == len(lengths) * longest:
        return 0
    return -valid % min(TOTAL_MULTIPLE, 1 << (longest.bit_length() - 1))


def scatter_rows(rows: Tensor, slots: Tensor, size: int) -> Tensor:
    """(size, ...) with row i at `slots[i]` and zeros elsewhere. No slot may occur twice."""
    return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, slots, rows)


def gather_rows(cells: Tensor, slots: Tensor, size: int) -> Tensor:
    """(size, ...): the cells at `slots`, then zeros. No slot may occur twice."""
    out: Tensor = _Gather.apply(cells, slots, size)
    return out


class _Gather(torch.autograd.Function):
    """Autograd does not know that no slot occurs twice: its own backward adds up row by row."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(cells)
        out = cells.new_empty(size, *cells.shape[1:])
        torch.index_select(cells.detach(), 0, slots, out=out[: len(slots)])
        out[len(slots) :] = 0
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        slots = ctx.saved_tensors[0]
        return scatter_rows(grad[: len(slots)], slots, ctx.size), None, None
