"""What every reader offers: parts that can be read in any order and by any process.

n rows of an image, D width of a feature row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcan.data.hdf5 import Id
from mcan.data.image_names import IdRule, image_id
from mcan.data.store_filling import Found

BLOCK_BYTES = 8 << 20
"""About how much a part of a large file holds."""

Sizes = dict[str, tuple[int, int]]
"""Width and height in pixels of images, by their id as text."""


@dataclass(frozen=True)
class Options:
    """What the user may say about the files, each None where nothing was said.

    - `ids`: how names become ids;
    - `index`: file that maps image ids to rows;
    - `sizes`: sizes of images, for files with boxes in pixels that do not know them.
    """

    ids: IdRule | None = None
    index: Path | None = None
    sizes: Sizes | None = None


class Source(ABC):
    """Feature files of one format at one place; pickles, and holds no open file.

    `parts` are names that stay the same from run to run, and mean the same as long as `identity`
    is the same. `note` tells what is left out, if anything. Raises `DataError` on construction
    where the files are not of the format.
    """

    unit: ClassVar[str]
    default_ids: ClassVar[IdRule] = "coco"
    parts: Sequence[str]
    identity: str = ""
    note: str | None = None

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self._ids = options.ids or self.default_ids

    @abstractmethod
    def read(self, part: str, wanted: Container[str] | None) -> Iterator[Found]:
        """The images of a part whose ids, as text, are `wanted` (None: all).

        Features may be of any dtype. Raises `DataError` where the part cannot be read at all.
        """

    def image_id(self, name: str) -> Id:
        """Raises `ValueError`."""
        return image_id(name, self._ids)


def normalised(boxes: ArrayLike, size: tuple[Any, Any]) -> NDArray[np.float32]:
    """(n, 4) pixel boxes divided by width and height. Raises `ValueError`."""
    if not all(np.isfinite(side) and side >= 1 for side in size):
        raise ValueError(f"the image size is {size[0]} x {size[1]}")
    values = np.asarray(boxes)
    if values.ndim != 2 or values.shape[1] != 4 or values.dtype.kind not in "fiu":
        raise ValueError(f"boxes are {values.dtype} {values.shape}, expected numbers (n, 4)")
    width, height = size
    scale = np.array([width, height, width, height], np.float32)
    result: NDArray[np.float32] = np.divide(values, scale, dtype=np.float32)
    return result
