"""The Sort-of-CLEVR room: each stored question is answered again from what is stored of its image.

Scenes are seen in the pixels, or in the boxes and crops, by trying all places and shapes. Tests
that take `data` run on a small folder and, where slow tests run, on the full one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from itertools import chain, combinations, pairwise, product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from rooms import load_room

from mcan.errors import DataError, command

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


Scene = dict[str, Thing]
"""Colour -> object; one that was seen in regions is in their order."""


class Question(NamedTuple):
    number: int
    image: int
    text: str
    words: tuple[str, ...]
    answer_type: str
    subtype: str
    answer: str
    target: str

    @property
    def colour(self) -> str:
        return next(word for word in self.words if word in COLOURS)


def packed(rgb: NDArray[Any]) -> NDArray[Any]:
    """(..., 3) from 0 to 255 -> (...) as 0xRRGGBB."""
    return np.asarray(rgb.astype(int) @ [0x10000, 0x100, 1])


def shapes_in(window: NDArray[Any], colour: int) -> list[str]:
    """The shapes of `colour` that 11 x 11 pixels can show: none of the colour is outside the shape,
    and where it is missing inside, another object covers it."""
    own, drawn = window == colour, window != WHITE
    return [shape for shape, mask in MASKS.items() if not own[~mask].any() and drawn[mask].all()]


def seen_in_pixels(image: NDArray[np.uint8]) -> Scene:
    """Of an image (3, 75, 75)."""
    pixels = packed(image.transpose(1, 2, 0))
    assert set(np.unique(pixels).tolist()) == {*COLOURS.values(), WHITE}
    scene = {}
    for name, colour in COLOURS.items():
        reach = [
            range(max(5, where.max() - 5), min(69, where.min() + 5) + 1)
            for where in (pixels == colour).nonzero()
        ]
        found = [
            Thing(x, y, shape)
            for y, x in product(*reach)
            for shape in shapes_in(pixels[y - 5 : y + 6, x - 5 : x + 6], colour)
        ]
        assert len(found) == 1, (name, found)
        scene[name] = found[0]
    return scene


def seen_in_objects(boxes: NDArray[np.float32], features: NDArray[np.float16]) -> Scene:
    """Of the regions of an image, boxes (6, 4) and features (6, 395)."""
    names = {colour: name for name, colour in COLOURS.items()}
    corners = np.rint(boxes * 75).astype(int)
    np.testing.assert_allclose(boxes * 75, corners, atol=1e-4)
    np.testing.assert_array_equal(corners[:, 2:] - corners[:, :2], 11)
    scene = {}
    for (x, y, _, _), crop in zip(corners.tolist(), crops_of(features), strict=True):
        (shape,) = shapes_in(crop, crop[5, 5])
        scene[names[crop[5, 5]]] = Thing(x + 5, y + 5, shape)
    assert scene.keys() == COLOURS.keys()
    return scene


def crops_of(features: NDArray[np.float16]) -> NDArray[Any]:
    """(..., 395), crops standardised per channel -> (..., 11, 11) packed colours."""
    values = features[..., :363].astype(float).reshape(*features.shape[:-1], 11, 11, 3)
    return packed(np.rint(255 * (values * 0.44 + (0.65, 0.60, 0.37))))


def squared_distance(one: Thing, other: Thing) -> int:
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2


def right_answers(scene: Scene, text: str, colour: str) -> tuple[str, set[str]]:
    """The subtype of a question, and every answer that can be defended."""
    thing = scene[colour]
    others = [scene[name] for name in scene if name != colour]
    distances = [(squared_distance(thing, other), other.shape) for other in others]
    near, far = min(distances)[0], max(distances)[0]
    match text.replace(f" {colour} ", " C "):
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
    raise AssertionError(text)


class Data:
    """A prepared folder, read by the tables of data/README.md alone."""

    def __init__(self, folder: Path, images: int, held_out: int) -> None:
        self.sizes = {"train": images - held_out, "test": held_out}
        self.meta = json.loads((folder / "meta.json").read_text())
        self.vocabulary = json.loads((folder / "vocabulary.json").read_text())
        self.questions = {name: self._read(folder / f"{name}.h5") for name in self.sizes}
        self.all = [*self.questions["train"], *self.questions["test"]]
        with h5py.File(folder / "pixels.h5") as file:
            self.pixels = file["pixels"][()]
            assert file["image_ids"][()].tolist() == list(range(images))
        with h5py.File(folder / "objects.h5") as file:
            assert file["image_ids"][()].tolist() == list(range(images))
            assert file["offsets"][()].tolist() == list(range(0, 6 * images + 1, 6))
            assert file["sizes"][()].tolist() == [[75, 75]] * images
            self.boxes = file["boxes"][()].reshape(images, 6, 4)
            self.features = file["features"][()].reshape(images, 6, 395)
        regions = zip(self.boxes, self.features, strict=True)
        self.scenes = {
            "pixels": [seen_in_pixels(image) for image in self.pixels],
            "objects": [seen_in_objects(*pair) for pair in regions],
        }

    def _read(self, path: Path) -> list[Question]:
        with h5py.File(path) as file:
            texts = {name: file[name].asstr()[()] for name in file if file[name].dtype == "O"}
            codes = {name: file[name][()] for name in file if name not in texts}
        count = len(texts["questions"])
        assert codes["target_offsets"].tolist() == list(range(count + 1))
        assert codes["human_answer_offsets"].tolist() == list(range(count + 1))
        assert (codes["target_score"] == 1).all()
        words = np.array(self.vocabulary["tokens"])[codes["tokens"]].tolist()
        ends = codes["token_offsets"].tolist()
        columns = (
            codes["question_ids"].tolist(),
            codes["image_ids"][codes["image_index"]].tolist(),
            texts["questions"],
            [tuple(words[first:last]) for first, last in pairwise(ends)],
            texts["answer_type_names"][codes["answer_type"]],
            texts["question_type_names"][codes["question_type"]],
            texts["answer_strings"][codes["human_answers"]],
            np.array(self.vocabulary["answers"])[codes["target_index"]].tolist(),
        )
        return [Question(*row) for row in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def room() -> ModuleType:
    return load_room("sort_of_clevr")


def prepare(room: ModuleType, folder: Path, **options: int) -> Path:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert room.main([*words, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def data(
    room: ModuleType, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Data:
    folder = tmp_path_factory.mktemp("sort_of_clevr") / "prepared"
    if request.param == "full":
        return Data(prepare(room, folder), 10_000, 200)
    return Data(prepare(room, folder, images=150, held_out=30), 150, 30)


@pytest.mark.parametrize("source", ["pixels", "objects"])
def test_every_answer_is_the_only_right_one(data: Data, source: str) -> None:
    scenes = data.scenes[source]
    wrong = [
        question
        for question in data.all
        if right_answers(scenes[question.image], question.text, question.colour)
        != (question.subtype, {question.answer})
    ]
    assert wrong == []


def test_objects_are_cut_from_the_pixels(data: Data) -> None:
    assert data.scenes["objects"] == data.scenes["pixels"]
    for image, scene, features in zip(
        data.pixels, data.scenes["objects"], data.features, strict=True
    ):
        windows = [image[:, y - 5 : y + 6, x - 5 : x + 6] for x, y, _ in scene.values()]
        expected = packed(np.stack(windows).transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(crops_of(features), expected)


def test_scenes(data: Data) -> None:
    for scene in data.scenes["objects"]:
        assert all(5 <= thing.x < 70 and 5 <= thing.y < 70 for thing in scene.values())
        pairs = combinations(scene.values(), 2)
        assert min(squared_distance(*pair) for pair in pairs) >= 10**2
        for relation, colour in product(("closest to", "furthest from"), COLOURS):
            text = f"What shape is {relation} the {colour} object?"
            assert len(right_answers(scene, text, colour)[1]) == 1
    assert len({image.tobytes() for image in data.pixels}) == len(data.pixels)


def test_questions(data: Data) -> None:
    assert [question.number for question in data.all] == list(range(len(data.all)))
    assert [question.image for question in data.all] == [n // 20 for n in range(len(data.all))]
    kinds = Counter((question.image, question.answer_type) for question in data.all)
    assert len(kinds) == 2 * len(data.pixels)
    assert set(kinds.values()) == {10}
    for question in data.all:
        assert question.answer_type == ANSWER_TYPES[question.subtype]
        assert question.target == question.answer
        assert question.words == tuple(question.text.lower().rstrip("?").split())


def test_vocabulary_and_splits(data: Data) -> None:
    words = {word for question in data.all for word in question.words}
    assert data.vocabulary["tokens"][:2] == ["PAD", "UNK"]
    assert set(data.vocabulary["tokens"][2:]) == words
    assert data.vocabulary["answers"] == ["yes", "no", "rectangle", "circle", *"012345"]
    assert (data.meta["dataset"], data.meta["metric"]) == ("sort_of_clevr", "exact")
    for name, images in data.sizes.items():
        assert data.meta["splits"][name] == {
            "questions": 20 * images,
            "images": images,
            "words": sum(len(question.words) for question in data.questions[name]),
            "unknown_words": 0,
            "without_target": 0,
        }
    trained_on = {question.image for question in data.questions["train"]}
    assert not trained_on & {question.image for question in data.questions["test"]}


def assert_uniform(draws: Iterable[Hashable], of: Collection[Hashable]) -> None:
    """Chi-square within five of its standard deviations."""
    counts = Counter(draws)
    assert counts.keys() <= set(of)
    expected = counts.total() / len(of)
    statistic = sum((counts[one] - expected) ** 2 for one in of) / expected
    freedom = len(of) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_draws_are_uniform(data: Data) -> None:
    asked = [(question.colour, question.subtype) for question in data.all]
    assert_uniform(asked, list(product(COLOURS, ANSWER_TYPES)))
    shown = [
        (name, thing.shape) for scene in data.scenes["objects"] for name, thing in scene.items()
    ]
    assert_uniform(shown, list(product(COLOURS, MASKS)))
    places = chain.from_iterable(enumerate(scene) for scene in data.scenes["objects"])
    assert_uniform(places, list(product(range(6), COLOURS)))


def test_closest_is_not_the_object_itself(data: Data) -> None:
    """The usual generator gives the object itself the squared distance 999."""
    differ = 0
    for question in data.all:
        if question.subtype == "closest":
            scene = data.scenes["pixels"][question.image]
            distances = {
                name: squared_distance(scene[question.colour], scene[name]) or 999 for name in scene
            }
            usual = min(distances, key=lambda name: distances[name])
            if scene[usual].shape != question.answer:
                assert usual == question.colour
                differ += 1
    assert differ >= 5


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_reproducible_from_the_seed(room: ModuleType, tmp_path: Path) -> None:
    one = content(prepare(room, tmp_path / "one", images=20, held_out=5, seed=3))
    assert len(one) == 6
    assert content(prepare(room, tmp_path / "same", images=20, held_out=5, seed=3)) == one
    other = content(prepare(room, tmp_path / "other", images=20, held_out=5, seed=4))
    for name in ("pixels.h5", "objects.h5", "train.h5", "test.h5"):
        assert other[name] != one[name]
    assert other["vocabulary.json"] == one["vocabulary.json"]
    pixels = [Data(tmp_path / name, 20, 5).pixels for name in ("one", "other")]
    images = [{image.tobytes() for image in part} for part in pixels]
    assert not images[0] & images[1]


def test_an_image_does_not_depend_on_how_many_there_are(room: ModuleType, tmp_path: Path) -> None:
    few = Data(prepare(room, tmp_path / "few", images=8, held_out=5), 8, 5)
    many = Data(prepare(room, tmp_path / "many", images=20, held_out=1), 20, 1)
    for name in ("pixels", "boxes", "features"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:8])
    assert few.all == many.all[:160]


def test_counts_are_printed(
    room: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(room, tmp_path / "new" / "prepared", images=52, held_out=1, seed=7)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        [f"{folder}:", "seed", "7,", "10", "answers"],
        ["split", "questions", "images"],
        ["train", "1,020", "51"],
        ["test", "20", "1"],
    ]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--held-out is 0", ["--held-out", "0"]),
        ("--held-out is -1", ["--held-out", "-1"]),
        ("--held-out is 9", ["--images", "9", "--held-out", "9"]),
        ("--held-out is 200", ["--images", "9"]),
        ("--images", ["--images", "0", "--held-out", "1"]),
        ("--seed is -1", ["--seed", "-1"]),
    ],
)
def test_wrong_arguments_are_one_sentence(
    room: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    message: str,
    arguments: list[str],
) -> None:
    with pytest.raises(SystemExit) as status:
        command(lambda: room.main([*arguments, "--output", str(tmp_path / "prepared")]))
    assert status.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_existing_output_needs_force(room: ModuleType, tmp_path: Path) -> None:
    sizes = ["--images", "4", "--held-out", "1", "--seed", "1"]
    folder = prepare(room, tmp_path / "prepared", images=4, held_out=1)
    before = content(folder)
    with pytest.raises(DataError, match="already exists; replace it with --force"):
        room.main([*sizes, "--output", str(folder)])
    assert content(folder) == before
    assert room.main([*sizes, "--output", str(folder), "--force"]) == 0
    assert content(folder)["pixels.h5"] != before["pixels.h5"]
    (folder / "mine.txt").write_text("kept")
    replaced = content(folder)
    with pytest.raises(DataError, match=r"mine\.txt"):
        room.main([*sizes, "--output", str(folder), "--force"])
    assert content(folder) == replaced
    assert list(tmp_path.iterdir()) == [folder]
