#!/usr/bin/env python3
"""Write what is generated: the tables of docs/configuration.md and the README's line counts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from mcan.config import Config
from mcan.config.yaml_files import describe, not_null
from mcan.errors import DataError, command
from mcan.files import save_text
from mcan.section import FREE, Section, inner_sections, show

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- `make docs` writes what follows, from mcan/config/schema.py. -->\n"
ROW = re.compile(r"^\| `(?P<path>[^`]+)` \| (?P<lines>[\d,]+) \|", re.MULTILINE)


def tables(section: type[Section], path: tuple[str, ...] = ()) -> Iterator[str]:
    """A heading and a table with a line per key, of `section` and of each section within it."""
    title = f"`{'.'.join(path)}`" if path else "Top level"
    title += f" with `name: {section.kind()}`" if section.kind() else ""
    yield f"\n## {title}\n\n{one_line(section.__doc__ or '')}\n"
    yield "| key | type and allowed values | default | meaning |\n|---|---|---|---|"
    nodes = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        inner, node = inner_sections(field.annotation), nodes[name]
        if field.is_required():
            default = "required"
        elif isinstance(field.default, Section):
            kind = field.default.kind()
            default = f"`name: {kind}`" if kind else "its defaults"
        else:
            text = isinstance(field.default, str)
            default = f"`{field.default if text else show(field.default)}`"
        meaning = field.description or inner[0].__doc__ or ""
        choice, registry = not_null(node), not_null(node).get("meanings", {})
        meaning += "".join(f" `{each}`: {registry[each]}." for each in registry and choice["enum"])
        star = " *" if FREE in field.metadata else ""
        allowed = one_line(describe(node))
        yield f"| `{name}`{star} | {allowed} | {default} | {one_line(meaning)} |"
    for name, field in section.model_fields.items():
        for each in inner_sections(field.annotation):
            yield from tables(each, (*path, name))


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def count(path: Path) -> int:
    """Lines of the Python files in a folder, or of one file, to the nearest hundred."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    return max(100, round(lines, -2))


def with_counts(readme: str) -> str:
    """The README with the number of lines in every row that names a path."""
    return ROW.sub(lambda row: f"| `{row['path']}` | {count(ROOT / row['path']):,} |", readme)


def with_tables(page: str) -> str:
    return page.partition(MARK)[0] + MARK + "\n".join(tables(Config)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    check = parser.parse_args().check
    for name, write in (("docs/configuration.md", with_tables), ("README.md", with_counts)):
        text = (ROOT / name).read_text(encoding="utf-8")
        written = write(text)
        if written == text:
            continue
        if check:
            raise DataError(f"{name} is out of date; run make docs")
        save_text(ROOT / name, written)


if __name__ == "__main__":
    command(main)
