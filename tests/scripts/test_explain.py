"""scripts/explain.py: which questions it takes, what the page says of them, what it refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import Lab, Result, make_lab

from mcan.api import Model
from mcan.data.prepared import Prepared
from mcan.preparation.questions import Example
from mcan.preparation.recipe import write_prepared
from mcan.preparation.store_writer import ImageRows, StoreWriter

SIZES = {"splits": ("train", "val", "test"), "questions": 80, "boxes": True}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Runs `a` and `b`, a folder `pictures` without image 3, and the same as a store."""
    lab = make_lab(tmp_path_factory.mktemp("lab"), **SIZES)
    assert lab.train("a", "train.max_steps=8").status == 0
    assert lab.train("b", "train.max_steps=12").status == 0
    random = np.random.default_rng(0)
    (lab.folder / "pictures").mkdir()
    with StoreWriter(lab.folder / "pixels.h5") as writer:
        for number in (i for i in range(10) if i != 3):
            pixels = random.integers(0, 256, (16, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(lab.folder / "pictures" / f"COCO_val_{number:012d}.png")
            writer.add(ImageRows(number, pixels.transpose(2, 0, 1)))
    evaluated = lab.eval("runs/a", "--split", "val", "--top", "--full", "--output", "of_a")
    assert evaluated.status == 0
    assert lab.eval("runs/b", "--split", "val", "--output", "of_b").status == 0
    return lab


def explain(lab: Lab, *args: str) -> Result:
    return lab.execute("scripts/explain", ["runs/a", *args])


def cards(lab: Lab, *args: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The cards of the page, and all its data."""
    path = lab.folder / "explain.html"
    path.unlink(missing_ok=True)
    result = explain(lab, *args)
    assert result.status == 0, result.err
    assert result.out.startswith("written: explain.html (")
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL
    )
    assert found is not None
    data = json.loads(found[1])
    return data["cards"], data


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [int(card["facts"]["question"]) for card in found]


def predictions(lab: Lab, of: str = "of_a") -> dict[int, dict[str, Any]]:
    entries = json.loads((lab.folder / of / "predictions.json").read_text())
    return {entry["question_id"]: entry for entry in entries}


def test_cards_agree_with_eval(lab):
    found, data = cards(lab)
    expected = predictions(lab)
    assert len(set(ids(found))) == len(found) == 20
    assert data["title"] == "runs/a on val"
    assert data["notes"][0] == "20 of 20 questions: at random (seed 0)."
    for card, question in zip(found, ids(found), strict=True):
        entry = expected[question]
        assert (card["question"], card["facts"]["image"]) == (
            entry["question"],
            str(entry["image_id"]),
        )
        assert [a for a, _ in card["answers"]] == [top["answer"] for top in entry["top"]]
        probabilities = [top["probability"] for top in entry["top"]]
        np.testing.assert_allclose([p for _, p in card["answers"]], probabilities, atol=1e-5)
        assert card["facts"]["score"] == f"{entry['score']:.2f}"
        assert sum(count for _, count in card["people"]) == 10


def test_random_questions_are_a_function_of_the_seed(lab):
    first, again, other = (
        ids(cards(lab, "--random", "5", "--seed", seed)[0]) for seed in ("1", "1", "2")
    )
    assert first == again != other
    assert len(set(first)) == 5
    assert len(cards(lab, "--random", "500")[0]) == 20


def test_questions_by_id_in_the_order_given(lab):
    known = sorted(predictions(lab))
    chosen = [known[4], known[0], known[9]]
    found, _ = cards(lab, "--questions", *map(str, chosen), "evaluation.batch_size=3")
    assert ids(found) == chosen


def test_worst_are_the_mistakes_with_the_highest_probability(lab):
    wrong = [entry for entry in predictions(lab).values() if entry["score"] == 0]
    wrong.sort(key=lambda entry: -entry["top"][0]["probability"])
    found, data = cards(lab, "--worst", "3")
    assert ids(found) == [entry["question_id"] for entry in wrong[:3]]
    assert {card["verdict"] for card in found} == {"wrong"}
    assert data["notes"][0] == f"3 of 20 questions: the most confident of {len(wrong)} mistakes."


def test_changed_are_questions_with_another_answer(lab):
    ours, theirs = predictions(lab), predictions(lab, "of_b")
    changed = {i for i in ours if ours[i]["answer"] != theirs[i]["answer"]}
    assert 0 < len(changed) < 20
    found, data = cards(lab, "--changed", "runs/b")
    assert set(ids(found)) == changed
    for card, question in zip(found, ids(found), strict=True):
        assert card["remark"].startswith(f"runs/b: {theirs[question]['answer']} (")
    assert f"{len(changed)} that runs/b answers differently" in data["notes"][0]
    (worst,), _ = cards(lab, "--changed", "runs/b", "--worst", "1")
    assert worst["verdict"] == "wrong"
    assert set(ids([worst])) <= changed


def test_split_without_human_answers(lab):
    asked = [Example(1000 + n, n, "plus1 word2?", answers=[]) for n in range(3)]
    prepared = Prepared.open(lab.folder / "prepared")
    write_prepared(
        lab.folder / "asked",
        {"val": asked},
        prepared.vocabulary,
        dataset="asked",
        metric="vqa",
        sources={},
    )
    found, _ = cards(lab, "data.prepared=asked")
    assert ids(found) == [1000, 1001, 1002]
    assert all((card["verdict"], card["people"]) == ("", []) for card in found)
    (line,) = explain(lab, "data.prepared=asked", "--worst", "2", "--output", "w.html").errors()
    assert line == "error: split val has no human answers; --worst needs them"


@pytest.mark.parametrize("images", ["pictures", "pixels.h5"])
def test_pictures(lab, images):
    found, _ = cards(lab, "--images", images)
    of_3 = [card for card in found if card["facts"]["image"] == "3"]
    assert all(card["picture"] is None for card in of_3)
    others = [card["picture"] for card in found if card not in of_3]
    assert all(uri.startswith("data:image/png;base64,") for uri in others)
    assert len(set(others)) == len({card["facts"]["image"] for card in found} - {"3"})
    result = explain(lab, "--images", images, "--output", "with_pictures.html")
    (lab.folder / "with_pictures.html").unlink()
    warning = f"warning: image 3 cannot be shown: {images} does not contain it\n"
    assert result.err.count(warning) == bool(of_3)


def test_pictures_by_name(lab, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    found, _ = cards(lab, "--images", str(tmp_path), "--ids", "stem")
    assert {card["facts"]["image"] for card in found if card["picture"]} == {"0"}
    assert all(card["boxes"] and max(card["size"]) == 400 for card in found if not card["picture"])


def test_page_opens_with_the_unit_and_head_that_are_asked_for(lab):
    _, data = cards(lab, "--random", "1", "--unit", "image.0.GA", "--head", "1")
    assert (data["show"], data["head"]) == ("image.0.GA", 1)


def test_warnings_stand_on_the_page(lab):
    _, data = cards(lab, "--split", "train")
    assert data["notes"][1:] == ["Warning: the network was trained on 80 questions of this split."]


def test_checkpoint_instead_of_a_run_and_another_split(lab):
    path = next((lab.run("a") / "checkpoints").glob("step_*.pt"))
    result = lab.execute(
        "scripts/explain", [str(path), "--split", "test", "--output", "of_pt.html"]
    )
    assert result.status == 0, result.err
    assert (lab.folder / "of_pt.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("--figure 7", {"figure_7.png": b"\x89PNG"}),
        ("--figure 8 --output of_8.pdf", {"of_8.pdf": b"%PDF"}),
        (
            "--figure 7 --random 2 --output of_7.svg",
            {"of_7_1.svg": b"<?xml", "of_7_2.svg": b"<?xml"},
        ),
    ],
)
def test_figures(lab, arguments, written):
    result = explain(lab, *arguments.split(), "--images", "pictures")
    assert result.status == 0, result.err
    assert result.out.splitlines() == [f"written: {name}" for name in written]
    for name, start in written.items():
        assert (lab.folder / name).read_bytes().startswith(start)
    again = explain(lab, *arguments.split())
    (line,) = again.errors()
    assert line == f"error: {next(iter(written))}: exists; choose another --output"


def test_the_unit_and_the_images_are_checked_before_the_predictions(lab, monkeypatch):
    def forbid() -> None:
        monkeypatch.delattr(Model, "predict")

    for wrong in ("--unit image.7.GA", "--images nowhere"):
        arguments = ["runs/a", "--worst", "3", *wrong.split()]
        result = lab.execute("scripts/explain", arguments, forbid)
        assert result.status == 2
        assert len(result.errors()) == 1


FAULTS = {
    "unknown id": ("--questions 5 6", "split val has no question 5, 6"),
    "unknown id of the right kind": ("--questions none", "split val has no question none"),
    "unknown unit": (
        "--unit image.7.GA",
        "there is no attention 'image.7.GA'; choose from question.0.SA",
    ),
    "unknown head": (
        "--unit image.0.GA --head 2",
        "image.0.GA has no head 2, only heads 0 to 1",
    ),
    "no such split": ("--split nope", "there is no split 'nope'"),
    "page exists": (
        "--output config.yaml.html",
        "config.yaml.html: exists; choose another --output",
    ),
    "page of another kind": (
        "--output page.png",
        "--output page.png: choose a name that ends in .html",
    ),
    "figure of another kind": (
        "--figure 8 --output f.html",
        "--output f.html: choose a name that ends in .png or .pdf or .svg",
    ),
    "unit of a figure": ("--figure 7 --unit rollout", "remove them or --figure"),
    "head of nothing": ("--head 1", "--head needs --unit"),
    "head of roll-out": (
        "--unit rollout --head 1",
        "rollout combines all heads, so no head can be",
    ),
    "glimpse": ("--unit reduction --head 9", "question.reduction has no head 9"),
    "seed without a draw": ("--worst 3 --seed 1", "--seed is for random questions; remove it"),
    "ids without images": ("--ids coco", "--ids is for names of image files; give their folder"),
    "ids of a store": ("--ids coco --images pixels.h5", "--ids is for names of image files"),
    "two runs": ("runs/b", "name one run folder or checkpoint, not runs/a, runs/b"),
    "same run": ("--changed runs/a", "runs/a gives the same answers to all 20 questions"),
    "no such other run": ("--changed runs/none", "runs/none: neither a checkpoint nor a run"),
    "other data": ("--changed runs/b data.limit=0", "data.limit"),
    "no pictures": ("--images prepared", "prepared: no folder with images"),
    "no such folder": (
        "--images nowhere",
        "nowhere: no such folder of images or store of pixels",
    ),
    "a store of features": ("--images images.h5", "images.h5: contains regions, not pixels"),
    "no store": ("--images config.yaml", "config.yaml: "),
    "names without numbers": ("--images named", "the name 'cat' does not end in an integer id"),
    "wrong key": ("data.nope=1", "data.nope"),
    "no folder": ("--output none.html --images pictures --split val data.prepared=gone", "gone"),
}


@pytest.mark.parametrize(("arguments", "sentence"), FAULTS.values(), ids=FAULTS)
def test_faults_are_one_sentence(lab, arguments, sentence):
    (lab.folder / "config.yaml.html").write_text("kept")
    (lab.folder / "named").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(lab.folder / "named" / "cat.png")
    (lab.folder / "explain.html").unlink(missing_ok=True)
    result = explain(lab, *arguments.split())
    assert result.status == 2
    (line,) = result.errors()
    assert sentence in line
    assert not (lab.folder / "explain.html").exists()
    assert (lab.folder / "config.yaml.html").read_text() == "kept"
