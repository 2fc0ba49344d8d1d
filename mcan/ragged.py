"""Ragged rows: what an image (10-100 regions) and a question (1-14 words) have in common.

B samples, T rows of all samples together, L the longest sample, D features per row.

Rows travel packed, so that linear layers, feed-forward, LayerNorm and dropout touch valid rows
only; only attention forms the padded (B, L, ...) view, and only for the few tensors that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

_V = TypeVar("_V")

# T is rounded up to a multiple of this, or of a smaller power of two where samples are short.
_MULTIPLE = 128


def _once(compute: Callable[[Layout], Tensor]) -> Tensor:
    """A property computed once, without the lock of `cached_property`, at which compilers stop."""
    name = compute.__name__
    found = property(lambda self: self.once(name, lambda: compute(self)), doc=compute.__doc__)
    return cast(Tensor, found)


class Layout:
    """Where the T packed rows stand in the padded (B, L) grid.

    `lengths` (B,) int64 lives on any device; `longest` (L) and `total` (T) are Python numbers, so
    that no layer has to wait for the device to learn a shape.

    Raises `ValueError` where `longest` and `total` cannot belong to the number of samples.
    """

    def __init__(self, lengths: Tensor, longest: int, total: int) -> None:
        if total > len(lengths) * longest:
            raise ValueError(f"{total} rows do not fit {len(lengths)} samples of {longest}")
        self.lengths = lengths
        self.longest = longest
        self.total = total
        self._known: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, lengths: Tensor) -> Layout:
        """The layout of `lengths` (B,), reading its maximum and sum on the host."""
        return cls(lengths, int(lengths.max()) if len(lengths) else 0, int(lengths.sum()))

    @property
    def batch(self) -> int:
        return len(self.lengths)

    def once(self, key: Hashable, compute: Callable[[], _V]) -> _V:
        """What `compute` returned first for `key`: all layers share what follows from a layout."""
        if key not in self._known:
            self._known[key] = compute()
        found: _V = self._known[key]
        return found

    @property
    def on_host(self) -> bool:
        """Lengths can be read at once: no device has to be waited for, no compiler interrupted."""
        return self.lengths.device.type == "cpu" and not torch.compiler.is_compiling()

    @property
    def dense(self) -> bool:
        """All samples equally long: the padded view is a reshape, and no mask is needed."""
        return self.total == self.batch * self.longest

    @property
    def rounded(self) -> bool:
        """Rows are filled up for matrix products in bf16 on CPU.

        The library behind them prepares each product anew for every T that it has not seen. With
        all the T that batches have, that was a tenth of a training step.
        """
        return self.on_host and not self.dense and torch.is_autocast_enabled("cpu")

    @property
    def missing(self) -> int:
        """Rows that T lacks to be a multiple of up to 128; not more than the longest sample has."""
        if not self.rounded:
            return 0
        return -self.total % min(_MULTIPLE, 1 << (self.longest.bit_length() - 1))

    @_once
    def sample(self) -> Tensor:
        """(T,) the sample that each row belongs to."""
        index = torch.arange(self.batch, device=self.lengths.device)
        return torch.repeat_interleave(index, self.lengths, output_size=self.total)

    @_once
    def starts(self) -> Tensor:
        """(B,) the first packed row of each sample."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @_once
    def position(self) -> Tensor:
        """(T,) the place of each row in its sample."""
        row = torch.arange(self.total, device=self.lengths.device)
        return row - self.starts[self.sample]

    @_once
    def slots(self) -> Tensor:
        """(T,) the place of each row in the flattened padded grid."""
        return self.sample * self.longest + self.position

    @_once
    def mask(self) -> Tensor:
        """(B, L) bool, true where a row is valid."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def pad(self, values: Tensor) -> Tensor:
        """(T, ...) packed -> (B, L, ...), zeros where no row is."""
        if self.dense:
            return values.reshape(self.batch, self.longest, *values.shape[1:])
        (padded,) = scatter_rows(values, self.slots, [self.batch * self.longest])
        return padded.view(self.batch, self.longest, *values.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...) packed; the adjoint of `pad`."""
        flat = padded.reshape(self.batch * self.longest, *padded.shape[2:])
        return flat if self.dense else gather_rows(self.slots, [flat])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Layout:
        lengths = self.lengths.to(device, non_blocking=non_blocking)
        return self if lengths is self.lengths else Layout(lengths, self.longest, self.total)

    def pin_memory(self) -> Layout:
        return Layout(pinned(self.lengths), self.longest, self.total)


