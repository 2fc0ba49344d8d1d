"""Arrays as files hold them: lists of different lengths, text, ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Id = int | str
Ids = NDArray[Any]
"""(N,) int64, or (N,) fixed-length bytes (numpy `S`) of UTF-8 text."""


@dataclass(frozen=True)
class RaggedArray:
    """N lists: list i is `values[offsets[i]:offsets[i + 1]]`; `offsets` (N + 1,) int64."""

    values: NDArray[Any]
    offsets: Index

    @classmethod
    def concatenate(cls, parts: Sequence[RaggedArray]) -> RaggedArray:
        """The lists of all `parts`; a single part is not copied."""
        if len(parts) == 1:
            return parts[0]
        values = np.concatenate([part.values for part in parts])
        lengths = [np.diff(part.offsets) for part in parts]
        return cls(values, np.cumsum(np.concatenate([[0], *lengths])))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Any:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def take(self, lists: Index, max_length: int | None = None) -> tuple[NDArray[Any], Index]:
        """The values of some lists, cut to `max_length`, one after the other; their lengths."""
        firsts = self.offsets[lists]
        lengths = np.clip(self.offsets[lists + 1] - firsts, 0, max_length)
        shift = firsts - (np.cumsum(lengths) - lengths)
        return self.values[np.arange(int(lengths.sum())) + np.repeat(shift, lengths)], lengths


class Text(RaggedArray):
    """N strings: a `RaggedArray` of uint8 (UTF-8) that decodes a string when it is read."""

    @classmethod
    def of(cls, strings: Iterable[str]) -> Text:
        """Raises `UnicodeEncodeError` for a string that is not valid Unicode."""
        encoded = [string.encode() for string in strings]
        values = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(values, np.cumsum([0, *map(len, encoded)]))

    def __getitem__(self, index: int) -> str:
        return str(super().__getitem__(index).tobytes().decode())

    def hashes(self) -> Index:
        """(N,) a 64-bit hash of each string. Checkpoints hold them, so they must stay the same."""
        lengths, factor = np.diff(self.offsets), np.uint64(0x9E3779B97F4A7C15)
        padded = np.append(self.values, np.zeros(8, np.uint8))
        words = np.ndarray(len(padded) - 7, "<u8", padded.data, strides=(1,))  # from every byte on
        found, rows = lengths.astype(np.uint64), np.arange(len(self))
        for start in range(0, int(lengths.max(initial=0)), 8):
            rows = rows[lengths[rows] > start]
            bits_beyond = 8 * np.clip(start + 8 - lengths[rows], 0, None).astype(np.uint64)
            word = words[self.offsets[rows] + start] << bits_beyond
            mixed = (found[rows] ^ word) * factor
            found[rows] = mixed ^ (mixed >> np.uint64(32))
        return found.view(np.int64)


def ids_to_array(ids: Sequence[Id]) -> Ids:
    """Ids that `mcan.data.records.check_id` accepted, as an array."""
    if ids and isinstance(ids[0], str):
        return np.array([str(value).encode() for value in ids])
    return np.array(ids, dtype=np.int64)


def array_to_ids(array: Ids) -> list[Id]:
    values = array.tolist()
    return [value.decode() for value in values] if array.dtype.kind == "S" else values


def first_duplicate(ids: Ids) -> Id | None:
    """An id that occurs more than once, or None."""
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return next(iter(array_to_ids(repeated)), None)
