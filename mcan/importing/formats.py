"""The formats by name, and which one a path holds."""

from __future__ import annotations

from pathlib import Path

import h5py

from mcan.data.hdf5 import reading
from mcan.errors import DataError
from mcan.importing.folders import GridFolder, NpzFolder
from mcan.importing.hdf5_files import AdaptiveHdf5, FixedHdf5, NumberedHdf5
from mcan.importing.source import Options, Source
from mcan.importing.tsv import BottomUpTsv, LxmertTsv

FORMATS: dict[str, type[Source]] = {
    "npz": NpzFolder,
    "grid-pth": GridFolder,
    "bottom-up-tsv": BottomUpTsv,
    "lxmert-tsv": LxmertTsv,
    "hdf5": FixedHdf5,
    "adaptive-hdf5": AdaptiveHdf5,
    "numbered-hdf5": NumberedHdf5,
}

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_LONGEST_LINE = 64 << 20


def open_source(path: Path, name: str | None, options: Options) -> Source:
    """The source at `path`, of the format `name` or of the one that it looks like."""
    return FORMATS[name or detect_format(path)](path, options)


def detect_format(path: Path) -> str:
    """The name of the format of a file or folder. Raises `DataError` where it is not clear."""
    if path.is_dir():
        return _folder_format(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder")
    if path.name.endswith("_info.json"):
        return "numbered-hdf5"
    if path.name.endswith(_ARCHIVES):
        raise DataError(f"{path}: is an archive; unpack it and give the folder or file inside")
    if h5py.is_hdf5(path):
        return _hdf5_format(path)
    return _tsv_format(path)


def _folder_format(path: Path) -> str:
    patterns = {"npz": "*.npz", "grid-pth": "*.pth", "numbered-hdf5": "*_info.json"}
    found = [name for name, pattern in patterns.items() if any(path.rglob(pattern))]
    if len(found) != 1:
        held = f"files of {' and '.join(found)}" if found else "no .npz, .pth or *_info.json file"
        raise DataError(
            f"{path}: this folder holds {held}; give the folder or file of one format, or say "
            "which with --format"
        )
    return found[0]


def _hdf5_format(path: Path) -> str:
    with reading(path, "feature file") as file:
        names = sorted(file)
    if "image_features" in names:
        return "adaptive-hdf5" if "pos_boxes" in names else "hdf5"
    if "features" in names and "offsets" in names:
        raise DataError(f"{path}: is an image store already")
    hint = "; give its *_info.json instead" if "features" in names else ""
    raise DataError(f"{path}: holds {', '.join(names) or 'nothing'}, expected image_features{hint}")


def _tsv_format(path: Path) -> str:
    try:
        with path.open("rb") as file:
            columns = file.readline(_LONGEST_LINE).count(b"\t") + 1
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if columns == len(BottomUpTsv.columns):
        return "bottom-up-tsv"
    if columns == len(LxmertTsv.columns):
        return "lxmert-tsv"
    raise DataError(
        f"{path}: is in no format that can be imported; as tab-separated text its first line has "
        f"{columns} columns, expected {len(BottomUpTsv.columns)} (bottom-up attention) or "
        f"{len(LxmertTsv.columns)} (LXMERT)"
    )