def scatter_rows(values: Tensor, slots: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Row i of `values` (T, ...) at `slots`[i] of consecutive tensors of `sizes` rows, else zeros.

    No slot may be used twice.
    """
    parts: tuple[Tensor, ...] = _Scatter.apply(values, slots, *sizes)
    return parts


def gather_rows(slots: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The rows at `slots` (T,) of consecutive tensors; the adjoint of `scatter_rows`."""
    rows: Tensor = _Gather.apply(slots, *parts)
    return rows


# Autograd cannot know that no slot is used twice: its own backward of `index_select` accumulates
# row by row.
class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor, *sizes: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slots)
        together = values.new_zeros(sum(sizes), *values.shape[1:]).index_copy_(0, slots, values)
        return torch.split(together, list(sizes)) if len(sizes) > 1 else (together,)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return gather_rows(slots, grads), None, *(None for _ in grads)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.sizes = [len(part) for part in parts]
        together = torch.cat(parts) if len(parts) > 1 else parts[0]
        return together.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return None, *scatter_rows(grad, slots, ctx.sizes)


@dataclass(frozen=True)
class Ragged:
    """`values` (T, ...) packed rows and their `layout`."""

    values: Tensor
    layout: Layout

    @classmethod
    def of(cls, samples: list[Tensor]) -> Ragged:
        """Pack per-sample tensors (L_i, ...)."""
        return cls(torch.cat(samples), Layout.of(torch.tensor([len(s) for s in samples])))

    def replace(self, values: Tensor) -> Ragged:
        """The same layout with other values."""
        return Ragged(values, self.layout)

    def padded(self) -> Tensor:
        """(B, L, ...)"""
        return self.layout.pad(self.values)

    def split(self) -> list[Tensor]:
        """The samples, (L_i, ...) each; reads the lengths on the host."""
        return list(torch.split(self.values, self.layout.lengths.tolist()))

    def take(self, samples: Tensor) -> Ragged:
        """The samples with these numbers (B',), each as often as it is named.

        Reads one number from the device where samples differ in length.
        """
        layout, lengths = self.layout, self.layout.lengths[samples]
        total = len(samples) * layout.longest if layout.dense else int(lengths.sum())
        taken = Layout(lengths, layout.longest, total)
        rows = layout.starts[samples][taken.sample] + taken.position
        return Ragged(self.values.index_select(0, rows), taken)

    def append(self, other: Ragged) -> Ragged:
        """Every sample's rows followed by the same sample's rows of `other` (same D, same B)."""
        ours, theirs = self.layout, other.layout
        lengths = ours.lengths + theirs.lengths
        # Elsewhere an upper bound, which is exact where either side is dense.
        longest = min(ours.longest + theirs.longest, ours.total + theirs.total)
        if ours.on_host and ours.batch:
            longest = int(lengths.max())
        layout = Layout(lengths, longest, ours.total + theirs.total)
        row = torch.arange(ours.total, device=ours.lengths.device)
        first = row + theirs.starts[ours.sample]
        row = torch.arange(theirs.total, device=ours.lengths.device)
        second = row + (ours.starts + ours.lengths)[theirs.sample]
        slots = torch.cat([first, second])
        values = torch.cat([self.values, other.values])
        (joined,) = scatter_rows(values, slots, [layout.total])
        return Ragged(joined, layout)

    def filled_up(self) -> Ragged:
        """One sample more: the rows that the layout says are missing, all zeros."""
        layout, rows = self.layout, self.layout.missing
        lengths = torch.cat([layout.lengths, layout.lengths.new_tensor([rows])])
        values = torch.cat([self.values, self.values.new_zeros(rows, *self.values.shape[1:])])
        return Ragged(values, Layout(lengths, layout.longest, layout.total + rows))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        values = self.values.to(device, non_blocking=non_blocking)
        return Ragged(values, self.layout.to(device, non_blocking))

    def pin_memory(self) -> Ragged:
        return Ragged(pinned(self.values), self.layout.pin_memory())


def pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy; what is on a device already stays there."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor
