"""`mcan.load`: answers against eval.py, every kind of image, questions that are not all seen."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import Lab, make_lab

import mcan
from mcan.api import Model, cell_boxes, open_picture
from mcan.data.store import open_store
from mcan.errors import ConfigError, DataError, RunError
from mcan.explain.explanation import Answer, Words
from mcan.nn.encoders import ConvStem
from mcan.preparation.extraction import extract_features
from mcan.preparation.extractors import GridExtractor
from mcan.preparation.images import Resize, read_image
from mcan.preparation.store_writer import FillOptions

PIXELS = {"model": {"image": {"input": "pixels", "stem": {"channels": [4, 6], "strides": [2, 2]}}}}


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Lab]:
    """A run `a` on regions with boxes, on regions with a grid beside them, and on pixels."""
    made = {}
    for kind in ("regions", "grid", "pixels"):
        folder = tmp_path_factory.mktemp(kind)
        options = {"kind": "pixels"} if kind == "pixels" else {"boxes": True, "grid": True}
        lab = make_lab(folder, PIXELS if kind == "pixels" else None, **options)
        grid = ["data.grid=[grid.h5]"] if kind == "grid" else []
        assert lab.train("a", "train.max_steps=8", *grid).status == 0
        made[kind] = lab
    return made


@pytest.fixture(params=["regions", "grid", "pixels"])
def lab(labs, request, monkeypatch) -> Lab:
    monkeypatch.chdir(labs[request.param].folder)
    return labs[request.param]


@pytest.fixture
def on_regions(labs, monkeypatch) -> Model:
    monkeypatch.chdir(labs["regions"].folder)
    return mcan.load("runs/a")


@pytest.fixture
def on_pixels(labs, monkeypatch) -> Model:
    monkeypatch.chdir(labs["pixels"].folder)
    return mcan.load("runs/a")


def test_answers_are_those_of_eval(lab):
    lab.eval("runs/a", "--top", "--full", "--output", "by_eval").errors()
    expected = json.loads((lab.folder / "by_eval/predictions.json").read_text())
    model = mcan.load("runs/a")
    pairs = [(entry["image_id"], entry["question"]) for entry in expected]
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    found = model.answer_all([pairs[i] for i in order])
    for i, answers in zip(order, found, strict=True):
        assert [answer.text for answer in answers] == [a["answer"] for a in expected[i]["top"]]
        np.testing.assert_allclose(
            [answer.probability for answer in answers],
            [a["probability"] for a in expected[i]["top"]],
            rtol=1e-5,
        )
    (lab.folder / "by_eval/predictions.json").unlink()
    (lab.folder / "by_eval/metrics.json").unlink()


def test_one_answer(on_regions):
    answers = on_regions.answer(3, "Word1 plus2 word3?", top=3)
    assert len(answers) == 3
    assert answers == on_regions.answer("3", "Word1 plus2 word3?", top=3)
    assert answers[0].probability >= answers[1].probability >= answers[2].probability
    assert all(answer.text in on_regions.vocabulary.answers for answer in answers)
    assert len(on_regions.answer(3, "word1", top=99)) == 5
    assert str(Answer("red", 0.1234)) == "red (12.3%)"


def test_explanations(lab):
    model = mcan.load("runs/a")
    dataset = model.split()
    rows = [4, 0, 7]
    scores = np.linspace(0, 1, len(dataset))
    explanations = list(model.explain_all(dataset, rows, top=2, scores=scores))
    predictions = model.predict(dataset)
    for row, seen in zip(rows, explanations, strict=True):
        assert seen.facts.question_id == dataset.question_ids()[row]
        assert seen.facts.score == pytest.approx(scores[row])
        assert seen.facts.human_answers
        best = model.vocabulary.answers[predictions.answers[row, 0]]
        assert seen.answers[0].text == best
        n, m = len(seen.words.tokens), len(seen.boxes)
        shapes = {name: seen.attention(name).shape for name in seen.names}
        assert shapes["question.0.SA"] == (n, n)
        assert shapes["image.0.SA"] == (m, m)
        assert shapes["image.0.GA"] == (m, n)
        assert (shapes["question.reduction"], shapes["image.reduction"]) == ((n,), (m,))
        for name in seen.names:
            one = seen.attention(name, head=0)
            np.testing.assert_allclose(one.sum(-1), np.ones(one.shape[:-1]), rtol=1e-5)
            heads = [seen.attention(name, head=h) for h in range(len(seen.weights[name]))]
            np.testing.assert_allclose(np.mean(heads, 0), seen.attention(name), rtol=1e-5)
        for words, regions in seen.methods.values():
            assert words.shape == (n,)
            assert regions.shape == (m,)
        assert seen.values("image.0.GA")[1] is None
        np.testing.assert_allclose(
            seen.values("image.0.SA", 1)[1], seen.attention("image.0.SA", 1).mean(0)
        )
        np.testing.assert_array_equal(
            np.concatenate(seen.values("reduction", 0)),
            np.concatenate([seen.attention(name, 0) for name in list(seen.weights)[-2:]]),
        )
    one = model.explain(dataset.question_ids()[0] and explanations[1].facts.image_id, "word1")
    assert one.facts is None
    with pytest.raises(RunError, match=r"^there is no attention 'image.9.GA'; choose from"):
        one.attention("image.9.GA")
    with pytest.raises(RunError, match=r"^image.0.GA has no head 2, only heads 0 to 1$"):
        one.attention("image.0.GA", 2)
    for name in ("rollout", "relevance"):
        with pytest.raises(RunError, match=f"^{name} combines all heads"):
            one.figure(name, head=0)


def test_one_question_is_explained_at_a_time(on_regions, monkeypatch):
    """The weights of many questions on many cells would not fit into memory."""
    observe, sizes = on_regions.observe, []

    def observed(dataset, rows, **options):
        sizes.append(len(rows))
        return observe(dataset, rows, **options)

    monkeypatch.setattr(on_regions, "observe", observed)
    explanations = on_regions.explain_all(on_regions.split(), range(3))
    next(explanations)
    assert sizes == [1]
    assert len(list(explanations)) == 2
    assert sizes == [1] * 3


def test_boxes_of_rows(labs, monkeypatch):
    monkeypatch.chdir(labs["grid"].folder)
    store, grid = open_store("images.h5"), open_store("grid.h5")
    seen = mcan.load("runs/a").explain(5, "word1")
    index = store.image_ids.tolist().index(5)
    _, boxes, _ = store.image(index)
    rows, columns = grid.image(grid.image_ids.tolist().index(5))[2]
    np.testing.assert_array_equal(seen.boxes[: len(boxes)], boxes)
    cells = seen.boxes[len(boxes) :]
    assert len(cells) == rows * columns
    np.testing.assert_allclose(cells[columns + 1], [1 / columns, 1 / rows, 2 / columns, 2 / rows])
    assert seen.size == tuple(store.sizes[index].tolist())


@pytest.mark.parametrize("side", [32, 33, 40, 47, 75])
def test_cells_of_a_stem_see_their_boxes(side):
    """All pixels of its box have an influence on a cell, through convolutions alone."""
    pixels = maps = torch.zeros(1, 3, side, side, requires_grad=True)
    for part in ConvStem((2,) * 4, (2,) * 4).modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.ones_(part.weight)
            maps = part(maps)
    cells, boxes = maps[0, 0].flatten(), cell_boxes(maps.shape[2:]) * side
    for cell, (x1, y1, x2, y2) in zip(cells, boxes, strict=True):
        (seen,) = torch.autograd.grad(cell, pixels, retain_graph=True)
        assert (seen[0, 0, int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] > 0).all()


def test_heat_map(on_regions):
    seen = on_regions.explain((np.ones((2, 6)), [[0, 0, 0.5, 1], [0.25, 0, 1, 0.5]]), "word1")
    heat = seen.heat_map(np.array([1.0, 3.0]), (8, 4))
    assert heat.shape == (4, 8)
    np.testing.assert_allclose(heat[0], [0.25, 0.25, 1, 1, 0.75, 0.75, 0.75, 0.75])
    np.testing.assert_allclose(heat[3], [0.25] * 4 + [0] * 4)


def test_features_of_a_store(on_regions):
    store = open_store("images.h5")
    rows, boxes, _ = store.image(2)
    by_id = on_regions.answer(store.image_ids.tolist()[2], "word1 plus1")
    given = on_regions.answer((np.asarray(rows), boxes), "word1 plus1")
    assert [a.text for a in given] == [a.text for a in by_id]
    np.testing.assert_allclose(
        [a.probability for a in given], [a.probability for a in by_id], rtol=1e-6
    )


def test_pictures(on_pixels, tmp_path):
    """A path, an image, an array, other modes, sizes: as the store has them."""
    store = open_store("images.h5")
    pixels = np.asarray(store.image(1)[0])[0].transpose(1, 2, 0)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "x.png")
    expected = on_pixels.answer(store.image_ids.tolist()[1], "word1")
    transparent = picture.convert("RGBA")
    larger = picture.resize((48, 48), Image.Resampling.NEAREST)
    for image in (tmp_path / "x.png", str(tmp_path / "x.png"), picture, pixels, transparent):
        assert on_pixels.answer(image, "word1") == expected
    assert on_pixels.explain(larger, "word1").size == (48, 48)
    assert on_pixels.explain(larger, "word1").picture.size == (48, 48)
    palette = picture.quantize(256, kmeans=1)
    assert on_pixels.answer(palette, "word1")[0].text == expected[0].text
    answers = on_pixels.answer_all([(picture, "word1"), (larger, "word2"), (picture, "word3")])
    assert answers[0][0].probability == pytest.approx(expected[0].probability, rel=1e-5)
    assert answers[2][0] != answers[0][0]


def test_pictures_of_pillow(on_pixels, tmp_path):
    """An open file gives what its path gives: upright, or an error in one line."""
    picture, exif = Image.new("RGB", (80, 40), "white"), Image.Exif()
    picture.paste("black", (0, 0, 30, 20))
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    picture.save(path, exif=exif)
    assert on_pixels.answer(Image.open(path), "word1") == on_pixels.answer(path, "word1")
    assert on_pixels.explain(Image.open(path), "word1").size == (40, 80)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="the image: image file is truncated"):
        on_pixels.answer(Image.open(cut), "word1")


def test_pictures_are_read_as_for_a_store(tmp_path):
    """A path, an open image and `extract_features.py` see the same pixels of any kind of file."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    first, second = map(Image.fromarray, pixels)
    exif = Image.Exif()
    exif[0x0112] = 8
    first.save(tmp_path / "turned.jpg", exif=exif)
    first.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("moving.gif", "moving.webp", "pages.tiff"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    Image.fromarray(pixels[0, :, :, 0].astype(np.uint16) * 257).save(tmp_path / "16_bits.png")
    for path in tmp_path.iterdir():
        seen, stored = open_picture(path), read_image(path, 0)
        np.testing.assert_array_equal(np.asarray(seen).transpose(2, 0, 1), stored.rows)
        np.testing.assert_array_equal(np.asarray(open_picture(Image.open(path))), np.asarray(seen))
    assert open_picture(tmp_path / "turned.jpg").size == (20, 30)
    grey = np.asarray(open_picture(tmp_path / "16_bits.png"))
    np.testing.assert_array_equal(grey[..., 0], pixels[0, :, :, 0])


def test_ids_of_numpy(on_regions):
    assert on_regions.answer(np.int64(1), "word1") == on_regions.answer(1, "word1")


def test_the_device_of_an_override(on_regions):
    with pytest.raises(RunError, match=r"train.device is cuda, but torch sees no CUDA device"):
        mcan.load("runs/a", overrides=["train.device=cuda"])
    assert mcan.load("runs/a", device="cuda", overrides=["train.device=cpu"]).device.type == "cpu"


def test_answers_in_another_thread(labs, monkeypatch):
    """As a server asks. Only the main thread may set handlers of signals."""
    monkeypatch.chdir(labs["regions"].folder)
    model = mcan.load("runs/a", overrides=["data.workers=1"])
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(model.answer, 1, "word1").result()
    assert found == model.answer(1, "word1")
    assert not multiprocessing.active_children()


def test_explanations_in_several_threads(on_regions):
    questions = ["word1", "word1 word2 plus1"]
    alone = [on_regions.explain(1, question) for question in questions]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(on_regions.explain, [1] * 40, questions * 20))
    for number, seen in enumerate(together):
        for name, weights in alone[number % 2].weights.items():
            np.testing.assert_allclose(seen.weights[name], weights, rtol=1e-4)


def test_pictures_for_features_of_an_extractor(labs, tmp_path, monkeypatch):
    """Where the checkpoint names the extractor, a picture is extracted as the store's were."""
    monkeypatch.chdir(tmp_path)
    drawn = np.random.default_rng(0).integers(0, 256, (10, 40, 50, 3), np.uint8)
    files = {}
    for number, pixels in enumerate(drawn):
        files[number] = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(files[number])
    resize = Resize(48, 64)
    options = FillOptions(tmp_path / "images.h5", command="test", dtype="float32")
    extract_features(GridExtractor("mobilenet_v3_small", "random"), files, options, resize=resize)
    lab = labs["regions"]
    prepared = f"data.prepared={lab.folder / 'prepared'}"
    (tmp_path / "config.yaml").write_text((lab.folder / "config.yaml").read_text())
    assert Lab(tmp_path).train("a", prepared, "train.max_steps=2").status == 0
    model = mcan.load("runs/a")
    by_id, by_file = model.answer(4, "word1"), model.answer(files[4], "word1")
    np.testing.assert_allclose(
        [a.probability for a in by_file], [a.probability for a in by_id], rtol=1e-4
    )
    assert model.explain(files[4], "word1").boxes.shape[0] > 1
    (tmp_path / "images.h5").unlink()
    again = mcan.load("runs/a").answer(files[4], "word1")
    assert again == by_file


