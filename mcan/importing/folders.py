"""Folders with one file per image: `.npz` of regions, `.pth` of grid maps.

n rows of an image, D width of a feature row, (h, w) rows and columns of a grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mcan.data.hdf5 import Id
from mcan.data.image_names import name_stem
from mcan.data.store_filling import Broken, Found, ImageRows
from mcan.errors import DataError
from mcan.importing.source import Options, Source, normalised


class _FolderSource(Source):
    """Files with one suffix, anywhere below a folder; a part is a file."""

    unit = "files"
    suffix: ClassVar[str]

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        if not path.is_dir():
            raise DataError(f"{path}: is not a folder with {self.suffix} files")
        found = (file.relative_to(path).as_posix() for file in path.rglob(f"*{self.suffix}"))
        self.parts = sorted(found)
        if not self.parts:
            raise DataError(f"{path}: there is no {self.suffix} file in this folder")

    def read(self, part: str, wanted: Container[str] | None) -> Iterator[Found]:
        file = self.path / part
        try:
            image_id = self.image_id(name_stem(file.name, self.suffix))
        except ValueError as error:
            yield Broken(part, str(error))
            return
        if wanted is not None and str(image_id) not in wanted:
            return
        try:
            yield self._load(file, image_id)
        except Exception as error:  # numpy and torch raise nearly anything for damaged files.
            yield Broken(str(image_id), f"{part}: {str(error) or type(error).__name__}")

    @abstractmethod
    def _load(self, file: Path, image_id: Id) -> ImageRows:
        """Raises anything where the file is damaged, or not as expected."""


class NpzFolder(_FolderSource):
    """The MCAN authors' files: `x` (D, n), `bbox` (n, 4) in pixels, `image_w`, `image_h`."""

    suffix = ".npz"

    def _load(self, file: Path, image_id: Id) -> ImageRows:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("is not an .npz archive")
        with arrays:
            for name in ("x", "bbox", "image_w", "image_h"):
                if name not in arrays:
                    raise ValueError(f"array '{name}' is missing")
            features, boxes = arrays["x"], arrays["bbox"]
            size = int(arrays["image_w"]), int(arrays["image_h"])
        if features.ndim != 2 or features.shape[1] != len(boxes):
            raise ValueError(f"x is {features.shape}, expected (D, {len(boxes)}) as bbox says")
        return ImageRows(image_id, features.T, normalised(boxes, size), size)


class GridFolder(_FolderSource):
    """Grid features of Jiang et al. 2020: a tensor (1, D, h, w), which becomes h * w rows."""

    suffix = ".pth"

    def _load(self, file: Path, image_id: Id) -> ImageRows:
        grid = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(grid, Tensor) or grid.ndim != 4 or len(grid) != 1:
            found = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
            raise ValueError(f"holds {found}, expected a tensor (1, D, h, w)")
        if not grid.is_floating_point():
            raise ValueError(f"holds {grid.dtype}, expected floating point")
        shape = int(grid.shape[2]), int(grid.shape[3])
        rows = grid[0].flatten(1).T.float().numpy()
        return ImageRows(image_id, rows, grid_shape=shape)
