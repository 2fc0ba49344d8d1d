"""The commands that are disturbed, each in a folder with its input and with files of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import foreign
import numpy as np
import runs
import table_lab
import torchvision.models  # noqa: F401 (loaded once here, not in every process)
import vqa_toys
import yaml
from matplotlib.figure import Figure
from PIL import Image

import mcan.tables.running
from mcan.engine.run_folder import code_digest
from mcan.preparation import extraction, store_writer

Image.init()  # once here, too
code_digest()


@dataclass(frozen=True)
class Command:
    """`script` with `arguments`, and `again` when it is run a second time; `make` fills a folder;
    `replaces` is what the command may change; `patch` is called in the process of the command."""

    script: str
    arguments: str
    make: Callable[[Path], object]
    again: str = ""
    replaces: tuple[str, ...] = ()
    patch: Callable[[], None] = lambda: None


def training_folder(folder: Path) -> None:
    train = {"epochs": 2, "checkpoint_every": 4, "keep_last": 1, "log_every": 2}
    runs.make_lab(folder, {"data": {"workers": 0}, "train": train}, questions=24, images=6)
    (folder / "runs" / "other").mkdir(parents=True)
    (folder / "runs" / "other" / "notes.txt").write_text("not of this run")


def import_folder(folder: Path) -> None:
    """Five images; one is broken."""
    images = foreign.make_images(5)
    images[2].features[:] = np.nan
    foreign.write_npz(folder / "features", images)
    (folder / "out.h5.txt").write_text("notes")


def preparation_folder(folder: Path) -> None:
    """With an earlier prepared folder, which is to be replaced."""
    vqa_toys.write_split(folder, "val", vqa_toys.VAL)
    vqa_toys.write_split(folder, "train", vqa_toys.TRAIN[:4])
    run("prepare", folder)
    vqa_toys.write_split(folder, "train", vqa_toys.TRAIN)
    (folder / "prepared.txt").write_text("notes")


def image_folder(folder: Path) -> None:
    """Four images; one is broken."""
    (folder / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    (folder / "images" / "3.png").write_bytes(b"not an image")


def table_folder(folder: Path) -> None:
    """One row with one seed, trained for one epoch."""
    training_folder(folder)
    table = yaml.safe_load(table_lab.TABLE)
    row = {"name": "wide", "overrides": ["train.epochs=1"], "published": {"overall": 50.0}}
    (folder / "table.yaml").write_text(yaml.safe_dump(table | {"seeds": [0], "rows": [row]}))


def evaluation_folder(folder: Path) -> None:
    training_folder(folder)
    run("train", folder)


def notes_folder(folder: Path) -> None:
    (folder / "notes.txt").write_text("one\n")


def run(name: str, folder: Path) -> None:
    result = runs.Lab(folder).execute(COMMANDS[name].script, COMMANDS[name].arguments.split())
    assert result.status == 0, result.err


def save_every_part() -> None:
    store_writer._SAVE_SECONDS = 0
    extraction._PART = 2


def fork_programs() -> None:
    """And write figures without drawing them, which takes most of the time."""
    mcan.tables.running.Popen = table_lab.Forked  # type: ignore[misc, assignment]
    Figure.savefig = lambda _, file, **__: file.write(b"a figure")  # type: ignore[method-assign]


BROKEN = "broken"
"""The control: what the harness must find fault with."""
STORE = "--output out.h5 --workers 0 --skip-broken"
GRID = "grid images --backbone resnet18 --weights random --short-side 32 --device cpu"
SPLITS = [f"--files {s} questions_{s}.json annotations_{s}.json" for s in ("train", "val")]
PREPARED = f"{' '.join(SPLITS)} --output prepared --min-answer-count 1 --force"
COMMANDS = {
    "train": Command("train", "config.yaml", training_folder, "--resume"),
    "import": Command(
        *("scripts/import_features", f"features {STORE}", import_folder, "--resume", ()),
        save_every_part,
    ),
    "prepare": Command("data/vqa_v2/prepare", PREPARED, preparation_folder, "", ("prepared/",)),
    "extract": Command(
        *("scripts/extract_features", f"{GRID} {STORE}", image_folder, "--resume", ()),
        save_every_part,
    ),
    "table": Command("scripts/reproduce", "table.yaml", table_folder, patch=fork_programs),
    "eval": Command("eval", "runs/small --full --submission answers.json", evaluation_folder),
    BROKEN: Command("tests/faults/broken_writer", "", notes_folder, "", ("result.txt",)),
}
