"""Image ids out of file names."""

from __future__ import annotations

import re
from typing import Literal, get_args

from mcan.data.hdf5 import Id

IdRule = Literal["coco", "stem"]
ID_RULES: tuple[str, ...] = get_args(IdRule)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def name_stem(name: str, suffix: str = "") -> str:
    """The name of a file without `suffix` and without the suffix of a picture before it."""
    stem = name.removesuffix(suffix)
    for picture in PICTURE_SUFFIXES:
        if stem.lower().endswith(picture):
            return stem[: -len(picture)]
    return stem


def image_id(stem: str, rule: IdRule) -> Id:
    """`coco`: the integer after the last underscore, or all of it; `stem`: the name itself.

    Raises `ValueError` where there is no such integer.
    """
    if rule == "stem":
        return stem
    found = re.fullmatch(r"(?:.*_)?([0-9]+)", stem)
    if found is None:
        raise ValueError(
            f"the name {stem!r} does not end in an integer id, as COCO names do; use --ids stem"
        )
    return int(found[1])
