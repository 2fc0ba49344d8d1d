"""Tab-separated files with base64 arrays, one line per image.

n rows of an image, D width of a feature row.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

from mcan.data.hdf5 import Id
from mcan.data.image_names import image_id
from mcan.data.store_filling import Broken, Found, ImageRows
from mcan.errors import DataError
from mcan.importing.source import BLOCK_BYTES, Options, Source, normalised

_LONGEST_LINE = 64 << 20


class _TsvSource(Source):
    """A part is a range of bytes: the lines that begin in it. No pass over the file is needed."""

    unit = "blocks"
    columns: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        if not size:
            raise DataError(f"{path}: is empty")
        self.parts = [
            f"bytes {first}-{min(first + BLOCK_BYTES, size)}"
            for first in range(0, size, BLOCK_BYTES)
        ]

    def read(self, part: str, wanted: Container[str] | None) -> Iterator[Found]:
        first, end = map(int, part.removeprefix("bytes ").split("-"))
        try:
            with self.path.open("rb") as file:
                # A line belongs to the part in which its first byte is.
                file.seek(max(0, first - 1))
                if first and not _skip_line(file, end):
                    return
                while (start := file.tell()) < end and (line := file.readline(_LONGEST_LINE)):
                    if not line.isspace():
                        yield from self._image(line, start, wanted)
                    if not line.endswith(b"\n"):
                        _skip_line(file, end)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or error}") from error

    def _image(self, line: bytes, start: int, wanted: Container[str] | None) -> Iterator[Found]:
        fields = line.rstrip(b"\r\n").split(b"\t")
        name = f"{self.path.name} byte {start}"
        try:
            if len(fields) != len(self.columns):
                raise ValueError(
                    f"the line has {len(fields)} columns, expected {len(self.columns)}; it may be "
                    "cut short"
                )
            row = dict(zip(self.columns, fields, strict=True))
            image_id = self.image_id(row["image_id"].decode())
            name = str(image_id)
            if wanted is None or name in wanted:
                yield _image_rows(image_id, row)
        except ValueError as error:
            yield Broken(name, str(error))


class BottomUpTsv(_TsvSource):
    """Bottom-up attention (Anderson et al. 2018)."""

    columns = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


class LxmertTsv(_TsvSource):
    """LXMERT's, with objects and attributes, which are left out; note that the height is first."""

    columns = (
        *("image_id", "image_h", "image_w", "objects_id", "objects_conf"),
        *("attrs_id", "attrs_conf", "num_boxes", "boxes", "features"),
    )

    def __init__(self, path: Path, options: Options) -> None:
        super().__init__(path, options)
        self._said = options.ids

    def image_id(self, name: str) -> Id:
        """Names of COCO become their integers, others stay, unless the user said otherwise."""
        return image_id(name, self._said or ("coco" if name.startswith("COCO_") else "stem"))


def _skip_line(file: BinaryIO, end: int) -> bool:
    """Go behind the next line end; false if the line goes on beyond `end`."""
    while (line := file.readline(_LONGEST_LINE)) and not line.endswith(b"\n"):
        if file.tell() >= end:
            return False
    return bool(line)


def _image_rows(image_id: Id, row: dict[str, bytes]) -> ImageRows:
    count = _integer(row, "num_boxes")
    size = _integer(row, "image_w"), _integer(row, "image_h")
    boxes = _floats(row, "boxes", count)
    if boxes.shape[1] != 4:
        raise ValueError(f"boxes have {boxes.shape[1]} numbers each, expected 4")
    return ImageRows(image_id, _floats(row, "features", count), normalised(boxes, size), size)


def _integer(row: dict[str, bytes], column: str) -> int:
    try:
        return int(row[column])
    except ValueError:
        raise ValueError(f"{column} is {row[column][:20]!r}, expected an integer") from None


def _floats(row: dict[str, bytes], column: str, count: int) -> NDArray[Any]:
    """(count, any) float32"""
    try:
        content = base64.b64decode(row[column], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{column} is not base64 ({error})") from None
    if count < 1 or not content or len(content) % (4 * count):
        raise ValueError(
            f"{column} has {len(content):,} bytes, which are not float32 rows of {count} boxes"
        )
    return np.frombuffer(content, "<f4").reshape(count, -1)