@pytest.mark.parametrize(
    ("question", "words", "note"),
    [
        ("", Words(()), "the question has no words"),
        (" ?! ", Words(()), "the question has no words"),
        ("Zebra!", Words(("zebra",), ("zebra",)), "all words are unknown: zebra"),
        ("word1, zebra", Words(("word1", "zebra"), ("zebra",)), "unknown words: zebra"),
        ("word1 word2", Words(("word1", "word2")), ""),
        (
            "word1 zebra word2 plus1 word3",
            Words(("word1", "zebra", "word2"), ("zebra",), ("plus1", "word3")),
            "unknown words: zebra; cut off after 3 words: plus1, word3",
        ),
    ],
)
def test_words(labs, monkeypatch, question, words, note):
    monkeypatch.chdir(labs["regions"].folder)
    model = mcan.load("runs/a", overrides=["data.max_tokens=3"])
    answers = model.answer(1, question)
    assert answers.words == words
    assert answers.words.note == note
    seen = model.explain(1, question)
    assert seen.attention("question.0.SA").shape == (len(seen.labels),) * 2


def test_saved_models(lab, tmp_path):
    model = mcan.load("runs/a")
    with torch.no_grad():
        model.network.classifier.bias[3] += 100
    path = tmp_path / "adapted.pt"
    model.save(path)
    assert mcan.load(path).answer(1, "word1")[0] == model.answer(1, "word1")[0]
    assert model.answer(1, "word1")[0].text == model.vocabulary.answers[3]
    result = lab.eval(str(path))
    assert result.status == 0, result.err
    assert "trained on" not in result.err
    after = tmp_path / "after.pt"
    model.save(after, trained_on=[model.split("val"), model.split("train")])
    names = [(each["split"], each.get("before")) for each in mcan.load(after).checkpoint.trained_on]
    assert names == [("train", None), ("val", True), ("train", True)]
    questions = f"trained on {len(model.split('val'))} of these {len(model.split('val'))} questions"
    assert questions in lab.eval(str(after)).err
    with pytest.raises(RunError, match="exists; choose another name"):
        model.save(path)
    model.network.adapter = torch.nn.Linear(1, 1)
    with pytest.raises(RunError, match=r"adapter.bias, adapter.weight\); merge adapters first"):
        model.save(tmp_path / "other.pt")
    del model.network.adapter
    model.network.classifier = torch.nn.Linear(model.network.classifier.in_features, 2)
    with pytest.raises(RunError, match=r"its config \(classifier.bias, classifier.weight\)"):
        model.save(tmp_path / "other.pt")


