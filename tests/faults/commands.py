"""The commands that are disturbed, each in a folder with what it reads and what it must not touch.

A folder is made once per command and copied for every case.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import foreign
import h5py  # noqa: F401 (loaded once here, not in every process)
import numpy as np
import runs
import table_lab
import torchvision.models  # noqa: F401
import vqa_toys
import yaml
from matplotlib.figure import Figure
from PIL import Image

import mcan.tables.running
from mcan.preparation import extraction, store_writer

FASTER = {"data": {"workers": 0}, "train": {"epochs": 2, "checkpoint_every": 2, "log_every": 2}}
DATA = {"questions": 24, "images": 6}
# What the commands would load in every process.
Image.init()
Figure().savefig(io.BytesIO())


@dataclass(frozen=True)
class Command:
    """`script` with `arguments`; `again` are added when it is run a second time.

    `replaces` are the paths that it may change or remove, and all that is below them.
    """

    script: str
    arguments: tuple[str, ...]
    make: Callable[[Path], object]
    again: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    patch: Callable[[], None] = lambda: None


def training_folder(folder: Path) -> None:
    runs.make_lab(folder, FASTER, **DATA)
    other = folder / "runs" / "other"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("not of this run")


def evaluation_folder(folder: Path) -> None:
    training_folder(folder)
    result = runs.Lab(folder).train("small", "train.epochs=1")
    assert result.status == 0, result.err


def import_folder(folder: Path) -> None:
    """Five images; the features of one are not numbers, so that it is listed as broken."""
    images = foreign.make_images(5)
    images[2].features[:] = np.nan
    foreign.write_npz(folder / "features", images)
    (folder / "out.h5.txt").write_text("notes")


def preparation_folder(folder: Path) -> None:
    """With an earlier prepared folder, which is to be replaced."""
    for rows in (vqa_toys.TRAIN[:4], vqa_toys.TRAIN):
        vqa_toys.write_split(folder, "train", rows)
        vqa_toys.write_split(folder, "val", vqa_toys.VAL)
        if rows != vqa_toys.TRAIN:
            result = runs.Lab(folder).execute(PREPARE, PREPARE_ARGUMENTS)
            assert result.status == 0, result.err
    (folder / "prepared.txt").write_text("notes")


def image_folder(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    (folder / "images" / "3.png").write_bytes(b"not an image")


def table_folder(folder: Path) -> None:
    """One row, one seed."""
    runs.make_lab(folder, FASTER, **DATA)
    table = yaml.safe_load(table_lab.TABLE)
    row = {"name": "wide", "overrides": ["train.epochs=1"], "published": {"overall": 50.0}}
    table |= {"seeds": [0], "rows": [row]}
    (folder / "table.yaml").write_text(yaml.safe_dump(table))


def notes_folder(folder: Path) -> None:
    (folder / "notes.txt").write_text("one\n")


def fork_programs() -> None:
    mcan.tables.running.Popen = table_lab.Forked  # type: ignore[misc, assignment]


def save_every_part() -> None:
    store_writer._SAVE_SECONDS = 0
    extraction._PART = 2


BROKEN = "broken"
"""The control: what the harness must find fault with."""
PREPARE = "data/vqa_v2/prepare"
PREPARE_ARGUMENTS = (
    *("--files", "train", "questions_train.json", "annotations_train.json"),
    *("--files", "val", "questions_val.json", "annotations_val.json"),
    *("--output=prepared", "--min-answer-count=1", "--force"),
)
COMMANDS = {
    "train": Command("train", ("config.yaml",), training_folder, ("--resume",)),
    "import": Command(
        "scripts/import_features",
        ("features", "--output", "out.h5", "--workers=0", "--skip-broken"),
        import_folder,
        ("--resume",),
        patch=save_every_part,
    ),
    "prepare": Command(PREPARE, PREPARE_ARGUMENTS, preparation_folder, replaces=("prepared/",)),
    "extract": Command(
        "scripts/extract_features",
        (
            *("grid", "images", "--output", "out.h5", "--workers=0", "--skip-broken"),
            *("--backbone=resnet18", "--weights=random", "--short-side=32", "--device=cpu"),
        ),
        image_folder,
        ("--resume",),
        patch=save_every_part,
    ),
    "table": Command("scripts/reproduce", ("table.yaml",), table_folder, patch=fork_programs),
    "eval": Command(
        "eval",
        ("runs/small", "--full", "--submission", "answers.json"),
        evaluation_folder,
    ),
    BROKEN: Command("tests/faults/broken_writer", (), notes_folder, replaces=("result.txt",)),
}
