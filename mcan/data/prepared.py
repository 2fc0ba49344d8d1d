"""Prepared datasets: the one format that training and evaluation read. Fields: data/README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcan.data.split import FORMAT_VERSION, Split, read_answer_types, read_split
from mcan.errors import DataError
from mcan.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: its vocabulary, what `meta.json` tells, and its splits."""

    folder: Path
    vocabulary: Vocabulary
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Prepared:
        """Raises `DataError` where the folder or one of its two JSON files is not as documented."""
        folder = Path(folder)
        if not folder.is_dir():
            script = folder.parent / "prepare.py"
            what = f"python {script}" if script.is_file() else "the prepare.py of the dataset"
            raise DataError(f"{folder}: there is no such prepared dataset; run {what}")
        meta = read_meta(folder)
        return cls(folder, Vocabulary.read(folder / "vocabulary.json"), meta)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.meta["splits"])

    @property
    def dataset(self) -> str:
        return str(self.meta["dataset"])

    @property
    def metric(self) -> str:
        """The metric that the dataset is scored by."""
        return str(self.meta["metric"])

    def answer_types(self) -> set[str]:
        """The names that some split has. Raises `DataError` where one cannot be read."""
        files = (self.folder / f"{name}.h5" for name in self.splits)
        return {name for path in files for name in read_answer_types(path)}

    def split(self, name: str) -> Split:
        """Read and check a split. Raises `DataError`; for an unknown name it lists the known."""
        if name not in self.splits:
            raise DataError(
                f"{self.folder}: there is no split '{name}'; there is {', '.join(self.splits)}"
            )
        path = self.folder / f"{name}.h5"
        split = read_split(path, name, self.vocabulary)
        expected = self.meta["splits"][name]["questions"]
        if len(split) != expected:
            raise DataError(
                f"{path}: holds {len(split)} questions while {self.folder / 'meta.json'} says "
                f"{expected}; run the prepare.py of the dataset again"
            )
        return split


def read_meta(folder: Path) -> dict[str, Any]:
    """The checked content of `meta.json`."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}), so {folder} is not a prepared dataset"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version is {version!r}, this program reads {FORMAT_VERSION}; run the "
            "prepare.py of the dataset again"
        )
    for key, kind in (("dataset", str), ("metric", str), ("splits", dict), ("files", list)):
        if not isinstance(meta.get(key), kind):
            raise DataError(f"{path}: '{key}' is {meta.get(key)!r}, expected a {kind.__name__}")
    for name, counts in meta["splits"].items():
        if not isinstance(counts, dict) or not isinstance(counts.get("questions"), int):
            raise DataError(f"{path}: 'splits.{name}.questions' is missing or not a number")
    return dict(meta)
