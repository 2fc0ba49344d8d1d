#!/usr/bin/env python3
"""Turn features made elsewhere into an image store; formats and examples: data/FEATURES.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mcan.console import positive
from mcan.errors import command
from mcan.preparation.feature_files import (
    LAYOUTS,
    import_features,
    open_source,
    read_selected,
    read_sizes,
)
from mcan.preparation.feature_mapping import AXES, KNOWN, SourceOptions
from mcan.preparation.names import ID_HELP, ID_RULES, read_pairs
from mcan.preparation.store_writer import add_fill_arguments, read_fill_options


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Turn features made elsewhere into an image store.",
        epilog="Broken images, and selected ones that are missing, are listed in "
        "OUTPUT.broken.tsv, and nothing is published unless --skip-broken. Foreign pickles are "
        "read without executing anything in them.",
    )
    add = parser.add_argument
    add("sources", metavar="SOURCE", type=Path, nargs="+", help="files or folders, in this order")
    add_fill_arguments(parser)
    add("--float32", action="store_true", help="store float32 instead of float16")
    add("--format", choices=LAYOUTS, help="default: detected")
    names = " ".join(f"{name}=NAME" for name in KNOWN)
    text = f"what the entries are called, if not known: {names}; size=WIDTH,HEIGHT; boxes= for none"
    add("--keys", nargs="+", default=[], metavar="NAME=ENTRY", help=text)
    text = "how features lie, if the shapes leave it open: (n, D), (D, n), (D, h, w)"
    add("--axes", choices=AXES, help=text)
    add("--feature-size", type=positive, help="width of a feature row; also says the type in TSV")
    text = f"{ID_HELP}, row (row of an HDF5 file, from 0); default: that of the format"
    add("--ids", choices=(*ID_RULES, "row"), help=text)
    add("--index", type=Path, help="image id -> row in HDF5, .json or .pkl (default: beside)")
    add("--sizes", type=Path, help="COCO file with widths and heights, if the source has none")
    add("--images", type=Path, help="take only these ids, one per line")
    args = parser.parse_args(arguments)
    keys = read_pairs(args.keys, "--keys", tuple(KNOWN))
    sizes = args.sizes and read_sizes(args.sizes)
    options = SourceOptions(args.ids, args.index, sizes, keys, args.axes, args.feature_size)
    selected = args.images and read_selected(args.images)
    sources = [open_source(path, args.format, options) for path in args.sources]
    for source in sources:
        print(f"{source.path}: {source.name}, {len(source.parts):,} parts")
        if source.note:
            print(f"note: {source.note}")
    fill = read_fill_options(args, "import_features.py", arguments)
    import_features(sources, fill, selected)
    return 0


if __name__ == "__main__":
    command(main)
