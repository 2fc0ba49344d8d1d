"""Sort-of-CLEVR, generated from a seed (Santoro et al. 2017, section 3.2 and supplement D).

Protocol, counts and deviations: README.md here. O objects of an image, one per colour.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcan.console import natural, positive, progress
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.errors import DataError, command
from mcan.files import refuse_existing, save_text
from mcan.preparation.questions import Example
from mcan.preparation.recipe import output_parser, write_dataset
from mcan.preparation.store_writer import ImageRows, StoreWriter
from mcan.text.vocabulary import Vocabulary, build_tokens

FOLDER = Path(__file__).resolve().parent
SIDE = 75
"""Height and width of an image, pixels."""
RADIUS = 5
"""Radius of a circle and half the side of a rectangle, without the centre pixel."""
APART = 10
"""Least distance of two centres, pixels."""
CROP = 2 * RADIUS + 1
CROP_MEAN, CROP_STD = (0.65, 0.60, 0.37), 0.44
"""Of the crops, per channel from 0 to 1, rounded. Without standardising, what all crops have in
common hides their differences from the network for epochs."""
WAVELENGTHS = np.geomspace(12, 2 * SIDE, 8)
"""Of the codes of a centre, pixels."""
COLOURS = {
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 255, 0),
    "orange": (255, 156, 0),
    "yellow": (255, 255, 0),
    "gray": (128, 128, 128),
}
SHAPES = ("rectangle", "circle")
ANSWERS = ("yes", "no", *SHAPES, *map(str, range(len(COLOURS))))
KINDS = {
    "non-relational": {
        "shape": "What shape is the {} object?",
        "left": "Is the {} object on the left?",
        "top": "Is the {} object at the top?",
    },
    "relational": {
        "closest": "What shape is closest to the {} object?",
        "furthest": "What shape is furthest from the {} object?",
        "count": "How many other objects have the shape of the {} object?",
    },
}
PER_KIND = 10
"""Questions of each kind about an image."""


@dataclass(frozen=True)
class Scene:
    """`centres` (O, 2) x and y in pixels, `shapes` (O,) indices of `SHAPES`; in colour order."""

    centres: NDArray[np.int64]
    shapes: NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Generate Sort-of-CLEVR: images as pixels and as objects, questions, answers.",
        parents=[output_parser(FOLDER)],
    )
    parser.add_argument("--seed", type=natural, default=0, help="everything follows from it")
    parser.add_argument("--images", type=positive, default=10_000, help="in all (%(default)s)")
    parser.add_argument(
        "--held-out", type=positive, default=200, help="the last ones, the test split (%(default)s)"
    )
    parser.add_argument(
        "--targets",
        nargs=2,
        metavar=("SPLIT", "FILE.json"),
        help="write nothing but the regions that the questions of a prepared split are about, for "
        "scripts/analyse_attention.py",
    )
    options = parser.parse_args(arguments)
    if options.targets:
        return write_targets(options.output, options.targets[0], Path(options.targets[1]))
    if options.held_out >= options.images:
        raise DataError(f"--held-out is {options.held_out}; expected fewer than --images")
    seed, images, training = options.seed, options.images, options.images - options.held_out
    splits = {"train": range(training), "test": range(training, images)}
    templates = [template for subtypes in KINDS.values() for template in subtypes.values()]
    words = build_tokens(template.format(colour) for template in templates for colour in COLOURS)
    return write_dataset(
        FOLDER,
        arguments,
        {name: questions(seed, numbers) for name, numbers in splits.items()},
        Vocabulary(words, ANSWERS),
        metric="exact",
        sources={},
        extra_files=lambda folder: write_images(folder, seed, images),
    )


def generators(seed: int, image: int) -> tuple[np.random.Generator, ...]:
    """Of an image's scene, its questions and the order of its objects: an image does not depend
    on how many others there are."""
    sequence = np.random.SeedSequence(seed, spawn_key=(image,))
    return tuple(np.random.default_rng(child) for child in sequence.spawn(3))


def draw_scene(random: np.random.Generator) -> Scene:
    """A scene whose answers are unambiguous: nowhere are two objects of different shapes equally
    close to a third, or equally far, and closest or furthest."""
    while True:
        centres: list[NDArray[np.int64]] = []
        while len(centres) < len(COLOURS):
            centre = random.integers(RADIUS, SIDE - RADIUS, size=2)
            if all(math.dist(centre, other) >= APART for other in centres):
                centres.append(centre)
        scene = Scene(np.stack(centres), random.integers(len(SHAPES), size=len(COLOURS)))
        if all(
            len(set(scene.shapes[extreme(scene, colour, sign)].tolist())) == 1
            for colour in range(len(COLOURS))
            for sign in (1, -1)
        ):
            return scene


def extreme(scene: Scene, colour: int, sign: int) -> NDArray[np.bool_]:
    """(O,) which other objects are closest to that of `colour` (`sign` 1), or furthest (-1)."""
    distances = sign * ((scene.centres - scene.centres[colour]) ** 2).sum(-1)
    others = np.arange(len(COLOURS)) != colour
    nearest: NDArray[np.bool_] = others & (distances == distances[others].min())
    return nearest


def answer(scene: Scene, subtype: str, colour: int) -> str:
    """To the question of `subtype` about the object of `colour`."""
    x, y = scene.centres[colour].tolist()
    if subtype == "left":
        return "yes" if x < SIDE / 2 else "no"
    if subtype == "top":
        return "yes" if y < SIDE / 2 else "no"
    if subtype == "count":
        return str(np.count_nonzero(scene.shapes == scene.shapes[colour]) - 1)
    if subtype == "shape":
        return SHAPES[scene.shapes[colour]]
    found = extreme(scene, colour, 1 if subtype == "closest" else -1)
    return SHAPES[scene.shapes[found][0]]


def questions(seed: int, images: range) -> Iterator[Example]:
    """The questions about `images`, whose ids count on: `question_id // 20` is the image."""
    colours = list(COLOURS)
    for image in images:
        of_scene, of_questions, _ = generators(seed, image)
        scene = draw_scene(of_scene)
        number = image * len(KINDS) * PER_KIND
        for kind, subtypes in KINDS.items():
            for _ in range(PER_KIND):
                colour = int(of_questions.integers(len(colours)))
                subtype = list(subtypes)[of_questions.integers(len(subtypes))]
                text = subtypes[subtype].format(colours[colour])
                given = [answer(scene, subtype, colour)]
                yield Example(number, image, text, given, answer_type=kind, question_type=subtype)
                number += 1


def draw(scene: Scene) -> NDArray[np.uint8]:
    """(75, 75, 3) RGB"""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    masks = (np.ones((CROP, CROP), np.bool_), x**2 + y**2 <= RADIUS**2)
    shapes = scene.shapes.tolist()
    for centre, shape, colour in zip(scene.centres, shapes, COLOURS.values(), strict=True):
        crop(image, centre)[masks[shape]] = colour
    return image


def crop(image: NDArray[np.uint8], centre: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The view (11, 11, 3) of `image` that holds the object at `centre`."""
    x, y = centre.tolist()
    return image[y - RADIUS : y + RADIUS + 1, x - RADIUS : x + RADIUS + 1]


