#!/usr/bin/env python3
"""Make an image store from a folder of pictures; examples: data/FEATURES.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mcan.arguments import positive, shard
from mcan.data.image_names import ID_RULES
from mcan.data.store_merge import merge_stores
from mcan.errors import DataError, command
from mcan.vision.extract import Running, extract_features, shard_of
from mcan.vision.extractor import Extractor
from mcan.vision.grid import GridExtractor
from mcan.vision.pictures import Resize, list_pictures
from mcan.vision.region import Choice, RegionExtractor
from mcan.vision.weights import RANDOM


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make an image store from a folder of pictures, with torchvision.",
        epilog="A run that was killed is continued with --resume. Pictures that cannot be read are "
        "listed in OUTPUT.broken.tsv, and nothing is published unless --skip-broken.",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{grid,region,merge}")
    grid = tasks.add_parser("grid", help="the cells of the last map of a classification backbone")
    grid.add_argument("--backbone", default="resnet50", help="default: %(default)s")
    grid.add_argument(
        "--short-side", type=positive, default=600, help="in pixels (default: %(default)s)"
    )
    grid.add_argument(
        "--long-side",
        type=positive,
        default=1000,
        help="the short side gets shorter where the long one would exceed this (default: "
        "%(default)s; 600 and 1000 give at most 608 cells at stride 32)",
    )
    region = tasks.add_parser("region", help="boxes of a Faster R-CNN with box-head features")
    region.add_argument(
        "--detector", default="fasterrcnn_resnet50_fpn", help="default: %(default)s"
    )
    region.add_argument("--short-side", type=positive, help="default: as the detector has it")
    region.add_argument("--long-side", type=positive, help="default: as the detector has it")
    chosen = Choice()
    region.add_argument(
        "--threshold",
        type=float,
        default=chosen.threshold,
        help="least score of a box (default: %(default)s)",
    )
    region.add_argument(
        "--overlap",
        type=float,
        default=chosen.overlap,
        help="boxes of a class that overlap more are suppressed (default: %(default)s)",
    )
    region.add_argument("--min-boxes", type=positive, default=chosen.least, help="default: 10")
    region.add_argument("--max-boxes", type=positive, default=chosen.most, help="default: 100")
    for task in (grid, region):
        add_common(task)
    merge = tasks.add_parser("merge", help="several stores, such as shards, as one")
    merge.add_argument("stores", metavar="STORE", type=Path, nargs="+")
    merge.add_argument("--output", type=Path, required=True, help="store to write (.h5)")
    return parser.parse_args(arguments)


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="IMAGES_FOLDER", type=Path, help="with any subfolders")
    parser.add_argument("--output", type=Path, required=True, help="store to write (.h5)")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="DEFAULT|FILE|random",
        help="DEFAULT downloads what torchvision publishes, and only DEFAULT downloads; FILE is a "
        "local state dictionary; random is for trying things out",
    )
    parser.add_argument(
        "--ids",
        choices=ID_RULES,
        default="stem",
        help="stem: the file name without suffix; coco: the integer that it ends in (default: "
        "%(default)s)",
    )
    parser.add_argument("--float32", action="store_true", help="store instead of float16")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=8, help="pictures of equal shape (default: 8)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes that decode, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--shard", type=shard, metavar="I/N", help="every N-th picture from the I-th, 1/N to N/N"
    )
    parser.add_argument("--resume", action="store_true", help="continue a run that was cut short")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken pictures out")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if args.task == "merge":
        print(f"{args.output}: {merge_stores(args.stores, args.output):,} images")
        return 0
    pictures = list_pictures(args.folder, args.ids)
    total = len(pictures)
    if args.shard:
        pictures = shard_of(pictures, *args.shard)
        if not pictures:
            raise DataError(f"--shard {args.shard[0]}/{args.shard[1]}: no picture is left for it")
    print(f"{args.folder}: {len(pictures):,} of {total:,} pictures")
    running = Running(device(args.device), args.precision, args.batch_size, max(0, args.workers))
    extractor, resize = make_extractor(args)
    if args.weights == RANDOM:
        line = "!" * 78
        sys.stderr.write(
            f"{line}\nRANDOM WEIGHTS: these features mean nothing; they are for trying things "
            f"out only.\n{line}\n"
        )
    start = time.perf_counter()
    filled = extract_features(
        extractor,
        pictures,
        args.output,
        running,
        resize=resize,
        dtype="float32" if args.float32 else "float16",
        provenance={
            "source": str(args.folder),
            "shard": args.shard and f"{args.shard[0]}/{args.shard[1]}",
        },
        resume=args.resume,
        skip_broken=args.skip_broken,
    )
    seconds = time.perf_counter() - start
    print(
        f"{args.output}: {filled.images:,} images; {filled.images - filled.earlier:,} in "
        f"{seconds:.1f} s, {(filled.images - filled.earlier) / seconds:.1f} images/s"
    )
    if filled.broken:
        print(f"left out: {filled.broken:,} pictures, listed in {args.output}.broken.tsv")
    return 0


def make_extractor(args: argparse.Namespace) -> tuple[Extractor, Resize | None]:
    """The extractor, and how pictures are resized before it; detectors resize by themselves."""
    if args.task == "grid":
        return GridExtractor(args.backbone, args.weights), Resize(args.short_side, args.long_side)
    if args.min_boxes > args.max_boxes:
        raise DataError(f"--min-boxes {args.min_boxes} is above --max-boxes {args.max_boxes}")
    choice = Choice(args.threshold, args.overlap, args.min_boxes, args.max_boxes)
    sides = args.short_side, args.long_side
    return RegionExtractor(args.detector, args.weights, choice, *sides), None


def device(name: str) -> torch.device:
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"--device {name}: cannot be used here ({reason})") from error
    return found


if __name__ == "__main__":
    command(main)
