"""Write docs/configuration.md from the schema; with --check, exit 1 where it is out of date."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mcan.config.messages import dotted, show
from mcan.config.reference import Node, describe, kinds, resolve, root, walk

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by scripts/document_config.py from mcan/config/schema.py; `make docs` renews it. -->

A run is described by one YAML file, on top of the files that it inherits from and below the
overrides of the command line:

    python train.py configs/vqa_v2/mcan_small.yaml train.epochs=5 data.train='[train, val]'

The resolved config, every key stated, is written into the run's folder and is itself a config file.

**Inheritance.** `_base_:` holds one path or a list of paths, relative to the file that states it.
Mappings are merged key by key, a later base over an earlier one and the file over all its bases;
lists and values are replaced. `null` takes the place of a whole section that may be null. A section
of several kinds (`schedule`) starts afresh where a file states another `name` than its base; a
section that states no `name` is of the default kind.

**Overrides.** `a.b.c=value`, where the value is YAML: `model.question.word_vectors.path=glove.txt`
makes the section that was null, `optimizer.betas='[0.9, 0.98]'` replaces the list, `name=` is null.
They are laid over the file together, whatever their order; of a key given twice the last counts.

**Values.** Files are UTF-8 and follow YAML 1.2: `1e-4` is a number, `true` and `false` alone are
truth values, and `no` or `2024-01-01` is text, as is everything in quotes. Types are taken
literally: `"64"`, `64.0` and `true` are no whole numbers, but a whole number will do for a number.
Where a list is needed, one value is not enough. Paths are relative to the working directory, except
those of `_base_`.

**Errors.** A mistake ends the program with status 2 and one sentence that names the file and line
that stated the key (a base or `command line`, if it came from there):

    error: configs/my.yaml:12: model.hiden_size is not a key of model; did you mean hidden_size?
"""


def page() -> str:
    """The whole text of docs/configuration.md."""
    sections = [((), root()), *walk()]
    tables = [
        "\n".join(_table(keys, kind, section))
        for keys, node in sections
        for kind, section in kinds(node).items()
    ]
    return "\n".join([HEAD, *tables])


def _table(keys: tuple[str, ...], kind: str | None, section: Node) -> Iterator[str]:
    title = f"`{dotted(keys)}`" if keys else "Top level"
    yield f"## {title} with `name: {kind}`" if kind else f"## {title}"
    yield ""
    yield _line(section["description"])
    yield ""
    yield "| key | type and allowed values | default | meaning |"
    yield "|---|---|---|---|"
    for key, node in section["properties"].items():
        meaning = node.get("description") or resolve(node)["description"]
        yield f"| `{key}` | {_line(describe(node))} | {_default(key, section)} | {_line(meaning)} |"
    yield ""


def _default(key: str, section: Node) -> str:
    node = section["properties"][key]
    if key in section.get("required", ()):
        return "required"
    if kinds(node) and node["default"] is not None:
        kind = node["default"].get(node.get("discriminator", {}).get("propertyName"))
        return f"`name: {kind}`" if kind else "its defaults"
    default = node["default"]
    return f"`{default if isinstance(default, str) else show(default)}`"


def _line(text: str) -> str:
    """`text` as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    check: bool = parser.parse_args().check
    text = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if check:
        sys.stderr.write(f"error: {PAGE} is out of date; run `make docs`\n")
        return 1
    temporary = PAGE.with_suffix(".md.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
