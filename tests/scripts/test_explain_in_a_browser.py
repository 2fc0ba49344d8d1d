"""scripts/explain.py on 100 questions of three kinds of data, opened in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from PIL import Image, ImageDraw
from runs import ROOT, Lab, entry_point, make_lab
from test_quickstart import make_wheel

LARGE = {"depth": 6, "heads": 8, "hidden_size": 32, "cascade": "encoder_decoder"}


def easy_vqa(folder: Path) -> list[str]:
    """Pixels and cells of a stem; the pictures are in the store."""
    digest = make_wheel(folder / "w.whl", {"train": 20, "test": 40})
    raw = ["--raw", str(folder / "w.whl"), "--output", str(folder / "prepared")]
    assert entry_point("data/easy_vqa/prepare").main(raw, sha256=digest) == 0
    config = ROOT / "configs" / "easy_vqa" / "quickstart.yaml"
    return train(folder, config, "data.images=[prepared/images.h5]")


def sort_of_clevr(folder: Path) -> list[str]:
    """Objects with boxes; the pictures are in a store of pixels."""
    sizes = ["--images=60", "--held-out=20", "--output", str(folder / "prepared")]
    assert entry_point("data/sort_of_clevr/prepare").main(sizes) == 0
    config = ROOT / "configs" / "sort_of_clevr" / "mcan_objects.yaml"
    run = train(folder, config, "data.images=[prepared/objects.h5]")
    return [*run, "--images", "prepared/pixels.h5"]


def boxes(folder: Path) -> list[str]:
    """Made-up features of 36 boxes over drawings, with as many weights as MCAN-small has."""
    make_lab(folder, {"model": LARGE}, questions=400, regions=(36, 36), boxes=True)
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(10):
        drawing = Image.new("RGB", (640, 480), "white")
        for colour in ("red", "green", "blue"):
            left, top = random.integers(0, 400, 2).tolist()
            ImageDraw.Draw(drawing).ellipse((left, top, left + 200, top + 150), colour)
        drawing.save(folder / "pictures" / f"{number}.jpg")
    return [*train(folder, folder / "config.yaml"), "--images", "pictures"]


def train(folder: Path, config: Path, *changes: str) -> list[str]:
    arguments = [str(config), "name=run", "data.prepared=prepared", "train.max_steps=3", *changes]
    assert Lab(folder).execute("train", arguments).status == 0
    return ["runs/run"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [easy_vqa, sort_of_clevr, boxes])
def test_hundred_questions(browser: Browser, tmp_path: Path, make: Any) -> None:
    arguments = [*make(tmp_path), "--random", "100"]
    result = Lab(tmp_path).execute("scripts/explain", arguments)
    assert result.status == 0, result.err
    path = tmp_path / "explain.html"
    assert path.stat().st_size < 25_000_000
    for width in (1200, 400):
        browser.open(path.as_uri(), width=width)
        assert browser.run("get('count').textContent") == "100 of 100 questions"
        pictures = {picture(browser)}
        for name in browser.run("[...show.options].map(option => option.value)")[1:]:
            browser.choose("#show", name)
            for number in browser.run("[...head.options].map(option => option.value)"):
                browser.choose("#head", number)
                if browser.run("look(page.cards[0]).regions !== undefined"):
                    pictures.add(picture(browser))
        heads = browser.run("Math.max(...Object.values(kinds).map(kind => kind.heads))")
        assert len(pictures) >= 2 + heads  # an untrained network may have two alike
        filters(browser)
        browser.press("j")
        browser.press("ArrowRight")
        assert browser.run("page.cards[1].element === document.activeElement")
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert not browser.errors
        assert not browser.requests


def picture(browser: Browser) -> str:
    browser.run("draw(page.cards[0])")
    return str(browser.run("page.cards[0].find('.picture').toDataURL()"))


def filters(browser: Browser) -> None:
    """The parts that each filter leaves are the whole."""
    for name in ("result", "answer_type", "question_type"):
        values = browser.run(f"[...get({json.dumps(name)}).options].map(option => option.value)")
        counts = []
        for value in reversed(values):
            browser.choose(f"#{name}", value)
            counts.append(
                browser.run("page.cards.filter(card => card.element.offsetParent).length")
            )
        assert counts[-1] == sum(counts[:-1]) == 100
        assert 0 not in counts
