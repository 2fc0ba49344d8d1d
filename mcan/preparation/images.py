"""Image files: what counts as an image in a folder or in Parquet, and decoding to RGB.

H, W height and width of an image in pixels. The rules are documented in data/FEATURES.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mcan.console import message
from mcan.data.arrays import Id
from mcan.data.records import read_records
from mcan.errors import DataError, plural, shorten
from mcan.preparation.names import IdRule, ImageIds, image_formats
from mcan.preparation.questions import NAMES
from mcan.preparation.store_writer import ImageRows

MAX_PIXELS = 178_956_970
"""Of an image; more is taken for an attack on memory. The limit of Pillow."""
_LONGEST = 100
"""Longest by shortest side. Resizing by the short side would blow up a longer image."""


class Resize(NamedTuple):
    """The short side becomes `short` pixels, unless the long one then has more than `long`."""

    short: int
    long: int

    def __call__(self, width: int, height: int) -> tuple[int, int]:
        """New width and height; the aspect ratio is kept up to rounding."""
        scale = min(self.short / min(width, height), self.long / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


Resizing = Resize | tuple[int, int] | Callable[[Image.Image], Image.Image] | None


class PackedImage(NamedTuple):
    """An image inside a Parquet file: in this row, in the field `field`, called `name` there."""

    file: Path
    row: int
    field: str
    name: str | None

    def __str__(self) -> str:
        return f"{self.file}: entry {self.row}"


ImageSource = Path | PackedImage


def list_images(folder: Path, rule: IdRule | None) -> dict[Id, Path]:
    """All images below `folder`, by id or, without a rule, by name, in the order of their paths.

    A file is an image if its suffix or its content says so. What is passed over is printed. Raises
    `DataError` if there is no image, two share an id, or a name does not fit the rule.
    """
    found: dict[Id, Path] = {}
    passed: list[str] = []
    ids = ImageIds(rule or "path")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            continue
        # Hidden files are thumbnails and leftovers of file managers, also if they end in .jpg.
        hidden = any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
        if hidden or not (path.suffix.lower() in image_formats() or is_image(path)):
            passed.append(name)
            continue
        try:
            found[ids.of(name) if rule else name] = path
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    if passed:
        count = plural(len(passed), "file")
        message(f"{folder}: passed over {count} without an image: {shorten(passed)}")
    if not found:
        raise DataError(f"{folder}: no folder with images that Pillow can read")
    return found


def is_image(path: Path, formats: Collection[str] = ()) -> bool:
    """Whether Pillow recognises a file as one of these, or of all, formats; it may be damaged."""
    try:
        with Image.open(path, formats=tuple(formats or image_formats().values())):
            return True
    except Exception:  # Pillow raises nearly anything for files that are no images.
        return False


def list_packed_images(
    files: list[Path], rule: IdRule, fields: Mapping[str, str]
) -> dict[Id, PackedImage]:
    """The images in the rows of Parquet files, by id: a field {"bytes", "path"} or of bytes.

    `fields` may name that of the `image` and that of the `id`. Ids are those of a well-known field,
    or else the names in `path`, or else FILE/ROW, from 0. Names, but not numbers, go through the
    rule. A row that repeats an id adds nothing: such files have a row per question. Raises
    `DataError`.
    """
    found: dict[Id, PackedImage] = {}
    ids = ImageIds(rule)
    for record in (record for file in files for record in read_records(file)):
        values = record.fields  # without the bytes
        packed = [n for n, v in values.items() if isinstance(v, dict) and v.keys() <= {"path"}]
        known = (name for name in NAMES["image"] if name in values and name not in packed)
        column, *others = [n for n in packed if n == fields.get("image", n)] or [""]
        key = fields.get("id") or next(known, column)
        if not column or others or key not in values:
            raise record.error(
                f"fields of images are {shorten(packed) or 'missing'}, others {shorten(values)}; "
                "choose with --fields image=FIELD id=FIELD"
            )
        number = ids.find(record, values[key])
        image = PackedImage(record.path, record.number, column, values[column].get("path"))
        if (earlier := found.setdefault(number, image).name) != image.name:
            raise record.error(
                f"image id {number!r} is of {image.name!r}, but earlier of {earlier!r}; choose ids "
                "with --fields id=FIELD"
            )
    return found


@lru_cache(maxsize=1)
def _open_parquet(file: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file)


@lru_cache(maxsize=1)
def _read_group(file: Path, group: int, field: str) -> Any:
    return _open_parquet(file).read_row_group(group, columns=[field])[field]


def _open(source: ImageSource) -> Path | BytesIO:
    if isinstance(source, Path):
        return source
    row, group, metadata = source.row, 0, _open_parquet(source.file).metadata
    while row >= (rows := metadata.row_group(group).num_rows):
        row, group = row - rows, group + 1
    value = _read_group(source.file, group, source.field)[row].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError("the row holds no bytes of an image")
    return BytesIO(content)


def read_image(
    source: ImageSource,
    number: Id,
    resize: Resizing = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageRows:
    """Decode and resize, see `resize_image`: RGB pixels, and the size (width, height) before
    resizing, upright as the EXIF data says.

    Of an animation or a file of several pages the first. Raises `ValueError` if the file is
    damaged, too large, or has values of unknown range.
    """
    image = open_rgb(source, max_pixels, "admit it with --max-pixels {}")
    return ImageRows(number, resize_image(image, resize), size=image.size)


def open_rgb(
    source: ImageSource, max_pixels: int = MAX_PIXELS, advice: str = "make it smaller"
) -> Image.Image:
    """The first image of a file, upright, as 8-bit RGB; see `read_image`.

    The error for one that is too large ends in `advice`, in which {} is its number of pixels.
    """
    Image.MAX_IMAGE_PIXELS = None  # replaced by the limit below, which gives advice
    try:
        with Image.open(_open(source), formats=tuple(image_formats().values())) as opened:
            if (pixels := opened.width * opened.height) > max_pixels:
                size = f"{opened.width} x {opened.height} pixels"
                raise ValueError(f"it has {size}; {advice.format(pixels)}")
            return to_rgb(ImageOps.exif_transpose(opened))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything for damaged files.
        raise ValueError(f"not a readable image ({error or type(error).__name__})") from error


def resize_image(image: Image.Image, resize: Resizing = None) -> NDArray[np.uint8]:
    """(3, H, W) of an RGB image, resized (bilinear, antialiased) by a rule or to a width and
    height, or by an operation of another kind. `ValueError` for an image too narrow for that."""
    size = image.size
    if isinstance(resize, tuple):
        new = resize(*size) if isinstance(resize, Resize) else resize
        image = image.resize(new, Image.Resampling.BILINEAR)
    elif resize:
        if max(size) > _LONGEST * min(size):
            raise ValueError(f"{size[0]} x {size[1]} pixels are too narrow to be cropped")
        image = resize(image)
    return np.asarray(image).transpose(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparency over white, 16-bit values from 0-65,535, floats from 0-1.

    Never by the range of the image itself, which would make images incomparable. Raises
    `ValueError` for values outside.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        most = 1 if image.mode == "F" else 65_535
        if not (values.min() >= 0 and values.max() <= most):  # also false if any is not a number
            raise ValueError(
                f"its values of mode {image.mode} go from {values.min():g} to {values.max():g}, "
                f"expected 0 to {most:,}; convert it to 8 bits"
            )
        if isinstance(hidden := image.info.get("transparency"), int):
            values[values == hidden] = most
        return Image.fromarray(np.round(values / most * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
