#!/usr/bin/env python3
"""Random region features for the images of a prepared dataset; see `--help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mcan.console import positive, progress
from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared
from mcan.errors import command
from mcan.preparation.store_writer import ImageRows, StoreWriter


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write a store of random region features for the images of a prepared dataset, "
        "to try or measure training without real features. They say nothing about the images. "
        "An image has 10 to 100 regions; with 2048 numbers each, it takes 225 kB on average.",
    )
    parser.add_argument("prepared", metavar="PREPARED", type=Path, help="prepared folder")
    parser.add_argument("--output", type=Path, required=True, help="store to write (.h5)")
    parser.add_argument("--feature-dim", type=positive, default=2048)
    args = parser.parse_args()
    prepared = Prepared.open(args.prepared)
    ids = (prepared.split(name).image_ids for name in prepared.splits)
    images = dict.fromkeys(i for of_split in ids for i in array_to_ids(of_split))
    random = np.random.default_rng(0)
    # Drawn once and cut at random places: drawing every number would take most of the time.
    pool = random.standard_normal((4096, args.feature_dim), np.float32).astype(np.float16)
    with StoreWriter(args.output, provenance={"made_up": True}) as writer:
        for image_id in progress(images, unit=" images"):
            rows, start = random.integers(10, 101), random.integers(4096 - 100)
            writer.add(ImageRows(image_id, pool[start : start + rows]))
    print(f"{args.output}: random features of {len(images):,} images")
    return 0


if __name__ == "__main__":
    command(main)
