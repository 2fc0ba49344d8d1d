"""Folders of pictures: their ids, and decoding by worker processes.

H, W height and width of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from mcan.data.hdf5 import Id
from mcan.data.image_names import PICTURE_SUFFIXES, IdRule, image_id, name_stem
from mcan.data.store_filling import Broken
from mcan.errors import DataError


@dataclass(frozen=True)
class Picture:
    """A decoded picture: `pixels` (3, H, W) uint8 RGB, and its `size` (width, height) before any
    resizing, as it is seen (turned as its EXIF data says)."""

    image_id: Id
    pixels: NDArray[np.uint8]
    size: tuple[int, int]


@dataclass(frozen=True)
class Resize:
    """The short side becomes `short` pixels, unless the long one then has more than `long`."""

    short: int
    long: int

    def __call__(self, width: int, height: int) -> tuple[int, int]:
        """New width and height; the aspect ratio is kept up to rounding."""
        scale = min(self.short / min(width, height), self.long / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


def list_pictures(folder: Path, rule: IdRule) -> dict[Id, Path]:
    """All pictures below `folder`, by id, in the order of their paths.

    Raises `DataError` where there are none, two share an id, or a name does not fit the rule.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found: dict[Id, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PICTURE_SUFFIXES or not path.is_file():
            continue
        try:
            number = image_id(name_stem(path.name), rule)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        if number in found:
            raise DataError(f"{found[number]} and {path}: both have the image id {number!r}")
        found[number] = path
    if not found:
        raise DataError(f"{folder}: there is no picture ({', '.join(PICTURE_SUFFIXES)}) in it")
    return found


def read_picture(path: Path, number: Id, resize: Resize | None = None) -> Picture:
    """Decode and resize (bilinear, antialiased). Raises `ValueError` where it is damaged."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow raises nearly anything for damaged files.
        raise ValueError(f"not a readable picture ({error})") from error
    size = image.size
    if resize:
        image = image.resize(resize(*size), Image.Resampling.BILINEAR)
    return Picture(number, np.asarray(image).transpose(2, 0, 1), size)


@dataclass(frozen=True)
class PictureParts(Dataset[tuple[str, list[Picture | Broken]]]):
    """Named parts of a list of pictures, each decoded by one worker."""

    parts: Sequence[tuple[str, Sequence[tuple[Id, Path]]]]
    resize: Resize | None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[str, list[Picture | Broken]]:
        name, pictures = self.parts[index]
        return name, [self._read(path, number) for number, path in pictures]

    def _read(self, path: Path, number: Id) -> Picture | Broken:
        try:
            return read_picture(path, number, self.resize)
        except ValueError as error:
            return Broken(str(number), f"{path}: {error}")
