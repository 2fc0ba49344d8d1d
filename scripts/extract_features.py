#!/usr/bin/env python3
"""Make an image store from a folder of images; examples: data/FEATURES.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcan.console import message, positive, shard
from mcan.errors import DataError, command
from mcan.preparation.extraction import extract_features
from mcan.preparation.extractors import RANDOM, BoxSelection, GridExtractor, RegionExtractor
from mcan.preparation.images import ID_RULES, Resize, list_images
from mcan.preparation.store_writer import add_fill_arguments, read_fill_options


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make an image store from a folder of images, with torchvision.",
        epilog="Images that cannot be read are listed in OUTPUT.broken.tsv, and nothing is "
        "published unless --skip-broken.",
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="{grid,region}")
    style: Any = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    text = "the cells of the last map of a classification backbone"
    grid = tasks.add_parser("grid", help=text, **style)
    add = grid.add_argument
    add("--backbone", default="resnet50", help="model of torchvision")
    add("--short-side", type=positive, default=600, help="in pixels")
    add("--long-side", type=positive, default=1000, help="in pixels; overrides the short side")
    text = "boxes of a Faster R-CNN with box-head features"
    region = tasks.add_parser("region", help=text, **style)
    add = region.add_argument
    boxes = BoxSelection()
    add("--detector", default="fasterrcnn_resnet50_fpn", help="model of torchvision")
    add("--short-side", type=positive, help="in pixels; None: that of the detector")
    add("--long-side", type=positive, help="in pixels; None: that of the detector")
    add("--threshold", type=float, default=boxes.threshold, help="least score of a box")
    add("--overlap", type=float, default=boxes.overlap, help="of boxes of a class, at most")
    add("--min-boxes", type=positive, default=boxes.min_boxes, help="of an image")
    add("--max-boxes", type=positive, default=boxes.max_boxes, help="of an image")
    for task in (grid, region):
        add = task.add_argument
        add("folder", metavar="IMAGES_FOLDER", type=Path, help="with any subfolders")
        add_fill_arguments(task)
        add(
            "--weights",
            required=True,
            metavar="DEFAULT|FILE|random",
            help="DEFAULT: what torchvision publishes, downloaded; FILE: a state dictionary; "
            "random: for trying things out",
        )
        add("--ids", choices=ID_RULES, default="stem", help="name of the file, or integer in it")
        add("--precision", choices=["float32", "bf16"], default="float32", help="of the network")
        gpu = "cuda" if torch.cuda.is_available() else "cpu"
        add("--device", default=gpu, help="cpu, cuda, cuda:1, ...")
        add("--batch-size", type=positive, default=8, help="images of equal shape")
        add("--shard", type=shard, default="1/1", metavar="I/N", help="I-th of N parts, from 1")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    found = list_images(args.folder, args.ids)
    part, parts = args.shard
    images = dict(list(found.items())[part - 1 :: parts])
    print(f"{args.folder}: {len(images):,} of {len(found):,} images")
    device = usable_device(args.device)
    extractor: GridExtractor | RegionExtractor
    resize = None
    if args.task == "grid":
        resize = Resize(args.short_side, args.long_side)
        extractor = GridExtractor(args.backbone, args.weights)
    else:  # Detectors resize by themselves.
        boxes = BoxSelection(args.threshold, args.overlap, args.min_boxes, args.max_boxes)
        sides = args.short_side, args.long_side
        extractor = RegionExtractor(args.detector, args.weights, boxes, *sides)
    if args.weights == RANDOM:
        message("RANDOM WEIGHTS: these features mean nothing; use them to try things out only")
    extract_features(
        extractor,
        images,
        read_fill_options(args, "extract_features.py", arguments),
        device=device,
        precision=args.precision,
        batch_size=args.batch_size,
        resize=resize,
    )
    return 0


def usable_device(name: str) -> torch.device:
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"--device {name}: cannot be used here ({reason})") from error
    return found


if __name__ == "__main__":
    command(main)
