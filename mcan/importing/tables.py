"""Small files beside the features: image id -> row, image id -> size, lists of ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcan.data.json_items import read_items
from mcan.errors import DataError
from mcan.importing.plain_pickle import read_plain_pickle
from mcan.importing.source import Sizes


def read_index(path: Path) -> dict[str, int]:
    """Image id, as text -> row: from a `.json` object or a pickled dictionary of plain values."""
    content = read_plain_pickle(path) if path.suffix == ".pkl" else read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected an object that maps image ids to rows")
    for key, row in content.items():
        if type(row) is not int or not isinstance(key, (int, str)):
            raise DataError(f"{path}: entry {key!r} is {row!r}, expected image id -> row number")
    return {str(key): row for key, row in content.items()}


def read_sizes(path: Path) -> Sizes:
    """Width and height by image id, from a COCO file (also .gz, or a path through a .zip): its
    list `images` with id, width, height."""
    sizes = {}
    for number, image in enumerate(read_items(path, "images")):
        entry = image if isinstance(image, dict) else {}
        size = entry.get("width"), entry.get("height")
        if "id" not in entry or not all(type(side) is int and side > 0 for side in size):
            raise DataError(f"{path}: entry {number} of 'images' has no id, width and height")
        sizes[str(entry["id"])] = (int(entry["width"]), int(entry["height"]))
    return sizes


def read_wanted(path: Path) -> frozenset[str]:
    """Image ids, one per line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of image ids ({error})") from error
    wanted = frozenset(line.strip() for line in lines) - {""}
    if not wanted:
        raise DataError(f"{path}: holds no image id")
    return wanted


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from error