def test_precision_and_mode(on_regions):
    rounded = mcan.load("runs/a", precision="bf16", device="cpu")
    expected = [a.probability for a in on_regions.answer(1, "word1")]
    found = [a.probability for a in rounded.answer(1, "word1")]
    assert found != expected
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert not on_regions.network.training
    assert rounded.explain(1, "word1").attention("image.0.GA").dtype == np.float32


NAN = np.full((2, 6), np.nan)
BOXES = np.ones((3, 4))


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("nope.png", r"'nope.png': no such file, and no image with this id in images.h5"),
        ("9" * 5000, r"'9+': no such file, and no image with this id in images.h5"),
        (99, r"99: no such file, and no image with this id in images.h5"),
        (Path("nope.png"), r"nope.png: not a readable image"),
        (Path("prepared"), r"prepared: not a readable image"),
        (Path("config.yaml"), r"config.yaml: not a readable image"),
        (("x",), r"the features are not numbers"),
        ((np.zeros((0, 6)),), r"features of shape \(0, 6\): expected finite numbers"),
        ((np.zeros(6),), r"features of shape \(6,\): expected finite numbers"),
        ((NAN,), r"features of shape \(2, 6\): expected finite numbers"),
        ((np.zeros((2, 5)),), r"runs/a/.*: takes features of width 6 and no grid, but .* width 5"),
        ((np.zeros((2, 6)), BOXES), r"boxes of 2 features: expected \(n, 4\) from 0 to 1"),
        ((np.zeros((3, 6)), 2 * BOXES), r"boxes of 3 features: expected \(n, 4\) from 0 to 1"),
        (Image.new("RGB", (4, 4)), r"the model's features were made by .*made_up.* id of a store"),
    ],
)
def test_images_that_are_none(on_regions, image, sentence):
    with pytest.raises((DataError, RunError), match=f"^{sentence}"):
        on_regions.answer(image, "word1")


