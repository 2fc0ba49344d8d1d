"""Ragged rows: what an image (10-100 regions) and a question (1-14 words) have in common.

B samples, T rows of all samples together, L the longest sample, D features per row.

Rows travel packed, so that linear layers, feed-forward, LayerNorm and dropout touch valid rows
only; only attention forms the padded (B, L, ...) view, and only for the few tensors that need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


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

    @classmethod
    def of(cls, lengths: Tensor) -> Layout:
        """The layout of `lengths` (B,), reading its maximum and sum on the host."""
        return cls(lengths, int(lengths.max()) if len(lengths) else 0, int(lengths.sum()))

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def dense(self) -> bool:
        """All samples equally long: the padded view is a reshape, and no mask is needed."""
        return self.total == self.batch * self.longest

    @cached_property
    def sample(self) -> Tensor:
        """(T,) the sample that each row belongs to."""
        index = torch.arange(self.batch, device=self.lengths.device)
        return torch.repeat_interleave(index, self.lengths, output_size=self.total)

    @cached_property
    def starts(self) -> Tensor:
        """(B,) the first packed row of each sample."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def position(self) -> Tensor:
        """(T,) the place of each row in its sample."""
        row = torch.arange(self.total, device=self.lengths.device)
        return row - self.starts[self.sample]

    @cached_property
    def slots(self) -> Tensor:
        """(T,) the place of each row in the flattened padded grid."""
        return self.sample * self.longest + self.position

    @cached_property
    def mask(self) -> Tensor:
        """(B, L) bool, true where a row is valid."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def pad(self, values: Tensor) -> Tensor:
        """(T, ...) packed -> (B, L, ...), zeros where no row is."""
        if self.dense:
            return values.reshape(self.batch, self.longest, *values.shape[1:])
        padded: Tensor = _Pad.apply(values, self.slots, self.batch * self.longest)
        return padded.view(self.batch, self.longest, *values.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...) packed; the adjoint of `pad`."""
        flat = padded.reshape(self.batch * self.longest, *padded.shape[2:])
        return flat if self.dense else _Unpad.apply(flat, self.slots)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Layout:
        lengths = self.lengths.to(device, non_blocking=non_blocking)
        return self if lengths is self.lengths else Layout(lengths, self.longest, self.total)

    def pin_memory(self) -> Layout:
        return Layout(pinned(self.lengths), self.longest, self.total)


def _scatter_rows(values: Tensor, slots: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, slots, values)


# Padding and unpadding are each other's adjoints because no slot is used twice. Autograd cannot
# know that: its own backward of `index_select` accumulates row by row.
class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = size
        return _scatter_rows(values, slots, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return _Unpad.apply(grad, slots), None, None


class _Unpad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(flat)
        return flat.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return _Pad.apply(grad, slots, ctx.size), None


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

    def append(self, other: Ragged) -> Ragged:
        """Every sample's rows followed by the same sample's rows of `other` (same D, same B)."""
        ours, theirs = self.layout, other.layout
        layout = Layout(
            ours.lengths + theirs.lengths,
            # An upper bound that needs no device read; exact where either side is dense.
            min(ours.longest + theirs.longest, ours.total + theirs.total),
            ours.total + theirs.total,
        )
        row = torch.arange(ours.total, device=ours.lengths.device)
        first = row + theirs.starts[ours.sample]
        row = torch.arange(theirs.total, device=ours.lengths.device)
        second = row + (ours.starts + ours.lengths)[theirs.sample]
        slots = torch.cat([first, second])
        values = torch.cat([self.values, other.values])
        return Ragged(_Pad.apply(values, slots, layout.total), layout)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        values = self.values.to(device, non_blocking=non_blocking)
        return Ragged(values, self.layout.to(device, non_blocking))

    def pin_memory(self) -> Ragged:
        return Ragged(pinned(self.values), self.layout.pin_memory())


def pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy; what is on a device already stays there."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor
