"""Lists of different lengths, one after the other in a flat array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def ranges(firsts: Index, lengths: Index) -> Index:
    """first, first + 1, ..., first + length - 1 of every pair, one after the other."""
    shift = firsts - (np.cumsum(lengths) - lengths)
    rows: Index = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
    return rows


@dataclass(frozen=True)
class Packed:
    """N lists: list i is `values[offsets[i]:offsets[i + 1]]`; `offsets` (N + 1,) int64."""

    values: NDArray[Any]
    offsets: Index

    @classmethod
    def concatenate(cls, parts: Sequence[Packed]) -> Packed:
        """The lists of all `parts`."""
        if len(parts) == 1:
            return parts[0]
        bases = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [part.offsets[:-1] + base for part, base in zip(parts, bases, strict=False)]
        return cls(
            np.concatenate([part.values for part in parts]), np.concatenate([*offsets, bases[-1:]])
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, lists: Index, longest: int | None = None) -> tuple[NDArray[Any], Index]:
        """The values of some lists, one after the other, and the lengths of these.

        `longest`: only that many values from the start of each.
        """
        firsts = self.offsets[lists]
        lengths = self.offsets[lists + 1] - firsts
        if longest is not None:
            lengths = np.minimum(lengths, longest)
        return self.values[ranges(firsts, lengths)], lengths
