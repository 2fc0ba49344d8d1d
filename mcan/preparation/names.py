"""Names: of images, which become ids, and of fields, entries and columns, which have roles.

One rule makes ids for questions, images and features, and one function finds out which field of a
record or entry of a feature file is what.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from PIL import Image

from mcan.data.arrays import Id
from mcan.data.records import Record
from mcan.errors import DataError, shorten

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


def image_id(name: str, rule: IdRule) -> Id:
    """The id of the image that a file, path or entry is called after.

    `stem`: the name of the file without the suffixes of images and feature files (7.jpg.npz -> 7);
    `coco`: the integer after the last underscore of it, or all of it; `path`: the path without
    suffix, with forward slashes. Raises `ValueError` if there is no such integer.
    """
    path = name.replace("\\", "/")
    while (suffix := PurePosixPath(path).suffix) and (
        suffix.lower() in FEATURE_SUFFIXES or suffix.lower() in image_formats()
    ):
        path = path.removesuffix(suffix)
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


class ImageIds:
    """Image ids by a rule for names, which are distinct for distinct names of a dataset."""

    def __init__(self, rule: IdRule = "stem") -> None:
        self._rule: IdRule = rule
        self._names: dict[Id, str] = {}

    def of(self, name: str) -> Id:
        """`image_id` of a name; also a `ValueError` if an earlier name has this id."""
        found = image_id(name, self._rule)
        if (earlier := self._names.setdefault(found, name)) != name:
            advice = "rename one" if self._rule == "path" else "use --ids path"
            raise ValueError(
                f"image {name!r} has the id {found!r}, as {earlier!r} before; {advice}"
            )
        return found

    def find(self, record: Record, value: Any) -> Id:
        """The id that a field means: a number, a name, or an image with a path or without, which is
        then called after its file and its place in it."""
        if isinstance(value, dict):
            if value.get("path") is None:
                return record.name
            value = value["path"]
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return] # checked when it is stored
        try:
            return self.of(value)
        except ValueError as error:
            raise record.error(str(error)) from None


def read_pairs(texts: Sequence[str], option: str, known: Collection[str]) -> dict[str, str]:
    """Arguments `ROLE=NAME` of an option, whose roles are `known`. Raises `DataError`."""
    pairs = dict(text.split("=", 1) for text in texts if "=" in text)
    if len(pairs) < len(texts) or not pairs.keys() <= set(known):
        expected = " ".join(f"{role}=NAME" for role in known)
        raise DataError(f"{option} {shlex.join(texts)}: expected any of {expected}, each once")
    return pairs


def find_names(
    available: Collection[str], known: Mapping[str, Sequence[str]], given: Mapping[str, str]
) -> dict[str, str]:
    """The name that has each role: the `given` one, or else the first of the `known` ones that is
    there. A role without a name, or with "" as the given one, is left out.

    Capitals of known names do not matter, and spaces are underscores. `a,b` stands for both.
    Raises `ValueError` for a given name that is not there.
    """
    alike = {name.lower().replace(" ", "_"): name for name in available}
    found = {}
    for role, names in known.items():
        name = given.get(role)
        if name and name not in available and not {*name.split(",")} <= {*available}:
            raise ValueError(f"there is no {name!r} for {role} among {shorten(available)}")
        if name is None:
            usual = (n.lower().split(",") for n in names)
            name = next((",".join(alike[n] for n in ns) for ns in usual if {*ns} <= {*alike}), "")
        if name:
            found[role] = name
    return found
