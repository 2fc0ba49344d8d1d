"""easy-VQA: the wheel from the package index -> prepared/. Source and counts: README.md here.

The wheel is read as a zip archive; nothing in it is imported, run or unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.store_writer import PixelStoreWriter
from mcan.errors import DataError, command
from mcan.progress import progress
from mcan.text.vocabulary import Vocabulary, build_tokens

ROOM = Path(__file__).resolve().parent
WHEEL = "easy_vqa-1.0-py3-none-any.whl"
SHA256 = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
SPLITS = ("train", "test")
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
_SLOTS = (
    (re.compile(rf"\b({'|'.join(SHAPES)})\b"), "<shape>"),
    (re.compile(rf"\b({'|'.join(COLORS)})\b"), "<color>"),
)


def main(arguments: Sequence[str] | None = None, sha256: str = SHA256) -> int:
    """Prepare the dataset and print its counts; `sha256` is that of the wheel."""
    parser = argparse.ArgumentParser(
        description="Prepare easy-VQA: wheel -> vocabulary, splits, images."
    )
    parser.add_argument(
        "--raw", type=Path, default=ROOM / "raw" / WHEEL, help="the wheel, as downloaded"
    )
    parser.add_argument("--output", type=Path, default=ROOM / "prepared", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args(arguments)
    _check_wheel(options.raw, sha256)
    try:
        with zipfile.ZipFile(options.raw) as wheel:
            counts = _prepare(wheel, options.raw, options.output, options.force, sha256)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{options.raw}: not a readable wheel ({error})") from error
    print(f"{options.output}: {counts['answers']} answers, {counts['tokens']} tokens")
    print(f"{'split':<8}{'questions':>12}{'images':>10}{'unknown words':>16}")
    for split in SPLITS:
        row = counts[split]
        print(f"{split:<8}{row['questions']:>12,}{row['images']:>10,}{row['unknown_words']:>16,}")
    return 0


def _check_wheel(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DataError(
            f"{path}: the wheel is missing; fetch it with: "
            f"pip download --no-deps easy-vqa==1.0 -d {path.parent}"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise DataError(f"{path}: SHA-256 is {found}, expected {expected}; download it again")


def _prepare(
    wheel: zipfile.ZipFile, path: Path, output: Path, force: bool, sha256: str
) -> dict[str, Any]:
    questions = {split: _read_questions(wheel, path, split) for split in SPLITS}
    train = questions["train"]
    vocabulary = Vocabulary(
        build_tokens(text for text, _, _ in train),
        tuple(dict.fromkeys(answer for _, answer, _ in train)),
    )
    # Question ids run on through the splits, so that they are unique over both.
    firsts = {"train": 0, "test": len(train)}
    splits = {split: list(_examples(questions[split], split, firsts[split])) for split in SPLITS}
    names = dict.fromkeys(example.image_id for split in SPLITS for example in splits[split])

    def targets(answers: Sequence[str]) -> list[tuple[int, float]]:
        return [(vocabulary.answer_index[a], 1.0) for a in answers if a in vocabulary.answer_index]

    counts = write_prepared(
        output,
        splits,
        vocabulary,
        targets,
        dataset="easy_vqa",
        metric="exact",
        sources={WHEEL: sha256},
        built_from="train",
        also=lambda folder: _write_images(wheel, path, folder / "images.h5", list(names), sha256),
        force=force,
    )
    return {**counts, "answers": len(vocabulary.answers), "tokens": len(vocabulary.tokens)}


def _read_questions(wheel: zipfile.ZipFile, path: Path, split: str) -> list[tuple[str, str, int]]:
    name = f"easy_vqa/data/{split}/questions.json"
    try:
        entries = json.loads(_read(wheel, path, name))
    except ValueError as error:
        raise DataError(f"{path}: {name} is not valid JSON ({error})") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: {name} is not a list")
    for number, entry in enumerate(entries):
        kinds = [type(value) for value in entry] if isinstance(entry, list) else []
        if kinds != [str, str, int]:
            raise DataError(
                f"{path}: entry {number} of {name} is {entry!r}, expected [question, answer, image]"
            )
    return [(text, answer, image) for text, answer, image in entries]


def _read(wheel: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        return wheel.read(name)
    except KeyError:
        raise DataError(f"{path}: {name} is missing in the wheel") from None


def _examples(
    questions: Sequence[tuple[str, str, int]], split: str, first: int
) -> Iterator[Example]:
    for number, (text, answer, image) in enumerate(questions, first):
        yield Example(
            question_id=number,
            # Images of both splits count from 0.
            image_id=f"{split}/{image}",
            question=text,
            answers=[answer],
            answer_type=answer_type(answer),
            question_type=template(text),
        )


def answer_type(answer: str) -> str:
    """`yes/no`, `shape` or `color`."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "color"


def template(question: str) -> str:
    """The question with its shape and colour words replaced by <shape> and <color>."""
    for words, slot in _SLOTS:
        question = words.sub(slot, question)
    return question


def _write_images(
    wheel: zipfile.ZipFile, path: Path, store: Path, image_ids: Sequence[Any], sha256: str
) -> None:
    provenance = {"source": WHEEL, "sha256": sha256}
    with PixelStoreWriter(store, (3, 64, 64), provenance=provenance) as writer:
        for image_id in progress(image_ids, desc="images", unit=" images", delay=1):
            split, number = image_id.split("/")
            name = f"easy_vqa/data/{split}/images/{number}.png"
            try:
                with Image.open(io.BytesIO(_read(wheel, path, name))) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
            except (
                OSError,
                SyntaxError,
                ValueError,
            ) as error:  # what Pillow raises for broken files
                raise DataError(f"{path}: {name} is not a readable PNG image") from error
            writer.add(image_id, pixels.transpose(2, 0, 1))


if __name__ == "__main__":
    command(main)
