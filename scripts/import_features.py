#!/usr/bin/env python3
"""Turn features made elsewhere into an image store; formats and examples: data/FEATURES.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mcan.data.image_names import ID_RULES
from mcan.data.store import open_store
from mcan.errors import DataError, command
from mcan.importing.convert import import_features
from mcan.importing.formats import FORMATS, detect_format, open_source
from mcan.importing.source import Options, Source
from mcan.importing.tables import read_sizes, read_wanted
from mcan.importing.verify import verify_store


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Turn features made elsewhere into an image store.",
        epilog="A run that was killed is continued with --resume. Broken images, and wanted ones "
        "that are missing, are listed in OUTPUT.broken.tsv, and nothing is published unless "
        "--skip-broken. Foreign pickles are read without executing anything in them.",
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        type=Path,
        nargs="+",
        help="file or folder; several become one store, in this order",
    )
    parser.add_argument("--output", type=Path, required=True, help="store to write (.h5)")
    parser.add_argument("--format", choices=FORMATS, help="default: detected")
    parser.add_argument("--float32", action="store_true", help="instead of float16")
    parser.add_argument(
        "--ids",
        choices=ID_RULES,
        help="coco: the integer that the name of an image ends in; stem: the name as text "
        "(default: as the format has it)",
    )
    parser.add_argument(
        "--index",
        type=Path,
        help="image id -> row of an HDF5 file, .json or .pkl (default: beside)",
    )
    parser.add_argument(
        "--sizes", type=Path, help="COCO file with widths and heights, if the source has none"
    )
    parser.add_argument("--images", type=Path, help="take only these ids, one per line")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes that read and convert, 0 for none (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue a run that was cut short")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken images out")
    parser.add_argument(
        "--verify",
        metavar="N",
        type=int,
        nargs="?",
        const=1000,
        help="compare about N images with the source (default: 1000), after the import or, if "
        "OUTPUT exists, instead of it",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if args.workers < 0 or (args.verify is not None and args.verify < 1):
        raise DataError("--workers must be 0 or more, and --verify 1 or more")
    options = Options(args.ids, args.index, args.sizes and read_sizes(args.sizes))
    wanted = args.images and read_wanted(args.images)
    sources: list[tuple[str, Source]] = []
    for path in args.sources:
        name = args.format or detect_format(path)
        source = open_source(path, name, options)
        sources.append((name, source))
        print(f"{path}: {name}, {len(source.parts):,} {source.unit}")
        if source.note:
            sys.stderr.write(f"note: {source.note}\n")
    if not (args.verify and args.output.exists()):
        start = time.perf_counter()
        filled = import_features(
            sources,
            args.output,
            dtype="float32" if args.float32 else "float16",
            wanted=wanted,
            workers=args.workers,
            resume=args.resume,
            skip_broken=args.skip_broken,
        )
        report(args.output, filled.images - filled.earlier, time.perf_counter() - start)
        if filled.broken or filled.missing:
            print(
                f"left out: {filled.broken:,} broken and {filled.missing:,} missing images, "
                f"listed in {args.output}.broken.tsv"
            )
    if args.verify:
        readers = [source for _, source in sources]
        verified = verify_store(args.output, readers, args.verify, wanted)
        print(
            f"verified: {verified.images:,} images equal the source; largest difference "
            f"{verified.difference:.3g}"
        )
    return 0


def report(output: Path, images: int, seconds: float) -> None:
    """What the store holds, and how fast its last `images` came."""
    store = open_store(output)
    extras = [
        name for name in ("boxes", "sizes", "grid_shapes") if getattr(store, name) is not None
    ]
    print(
        f"{output}: {len(store):,} images, {len(store.rows):,} rows of {store.row_shape[0]} "
        f"{store.rows.dtype}{''.join(f', {name}' for name in extras)}"
    )
    speed = output.stat().st_size / len(store) * images / seconds
    print(
        f"{images:,} images in {seconds:.1f} s: {images / seconds:,.0f} images/s, "
        f"{speed / 1e6:,.0f} MB/s written"
    )


if __name__ == "__main__":
    command(main)
