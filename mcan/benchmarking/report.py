"""Records of benchmarks: JSON files in a folder, and the Markdown report made from them."""

from __future__ import annotations

import json
from pathlib import Path

from mcan.benchmarking.sections import PLOT, SECTIONS
from mcan.benchmarking.summary import Record
from mcan.benchmarking.wording import machine
from mcan.errors import DataError
from mcan.files import save_text


def save(record: Record, path: Path) -> None:
    """Write `path`/<what>.json and, from all records in that folder, `path`.md.

    Raises `DataError` where there is such a record already, or a file cannot be written.
    """
    save_text(new_file(record["what"], path), json.dumps(record, indent=1) + "\n")
    rewrite(path)


def new_file(what: str, path: Path) -> Path:
    """Where a record will be saved; `DataError` where there is one."""
    file = path / f"{what}.json"
    if file.exists():
        raise DataError(f"{file}: already exists; save under another name, or delete it")
    return file


def rewrite(path: Path) -> None:
    """Write `path`.md and its plot from the records in `path`; `DataError` where there is none."""
    records = [read(file) for what in SECTIONS if (file := path / f"{what}.json").exists()]
    if not records:
        raise DataError(f"{path}: holds no record of a benchmark; expected {', '.join(SECTIONS)}")
    for record in records:
        if record["what"] == "sweep":
            from mcan.benchmarking.plots import save_plot  # matplotlib takes a second to load

            save_plot(record, path / PLOT)
    text = "\n".join(section(record, path.name) for record in records)
    save_text(path.with_name(f"{path.name}.md"), f"# Benchmark {path.name}\n\n{text}")


def read(file: Path) -> Record:
    """A saved record; `DataError` where the file is something else."""
    try:
        record: Record = json.loads(file.read_text(encoding="utf-8"))
        known = record["what"] in SECTIONS
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise DataError(f"{file}: is not a record that scripts/benchmark.py wrote")
    return record


def section(record: Record, folder: str = "") -> str:
    """One record as Markdown; `folder` is where its plot lies."""
    title, body = SECTIONS[record["what"]]
    return "\n".join([f"## {title}", "", machine(record), "", *body(record, folder)]) + "\n"