def test_other_mistakes(on_regions, on_pixels, tmp_path):
    with pytest.raises(DataError, match="there are no questions"):
        on_regions.answer_all([])
    with pytest.raises(DataError, match="image ids cannot be mixed"):
        on_pixels.answer_all([(1, "word1"), (Image.new("RGB", (4, 4)), "word1")])
    with pytest.raises(DataError, match="the image: "):
        on_pixels.answer(np.zeros((4, 4, 7)), "word1")
    with pytest.raises(DataError, match="there is no split 'test'; there is train, val"):
        on_pixels.split("test")
    with pytest.raises(RunError, match="nowhere: neither a checkpoint nor a run folder"):
        mcan.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"evaluation\.precision"):
        mcan.load("runs/a", precision="fp8")
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        mcan.lode  # noqa: B018


def test_stores_that_are_not_here(labs, monkeypatch, tmp_path):
    """The checkpoint alone answers questions about pictures."""
    path = labs["pixels"].folder / "runs/a"
    monkeypatch.chdir(tmp_path)
    model = mcan.load(path)
    assert model.answer(Image.new("RGB", (9, 7)), "word1")
    with pytest.raises(DataError, match=r"^1 is not a file, and the image stores cannot be opened"):
        model.answer(1, "word1")


def test_importing_mcan_is_light():
    code = "import mcan, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
