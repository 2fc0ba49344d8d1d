#!/usr/bin/env python3
"""Write the lines of code per package into the README's table, or check them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mcan.errors import DataError, command
from mcan.files import save_text

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| `(?P<path>[^`]+)` \| (?P<lines>[\d,]+) \|", re.MULTILINE)


def count(path: Path) -> int:
    """Lines of the Python files in a folder, or of one file, to the nearest hundred."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    return max(100, round(lines, -2))


def updated(text: str) -> str:
    """The README with the number of lines in every row that names a path."""
    return ROW.sub(lambda row: f"| `{row['path']}` | {count(ROOT / row['path']):,} |", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if (new := updated(text)) == text:
        return
    if check:
        raise DataError(f"{readme.name}: the lines per package are out of date; run make docs")
    save_text(readme, new)


if __name__ == "__main__":
    command(main)
