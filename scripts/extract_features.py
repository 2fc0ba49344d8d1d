#!/usr/bin/env python3
"""Make an image store from images in a folder or in Parquet files; examples: data/FEATURES.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mcan.console import DefaultsInHelp, message, positive, shard
from mcan.data.arrays import Id
from mcan.errors import DataError, command
from mcan.preparation.extraction import extract_features
from mcan.preparation.extractors import (
    RANDOM,
    TIMM,
    BoxSelection,
    GridExtractor,
    RegionExtractor,
)
from mcan.preparation.images import (
    MAX_PIXELS,
    ImageSource,
    Resize,
    Resizing,
    list_images,
    list_packed_images,
)
from mcan.preparation.names import ID_HELP, ID_RULES, read_pairs
from mcan.preparation.store_writer import add_fill_arguments, read_fill_options

SHORT_SIDE, LONG_SIDE = 600, 1000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make an image store of features, with torchvision or timm, or of pixels.",
        epilog="Images that cannot be read are listed in OUTPUT.broken.tsv. Then no store is "
        "published, except with --skip-broken.",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{grid,region,pixels}")
    style: Any = {"formatter_class": DefaultsInHelp}
    text = "the cells of the last feature map of a classification backbone"
    grid = tasks.add_parser("grid", help=text, **style)
    add = grid.add_argument
    add("--backbone", default="resnet50", help=f"torchvision model, or {TIMM}NAME")
    text = "in pixels; default: {}, or for timm the model's size and crop"
    add("--short-side", type=positive, help=text.format(SHORT_SIDE))
    add("--long-side", type=positive, help=text.format(LONG_SIDE) + "; overrides the short side")
    text = "timm: change the crop and remove its margin; border and squash keep the whole image"
    add("--crop", choices=["center", "border", "squash"], help=text)
    text = "the boxes of a Faster R-CNN, with the features of its box head"
    region = tasks.add_parser("region", help=text, **style)
    add = region.add_argument
    boxes = BoxSelection()
    add("--detector", default="fasterrcnn_resnet50_fpn", help="torchvision model")
    add("--short-side", type=positive, help="in pixels; default: that of the detector")
    add("--long-side", type=positive, help="in pixels; default: that of the detector")
    add("--threshold", type=float, default=boxes.threshold, help="minimum score of a box")
    text = "maximum overlap (IoU) of boxes of one class"
    add("--overlap", type=float, default=boxes.overlap, help=text)
    add("--min-boxes", type=positive, default=boxes.min_boxes, help="per image")
    add("--max-boxes", type=positive, default=boxes.max_boxes, help="per image")
    pixels = tasks.add_parser("pixels", help="the images themselves, resized to one size", **style)
    add = pixels.add_argument
    add("--size", type=positive, nargs=2, required=True, metavar=("H", "W"), help="in pixels")
    for task in (grid, region, pixels):
        add = task.add_argument
        text = "folder, with any subfolders, of images or Parquet files; or one Parquet file"
        add("images", metavar="IMAGES", type=Path, help=text)
        add_fill_arguments(task)
        add("--ids", choices=ID_RULES, default="stem", help=ID_HELP)
        text = "Parquet fields, if their names are not recognised: image=FIELD id=FIELD"
        add("--fields", nargs="+", default=[], metavar="NAME=FIELD", help=text)
        add("--max-pixels", type=positive, default=MAX_PIXELS, help="per image")
        add("--shard", type=shard, default="1/1", metavar="I/N", help="I-th of N parts, from 1")
    for task in (grid, region):
        add = task.add_argument
        add("--float32", action="store_true", help="store float32 instead of float16")
        text = (
            "DEFAULT: the published weights, downloaded; FILE: a state dictionary; random: for "
            "trying things out"
        )
        add("--weights", required=True, metavar="DEFAULT|FILE|random", help=text)
        add(
            "--precision",
            choices=["float32", "bf16"],
            default="float32",
            help="precision of the network",
        )
        add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
        add("--batch-size", type=positive, default=8, help="images of one shape per batch")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    found = find_images(args.images, args)
    part, parts = args.shard
    images = dict(list(found.items())[part - 1 :: parts])
    print(f"{args.images}: {len(images):,} of {len(found):,} images")
    fill = read_fill_options(args, "extract_features.py", arguments)
    if args.task == "pixels":
        size = args.size[1], args.size[0]
        extract_features(None, images, fill, resize=size, max_pixels=args.max_pixels)
        return 0
    device = usable_device(args.device)
    extractor: GridExtractor | RegionExtractor
    resize: Resizing = None
    if args.task == "grid":
        any_size = bool(args.short_side or args.long_side)
        extractor = GridExtractor(args.backbone, args.weights, crop=args.crop, any_size=any_size)
        sides = args.short_side or SHORT_SIDE, args.long_side or LONG_SIDE
        resize = extractor.transform or Resize(*sides)
    else:  # Detectors resize by themselves.
        boxes = BoxSelection(args.threshold, args.overlap, args.min_boxes, args.max_boxes)
        extractor = RegionExtractor(
            args.detector, args.weights, boxes, args.short_side, args.long_side
        )
    if args.weights == RANDOM:
        message("RANDOM WEIGHTS: these features mean nothing; use them to try things out only")
    extract_features(
        extractor,
        images,
        fill,
        device=device,
        precision=args.precision,
        batch_size=args.batch_size,
        resize=resize,
        max_pixels=args.max_pixels,
    )
    return 0


def find_images(source: Path, args: argparse.Namespace) -> Mapping[Id, ImageSource]:
    """The images in a folder or in Parquet files, by id."""
    fields = read_pairs(args.fields, "--fields", ("image", "id"))
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files:
        if fields:
            raise DataError(f"{source}: --fields is for Parquet files, but there are none")
        return list_images(source, args.ids)
    return list_packed_images(files, args.ids, fields)


def usable_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"--device {name}: cannot be used here ({reason})") from error
    return found


if __name__ == "__main__":
    command(main)
