"""Sort-of-CLEVR: each stored question is answered again from what is stored of its image.

Tests that take `data` run on a small folder and, where slow tests run, on the full one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from vqa_toys import examples_of, load_recipe, prepare, targets

from mcan.errors import DataError, RunError
from mcan.preparation.questions import Example

RECIPE = load_recipe("sort_of_clevr")
COLOURS = {"red": 0xFF0000, "blue": 0xFF, "green": 0xFF00}
COLOURS |= {"orange": 0xFF9C00, "yellow": 0xFFFF00, "gray": 0x808080}
WHITE = 0xFFFFFF
ANSWER_TYPES = dict.fromkeys(("shape", "left", "top"), "non-relational")
ANSWER_TYPES |= dict.fromkeys(("closest", "furthest", "count"), "relational")
SQUARES = np.arange(-5, 6) ** 2
MASKS = {"rectangle": np.ones((11, 11), bool), "circle": np.add.outer(SQUARES, SQUARES) <= 25}


class Thing(NamedTuple):
    x: int
    y: int
    shape: str

    def squared_distance(self, other: Thing) -> int:
        return (self.x - other.x) ** 2 + (self.y - other.y) ** 2


Scene = dict[str, Thing]
"""Colour -> object, in the order of the regions."""


def packed(rgb: NDArray[Any]) -> NDArray[Any]:
    """(..., 3) from 0 to 255 -> (...) as 0xRRGGBB."""
    return np.asarray(rgb.astype(int) @ [0x10000, 0x100, 1])


def seen(boxes: NDArray[np.float32], crops: NDArray[Any]) -> Scene:
    """The scene that the regions of an image show: boxes (6, 4) and crops (6, 11, 11)."""
    names = {colour: name for name, colour in COLOURS.items()}
    corners = np.rint(boxes * 75).astype(int)
    np.testing.assert_allclose(boxes * 75, corners, atol=1e-4)
    np.testing.assert_array_equal(corners[:, 2:] - corners[:, :2], 11)
    scene = {}
    for (x, y, _, _), crop in zip(corners.tolist(), crops, strict=True):
        # Nothing of the colour is outside the shape; inside, another object may cover it.
        own, drawn = crop == crop[5, 5], crop != WHITE
        (shape,) = (s for s, mask in MASKS.items() if not own[~mask].any() and drawn[mask].all())
        scene[names[crop[5, 5]]] = Thing(x + 5, y + 5, shape)
    assert scene.keys() == COLOURS.keys()
    return scene


def colour_in(question: Example) -> str:
    return next(word for word in question.question.split() if word in COLOURS)


def right_answers(scene: Scene, question: Example) -> tuple[str, set[str]]:
    """The subtype of a question, and every answer that can be defended."""
    colour = colour_in(question)
    thing = scene[colour]
    others = [scene[name] for name in scene if name != colour]
    distances = [(thing.squared_distance(other), other.shape) for other in others]
    near, far = min(distances)[0], max(distances)[0]
    match question.question.replace(f" {colour} ", " C "):
        case "What shape is the C object?":
            return "shape", {thing.shape}
        case "Is the C object on the left?":
            return "left", {"yes" if thing.x < 37.5 else "no"}
        case "Is the C object at the top?":
            return "top", {"yes" if thing.y < 37.5 else "no"}
        case "What shape is closest to the C object?":
            return "closest", {shape for distance, shape in distances if distance == near}
        case "What shape is furthest from the C object?":
            return "furthest", {shape for distance, shape in distances if distance == far}
        case "How many other objects have the shape of the C object?":
            return "count", {str(sum(other.shape == thing.shape for other in others))}
    raise AssertionError(question)


class Data:
    """A prepared folder and the scenes seen in its stores."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.prepared = prepare(RECIPE, folder, *arguments)
        splits = [self.prepared.split(name) for name in self.prepared.splits]
        self.questions = [example for split in splits for example in examples_of(split)]
        with (
            h5py.File(self.prepared.folder / "pixels.h5") as pixels,
            h5py.File(self.prepared.folder / "objects.h5") as objects,
        ):
            self.pixels = pixels["pixels"][()]
            for file in (pixels, objects):
                assert file["image_ids"][()].tolist() == list(range(len(self.pixels)))
            assert objects["offsets"][()].tolist() == list(range(0, 6 * len(self.pixels) + 1, 6))
            assert (objects["sizes"][()] == 75).all()
            self.boxes = objects["boxes"][()].reshape(-1, 6, 4)
            self.features = objects["features"][()].reshape(-1, 6, 395)
        # Crops are standardised per channel.
        values = self.features[..., :363].astype(float).reshape(-1, 6, 11, 11, 3)
        self.crops = packed(np.rint(255 * (values * 0.44 + (0.65, 0.60, 0.37))))
        self.scenes = [seen(*one) for one in zip(self.boxes, self.crops, strict=True)]


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Data:
    sizes = ["--images=150", "--held-out=30"] if request.param == "small" else []
    return Data(tmp_path_factory.mktemp("sort_of_clevr"), *sizes)


def test_every_answer_is_the_only_right_one(data: Data) -> None:
    for question in data.questions:
        expected = (question.question_type, set(question.answers))
        assert right_answers(data.scenes[question.image_id], question) == expected


