#!/usr/bin/env python3
"""Random region features for the images of a prepared dataset; see `--help`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mcan.console import positive
from mcan.data.arrays import array_to_ids
from mcan.data.prepared import Prepared
from mcan.errors import command
from mcan.preparation.synthetic import write_features


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
    images = dict.fromkeys((i for of_split in ids for i in array_to_ids(of_split)), 0)
    write_features(args.output, args.feature_dim, images, np.random.default_rng(0), (10, 100))
    print(f"{args.output}: random features of {len(images):,} images")
    return 0


if __name__ == "__main__":
    command(main)
