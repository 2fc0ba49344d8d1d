#!/usr/bin/env python3
"""Check image stores, prepared folders and checkpoints against the checksums in them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.engine.checkpoint import load_checkpoint
from mcan.errors import DataError, command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Check files against the checksums in them. Training and evaluation check "
        "prepared folders and checkpoints in full, but only the tables and 16 images of a store. "
        "The first damaged file ends the check with exit status 2.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="store (.h5), prepared folder, run folder, checkpoint (.pt)",
    )
    for path in parser.parse_args(arguments).paths:
        if (path / "checkpoints").is_dir():
            checkpoints = sorted((path / "checkpoints").glob("*.pt"))
            for checkpoint in checkpoints:
                load_checkpoint(checkpoint)
            what = f"run with {len(checkpoints)} checkpoints"
        elif path.is_dir():
            prepared = Prepared.open(path)
            prepared.verify()
            what = f"prepared folder, splits {', '.join(prepared.splits)}"
        elif path.suffix == ".pt":
            load_checkpoint(path)
            what = "checkpoint"
        elif path.is_file():
            store = open_store(path)
            store.verify()
            what = f"image store, {len(store):,} images, digest {store.digest[:16]}"
        else:
            raise DataError(f"{path}: no such file or folder")
        print(f"{path}: intact ({what})")
    return 0


if __name__ == "__main__":
    command(main)