def test_objects_are_cut_from_the_pixels_which_show_nothing_else(data: Data) -> None:
    for image, scene, crops in zip(data.pixels, data.scenes, data.crops, strict=True):
        pixels = packed(image.transpose(1, 2, 0))
        windows = [pixels[y - 5 : y + 6, x - 5 : x + 6] for x, y, _ in scene.values()]
        np.testing.assert_array_equal(crops, windows)
        for window in windows:
            window[:] = WHITE
        assert (pixels == WHITE).all()


def test_targets_are_the_regions_that_decide_the_answer(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    arguments = ["--output", str(data.prepared.folder), "--targets", "test", str(path)]
    assert RECIPE.main(arguments) == 0
    targets = json.loads(path.read_text())
    first = len(data.questions) - len(targets)
    assert first == data.prepared.meta["splits"]["train"]["questions"]
    for question in data.questions[first:]:
        scene, colour = data.scenes[question.image_id], colour_in(question)
        regions = {name: region for region, name in enumerate(scene)}
        distances = {n: scene[colour].squared_distance(t) for n, t in scene.items() if n != colour}
        found = targets[str(question.question_id)]
        assert found.pop("asked") == [regions[colour]]
        extremes = {"closest": min(distances.values()), "furthest": max(distances.values())}
        if extreme := extremes.get(question.question_type):
            expected = [regions[n] for n, distance in distances.items() if distance == extreme]
            assert found.pop(question.question_type) == sorted(expected)
        if question.question_type == "count":
            assert len(found["same shape"]) == int(question.answers[0])
            shapes = {list(scene.values())[region].shape for region in found.pop("same shape")}
            assert shapes <= {scene[colour].shape}
        assert not found
    with pytest.raises(RunError, match="exists; choose another --targets"):
        RECIPE.main(arguments)


def test_scenes(data: Data) -> None:
    for scene in data.scenes:
        assert all(5 <= thing.x < 70 and 5 <= thing.y < 70 for thing in scene.values())
        pairs = combinations(scene.values(), 2)
        assert min(one.squared_distance(other) for one, other in pairs) >= 10**2
    assert len({image.tobytes() for image in data.pixels}) == len(data.pixels)


def test_questions_and_splits(data: Data) -> None:
    images, vocabulary = len(data.pixels), data.prepared.vocabulary
    for number, question in enumerate(data.questions):
        assert (question.question_id, question.image_id) == (number, number // 20)
        assert question.answer_type == ANSWER_TYPES[question.question_type]
    kinds = Counter((question.image_id, question.answer_type) for question in data.questions)
    assert set(kinds.values()) == {10}
    assert targets(data.prepared, "test")[number] == {question.answers[0]: 1.0}
    assert vocabulary.answers == ("yes", "no", "rectangle", "circle", *"012345")
    words = {word for q in data.questions for word in q.question.lower().rstrip("?").split()}
    assert set(vocabulary.words) == words
    assert data.prepared.metric == "exact"
    held_out = {150: 30, 10_000: 200}[images]
    for name, expected in (("train", images - held_out), ("test", held_out)):
        counts = data.prepared.meta["splits"][name]
        assert (counts["questions"], counts["images"]) == (20 * expected, expected)
        assert (counts["unknown_words"], counts["bound"]) == (0, 1.0)


def assert_uniform(draws: Iterable[Hashable], of: Collection[Hashable]) -> None:
    """Chi-square within five of its standard deviations."""
    counts = Counter(draws)
    assert counts.keys() <= set(of)
    expected = counts.total() / len(of)
    statistic = sum((counts[one] - expected) ** 2 for one in of) / expected
    freedom = len(of) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_are_uniform(data: Data) -> None:
    asked = [(colour_in(question), question.question_type) for question in data.questions]
    assert_uniform(asked, list(product(COLOURS, ANSWER_TYPES)))
    shown = [(name, thing.shape) for scene in data.scenes for name, thing in scene.items()]
    assert_uniform(shown, list(product(COLOURS, MASKS)))
    places = [place for scene in data.scenes for place in enumerate(scene)]
    assert_uniform(places, list(product(range(6), COLOURS)))


def test_images_follow_from_the_seed_alone(tmp_path: Path) -> None:
    """Equal seeds give equal bytes; an image does not depend on how many there are."""
    sizes = "--images=20", "--held-out=5"
    one = Data(tmp_path / "one", *sizes, "--seed=3")
    same = Data(tmp_path / "same", *sizes, "--seed=3")
    other = Data(tmp_path / "other", *sizes, "--seed=4")
    files = sorted(one.prepared.folder.iterdir())
    assert len(files) == 6
    for file in files:
        assert (same.prepared.folder / file.name).read_bytes() == file.read_bytes()
    images = [{image.tobytes() for image in each.pixels} for each in (one, other)]
    assert not images[0] & images[1]
    few = Data(tmp_path / "few", "--images=8", "--held-out=5", "--seed=3")
    for name in ("pixels", "boxes", "features"):
        np.testing.assert_array_equal(getattr(few, name), getattr(one, name)[:8])
    assert few.questions == one.questions[:160]


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--held-out is 9; expected fewer than --images"):
        prepare(RECIPE, tmp_path, "--images", "9", "--held-out", "9")
    assert list(tmp_path.iterdir()) == []
