"""Ids of images from the names of files: one rule for questions, pictures and features."""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath
from typing import Literal, get_args

from PIL import Image

from mcan.data.arrays import Id

IdRule = Literal["stem", "coco", "path"]
ID_RULES: tuple[str, ...] = get_args(IdRule)
ID_HELP = (
    "image ids from names: stem (file name without suffix), coco (the integer that it ends in), "
    "path (relative path without suffix)"
)
FEATURE_SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors")
# Pillow recognises these but cannot decode them itself; for EPS it would start another program.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@cache
def image_formats() -> dict[str, str]:
    """The suffixes of image files, in lower case, with the format that Pillow reads them as."""
    known = Image.registered_extensions().items()
    return {k: v for k, v in known if v in Image.OPEN and v not in _NOT_DECODED}


def name_stem(name: str) -> str:
    """A name or path without the suffixes of image and feature files: a/b.jpg.npz -> a/b."""
    while (suffix := PurePosixPath(name).suffix) and (
        suffix.lower() in FEATURE_SUFFIXES or suffix.lower() in image_formats()
    ):
        name = name.removesuffix(suffix)
    return name


def image_id(name: str, rule: IdRule) -> Id:
    """The id of the image that a file, path or entry is called after.

    `stem`: the name of the file without suffix; `coco`: the integer after the last underscore of
    it, or all of it; `path`: the path without suffix, with forward slashes. Raises `ValueError` if
    there is no such integer.
    """
    path = name_stem(name.replace("\\", "/"))
    stem = path.rsplit("/", 1)[-1]
    if rule != "coco":
        return path if rule == "path" else stem
    found = re.fullmatch(r"(?:.*_)?([0-9]+)", stem)
    if found is None:
        raise ValueError(
            f"the name {stem!r} does not end in an integer id, as COCO names do; use --ids stem or "
            "--ids path"
        )
    return int(found[1])
