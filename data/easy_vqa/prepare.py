"""easy-VQA: the wheel from the package index -> prepared/. Source and counts: README.md here.

The wheel is read as a zip archive; nothing in it is imported, run or unpacked.
"""

import argparse
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mcan.console import progress
from mcan.data.records import read_items
from mcan.errors import DataError, command
from mcan.files import sha256_of
from mcan.preparation.questions import Example, RawSplit
from mcan.preparation.recipe import output_parser, write_dataset
from mcan.preparation.store_writer import ImageRows, StoreWriter
from mcan.text.vocabulary import Vocabulary, build_tokens

FOLDER = Path(__file__).resolve().parent
WHEEL = "easy_vqa-1.0-py3-none-any.whl"
SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def main(arguments: Sequence[str] | None = None, sha256: str = SHA256) -> int:
    """Prepare the dataset and print its counts; `sha256` is that of the wheel."""
    parser = argparse.ArgumentParser(
        description="Prepare easy-VQA: wheel -> vocabulary, splits, images.",
        parents=[output_parser(FOLDER)],
    )
    parser.add_argument(
        "--raw", type=Path, default=FOLDER / "raw" / WHEEL, help="the wheel, as downloaded"
    )
    path = parser.parse_args(arguments).raw
    if not path.is_file() or sha256_of(path) != sha256:
        raise DataError(
            f"{path}: missing, or not of SHA-256 {sha256}; fetch it with: "
            f"pip download --no-deps easy-vqa==1.0 -d {path.parent}"
        )
    train = RawSplit.collect(read_questions(path, "train", 0), path)
    # Question ids run on through the splits, so that they are unique over both.
    test = RawSplit.collect(read_questions(path, "test", len(train)), path)
    images = dict.fromkeys([*train.images.names, *test.images.names])
    return write_dataset(
        FOLDER,
        arguments,
        {"train": train, "test": test},
        Vocabulary(build_tokens(train.questions), train.answers.strings),
        metric="exact",
        sources={WHEEL: sha256},
        extra_files=lambda folder: write_images(path, folder / "images.h5", images),
    )


def read_questions(path: Path, split: str, first_id: int) -> Iterator[Example]:
    """The questions of a split, a JSON list of [question, answer, image]."""
    entries = read_items(path / f"easy_vqa/data/{split}/questions.json")
    for number, (question, answer, image) in enumerate(entries, first_id):
        kind = "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"
        # The images of both splits count from 0.
        yield Example(number, f"{split}/{image}", question, [answer], kind, template(question))


def template(question: str) -> str:
    """The question with its shape and colour words replaced by <shape> and <color>."""
    question = re.sub(rf"\b({'|'.join(SHAPES)})\b", "<shape>", question)
    return re.sub(rf"\b({'|'.join(COLORS)})\b", "<color>", question)


def write_images(path: Path, store: Path, image_ids: Iterable[str]) -> None:
    provenance = {"command": "python data/easy_vqa/prepare.py --force --output FOLDER"}
    with zipfile.ZipFile(path) as wheel, StoreWriter(store, provenance=provenance) as writer:
        for image_id in progress(image_ids, desc="images", unit=" images", delay=1):
            split, number = image_id.split("/")
            with wheel.open(f"easy_vqa/data/{split}/images/{number}.png") as file:
                pixels = np.asarray(Image.open(file).convert("RGB"))
            writer.add(ImageRows(image_id, pixels.transpose(2, 0, 1)))


if __name__ == "__main__":
    command(main)
