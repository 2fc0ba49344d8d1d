"""Sort-of-CLEVR, generated from a seed (Santoro et al. 2017, section 3.2 and supplement D).

Protocol, counts and deviations: README.md here. O objects of an image, one per colour.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mcan.data.prepared_writer import Example, write_prepared
from mcan.data.store_writer import PixelStoreWriter, RegionStoreWriter
from mcan.errors import DataError, command
from mcan.progress import progress
from mcan.text.vocabulary import Vocabulary, build_tokens

ROOM = Path(__file__).resolve().parent
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
FEATURES = 3 * CROP**2 + 4 * len(WAVELENGTHS)
"""Width of an object's row."""
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
NON_RELATIONAL = {
    "shape": "What shape is the {} object?",
    "left": "Is the {} object on the left?",
    "top": "Is the {} object at the top?",
}
RELATIONAL = {
    "closest": "What shape is closest to the {} object?",
    "furthest": "What shape is furthest from the {} object?",
    "count": "How many other objects have the shape of the {} object?",
}
PER_KIND = 10
"""Questions of each kind about an image."""
KINDS = (("non-relational", NON_RELATIONAL), ("relational", RELATIONAL))


@dataclass(frozen=True)
class Scene:
    """`centres` (O, 2) x and y in pixels, `shapes` (O,) indices of `SHAPES`; in colour order."""

    centres: NDArray[np.int64]
    shapes: NDArray[np.int64]

    def squared_distances(self) -> NDArray[np.int64]:
        """(O, O)"""
        between = self.centres[:, None] - self.centres[None]
        squared: NDArray[np.int64] = (between**2).sum(-1)
        return squared


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Generate Sort-of-CLEVR: images as pixels and as objects, questions, answers."
    )
    parser.add_argument("--seed", type=int, default=0, help="images and questions follow from it")
    parser.add_argument("--images", type=int, default=10_000, help="all images (default: 10,000)")
    parser.add_argument("--held-out", type=int, default=200, help="the last ones, the test split")
    parser.add_argument("--output", type=Path, default=ROOM / "prepared", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise DataError(f"--seed is {options.seed}; expected 0 or more")
    if options.images < 2:
        raise DataError(f"--images is {options.images}; expected 2 or more")
    if not 0 < options.held_out < options.images:
        raise DataError(
            f"--held-out is {options.held_out}; expected 1 to {options.images - 1}, fewer than "
            "--images"
        )
    counts = prepare(options.output, options.seed, options.images, options.held_out, options.force)
    print(f"{options.output}: seed {options.seed}, {len(ANSWERS)} answers")
    print(f"{'split':<8}{'questions':>12}{'images':>10}")
    for split, row in counts.items():
        print(f"{split:<8}{row['questions']:>12,}{row['images']:>10,}")
    return 0


def prepare(
    output: Path, seed: int, images: int, held_out: int, force: bool
) -> dict[str, dict[str, int]]:
    """Write the prepared folder; returns the counts of each split."""
    training = images - held_out
    templates = [template for _, subtypes in KINDS for template in subtypes.values()]
    vocabulary = Vocabulary(
        build_tokens(template.format(colour) for template in templates for colour in COLOURS),
        ANSWERS,
    )
    return write_prepared(
        output,
        {
            "train": questions(seed, range(training)),
            "test": questions(seed, range(training, images)),
        },
        vocabulary,
        lambda answers: [(vocabulary.answer_index[answer], 1.0) for answer in answers],
        dataset="sort_of_clevr",
        metric="exact",
        sources={},
        built_from="the templates",
        also=lambda folder: write_images(folder, seed, images),
        force=force,
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
    distances = sign * scene.squared_distances()[colour]
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
        for kind, subtypes in KINDS:
            for _ in range(PER_KIND):
                colour = int(of_questions.integers(len(colours)))
                subtype = list(subtypes)[of_questions.integers(len(subtypes))]
                yield Example(
                    question_id=number,
                    image_id=image,
                    question=subtypes[subtype].format(colours[colour]),
                    answers=[answer(scene, subtype, colour)],
                    answer_type=kind,
                    question_type=subtype,
                )
                number += 1


def draw(scene: Scene) -> NDArray[np.uint8]:
    """(75, 75, 3) RGB"""
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    masks = (np.ones((CROP, CROP), np.bool_), x**2 + y**2 <= RADIUS**2)
    for centre, shape, colour in zip(
        scene.centres, scene.shapes.tolist(), COLOURS.values(), strict=True
    ):
        crop(image, centre)[masks[shape]] = colour
    return image


def crop(image: NDArray[np.uint8], centre: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The view (11, 11, 3) of `image` that holds the object at `centre`."""
    x, y = centre.tolist()
    return image[y - RADIUS : y + RADIUS + 1, x - RADIUS : x + RADIUS + 1]


def boxes(centres: NDArray[np.int64]) -> NDArray[Any]:
    """(O, 4) edges of the crops, normalised x1 y1 x2 y2."""
    return np.concatenate([centres - RADIUS, centres + RADIUS + 1], axis=1) / SIDE


def position_codes(centres: NDArray[np.int64]) -> NDArray[Any]:
    """(O, 32) sines, then cosines of x and y at all wavelengths, of deviation 1 like the crops."""
    angles = 2 * math.pi * centres[:, :, None] / WAVELENGTHS
    waves = angles.reshape(len(centres), -1)
    codes: NDArray[Any] = math.sqrt(2) * np.concatenate([np.sin(waves), np.cos(waves)], axis=1)
    return codes


def write_images(folder: Path, seed: int, images: int) -> None:
    """`pixels.h5`, and `objects.h5`: the crop of each object (363 numbers, standardised), the codes
    of its centre and its box, in random order, as a perfect detector would give them."""
    provenance = {"seed": seed}
    with (
        PixelStoreWriter(folder / "pixels.h5", (3, SIDE, SIDE), provenance=provenance) as pixels,
        RegionStoreWriter(
            folder / "objects.h5", FEATURES, boxes=True, sizes=True, provenance=provenance
        ) as objects,
    ):
        for number in progress(range(images), desc="images", unit=" images", delay=1):
            of_scene, _, of_order = generators(seed, number)
            scene = draw_scene(of_scene)
            image = draw(scene)
            pixels.add(number, image.transpose(2, 0, 1))
            centres = of_order.permutation(scene.centres)
            crops = np.stack([crop(image, centre) for centre in centres])
            standardised = ((crops / 255 - CROP_MEAN) / CROP_STD).reshape(len(centres), -1)
            features = np.concatenate([standardised, position_codes(centres)], axis=1)
            objects.add(number, features, boxes(centres), size=(SIDE, SIDE))


if __name__ == "__main__":
    command(main)
