#!/usr/bin/env python3
"""Write the tables of docs/configuration.md, or check them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from mcan.config import Config
from mcan.config.explain import describe, not_null
from mcan.errors import DataError, command
from mcan.files import save_text
from mcan.section import FREE, Section, inner_sections, show

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
MARK = "<!-- `make docs` writes what follows, from mcan/config/schema.py. -->\n"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if out of date")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    written = page.partition(MARK)[0] + MARK + "\n".join(tables(Config)) + "\n"
    if check and written != page:
        raise DataError(f"{PAGE.name} is out of date; run make docs")
    save_text(PAGE, written)


if __name__ == "__main__":
    command(main)
