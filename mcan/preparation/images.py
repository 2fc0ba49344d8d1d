"""Folders of image files: ids from their names, and decoding.

H, W height and width of an image in pixels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps

from mcan.data.arrays import Id
from mcan.errors import DataError
from mcan.preparation.store_writer import ImageRows

IdRule = Literal["coco", "stem"]
ID_RULES: tuple[str, ...] = get_args(IdRule)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def name_stem(name: str, suffix: str = "") -> str:
    """The name of a file without `suffix` and without the suffix of an image before it."""
    stem = Path(name.removesuffix(suffix))
    return stem.stem if stem.suffix.lower() in IMAGE_SUFFIXES else stem.name


def image_id(stem: str, rule: IdRule) -> Id:
    """`coco`: the integer after the last underscore, or all of it; `stem`: the name itself.

    Raises `ValueError` if there is no such integer.
    """
    if rule == "stem":
        return stem
    found = re.fullmatch(r"(?:.*_)?([0-9]+)", stem)
    if found is None:
        raise ValueError(
            f"the name {stem!r} does not end in an integer id, as COCO names do; use --ids stem"
        )
    return int(found[1])


class Resize(NamedTuple):
    """The short side becomes `short` pixels, unless the long one then has more than `long`."""

    short: int
    long: int

    def __call__(self, width: int, height: int) -> tuple[int, int]:
        """New width and height; the aspect ratio is kept up to rounding."""
        scale = min(self.short / min(width, height), self.long / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


def list_images(folder: Path, rule: IdRule) -> dict[Id, Path]:
    """All images below `folder`, by id, in the order of their paths.

    Raises `DataError` if there are none, two share an id, or a name does not fit the rule.
    """
    found: dict[Id, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        try:
            number = image_id(name_stem(path.name), rule)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        if number in found:
            raise DataError(f"{found[number]} and {path}: both have the image id {number!r}")
        found[number] = path
    if not found:
        raise DataError(f"{folder}: no folder with images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def read_image(path: Path, number: Id, resize: Resize | None = None) -> ImageRows:
    """Decode and resize (bilinear, antialiased): RGB pixels, and the size (width, height) before
    resizing, upright as the EXIF data says. Raises `ValueError` if the file is damaged."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow raises nearly anything for damaged files.
        raise ValueError(f"not a readable image ({error})") from error
    size = image.size
    if resize:
        image = image.resize(resize(*size), Image.Resampling.BILINEAR)
    return ImageRows(number, np.asarray(image).transpose(2, 0, 1), size=size)