def write_images(folder: Path, seed: int, images: int) -> None:
    """`pixels.h5`, and `objects.h5`: the crop of each object (363 numbers, standardised), the codes
    of its centre and its box, in random order, as a perfect detector would give them."""
    provenance = {
        "command": "python data/sort_of_clevr/prepare.py --force --output FOLDER",
        "seed": seed,
    }
    with (
        StoreWriter(folder / "pixels.h5", provenance=provenance) as pixels,
        StoreWriter(folder / "objects.h5", provenance=provenance) as objects,
    ):
        for number in progress(range(images), desc="images", unit=" images", delay=1):
            of_scene, _, of_order = generators(seed, number)
            scene = draw_scene(of_scene)
            image = draw(scene)
            pixels.add(ImageRows(number, image.transpose(2, 0, 1)))
            centres = of_order.permutation(scene.centres)
            crops = np.stack([crop(image, centre) for centre in centres])
            standardised = ((crops / 255 - CROP_MEAN) / CROP_STD).reshape(len(centres), -1)
            # (O, 16) each: x and y at all wavelengths, of deviation 1 like the crops.
            angles = (2 * math.pi * centres[:, :, None] / WAVELENGTHS).reshape(len(centres), -1)
            waves = math.sqrt(2) * np.sin(angles), math.sqrt(2) * np.cos(angles)
            features = np.concatenate([standardised, *waves], axis=1)
            # Edges of the crops, normalised x1 y1 x2 y2.
            boxes = np.concatenate([centres - RADIUS, centres + RADIUS + 1], axis=1) / SIDE
            objects.add(ImageRows(number, features, boxes, size=(SIDE, SIDE)))


def write_targets(prepared: Path, split_name: str, path: Path) -> int:
    """Write {question id: {name: [region, ...]}} for a split of `prepared`: the object `asked`
    about, and of relational questions the objects that decide the answer."""
    refuse_existing(path, "--targets")
    split, store = Prepared.open(prepared).split(split_name), open_store(prepared / "objects.h5")
    targets = {}
    for row, question in enumerate(split.questions):
        image = int(split.image_ids[split.image_index[row]])
        subtype = split.question_types.names[split.question_types.codes[row]]
        colour = next(n for n, name in enumerate(COLOURS) if f" {name} " in question)
        scene = draw_scene(generators(store.provenance["seed"], image)[0])
        centres = np.rint(store.image(image)[1][:, :2] * SIDE).astype(int) + RADIUS
        regions, colours = (centres[:, None] == scene.centres).all(-1).nonzero()
        if sorted(colours) != list(range(len(COLOURS))):
            raise DataError(f"{store.path}: not the scenes that this program makes")
        relevant = {"asked": np.arange(len(COLOURS)) == colour}
        if subtype in ("closest", "furthest"):
            relevant[subtype] = extreme(scene, colour, 1 if subtype == "closest" else -1)
        elif subtype == "count":
            same = scene.shapes == scene.shapes[colour]
            relevant["same shape"] = same & ~relevant["asked"]
        targets[int(split.question_ids[row])] = {
            name: sorted(regions[chosen[colours]].tolist()) for name, chosen in relevant.items()
        }
    save_text(path, json.dumps(targets) + "\n")
    return 0


if __name__ == "__main__":
    command(main)
