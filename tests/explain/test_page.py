"""The explanation page as a file: what it holds, how exact it is, how large it gets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tomllib
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import ATTACKS, attack, made_up
from PIL import Image

from mcan.errors import RunError
from mcan.explain.explanation import Answer, Answers, Explanation, Words
from mcan.explain.page import SIDE, quantise, write_page

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """The parts of a written page; `texts` by tag, `tags` with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        policies = [a for t, a in self.tags if t == "meta" and "http-equiv" in a]
        assert [a["http-equiv"] for a in policies] == ["Content-Security-Policy"]
        self.policy = str(policies[0]["content"])
        self.data = json.loads(self.texts["script"][0])
        self.cards: list[dict[str, Any]] = self.data["cards"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style", "title"):
            self.texts[self.inside][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def written(path: Path, *explanations: Explanation, **options: Any) -> Page:
    write_page(path, explanations, options.pop("title", "A page"), **options)
    return Page(path)


def unpack(card: dict[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a card, (h, rows, columns), read as the format says."""
    content = zlib.decompress(base64.b64decode(card["weights"]))
    heads = sum(entry[1] for entry in card["layout"])
    scales = list(np.frombuffer(content, "<f4", heads))
    numbers, found = np.frombuffer(content, np.uint8, offset=4 * heads), {}
    for name, h, rows, columns, *_ in card["layout"]:
        part, numbers = np.split(numbers, [h * rows * columns])
        scale, scales = np.array(scales[:h], np.float64), scales[h:]
        found[name] = part.reshape(h, rows, columns) * scale[:, None, None]
    assert not len(numbers)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


def test_policy_admits_nothing_but_the_script_and_the_style_of_the_page(path):
    page = written(path, made_up())
    _, script = page.texts["script"]
    rules = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest(script)}'",
        "style-src": f"'sha256-{digest(page.texts['style'][0])}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
    }
    # Before the policy, nothing but the charset.
    assert [tag for tag, _ in page.tags][:5] == ["html", "head", "meta", "meta", "meta"]
    types = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert types == ["application/json", None]
    for tag, attributes in page.tags:
        assert not attributes.keys() & {"src", "href", "style", "srcset", "action"}, tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", script)
    assert not re.search(r"https?://", page.source)


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_weights_are_within_half_a_step_of_8_bits(path):
    seen = made_up(3, regions=7)
    found = unpack(written(path, seen).cards[0])
    expected = dict(seen.weights)
    for name, (words, regions) in seen.methods.items():
        expected |= {f"{name}.words": words[None], f"{name}.regions": regions[None]}
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        exact = weights.reshape(found[name].shape)
        most = exact.max(axis=(1, 2), keepdims=True)
        assert (np.abs(found[name] - exact) <= most / 510 * (1 + 1e-6)).all(), name


def test_quantise_takes_what_a_broken_network_makes():
    values = np.array([[[np.nan, np.inf, -1.0, 0.5]], [[0.0, 0.0, 0.0, 0.0]]])
    rounded, scale = quantise(values)
    np.testing.assert_array_equal(rounded, [[[0, 0, 0, 255]], [[0, 0, 0, 0]]])
    np.testing.assert_allclose(scale, [0.5 / 255, 0], rtol=1e-6)


def test_card_holds_what_is_known_of_a_question(path):
    words = Words(("what", "colour"), ("colour",), ("is", "it"))
    seen = made_up(answers=Answers([Answer("blue", 0.75), Answer("?", float("nan"))], words))
    (card,) = written(path, seen, remarks=["other: red"], notes=["One."]).cards
    assert card["answers"] == [["blue", 0.75], ["?", None]]
    assert card["people"] == [["blue", 7], ["navy", 3]]
    assert card["facts"] == {
        "score": "1.00", "question": "q0", "image": "0", "answer type": "other",
        "question type": "what color",
    }  # fmt: skip
    assert (card["verdict"], card["remark"], card["words"]) == (
        "right",
        "other: red",
        ["what", "colour"],
    )
    assert (card["unknown"], card["cut"]) == (["colour"], ["is", "it"])
    assert card["note"] == "unknown words: colour; cut off after 2 words: is, it"
    np.testing.assert_allclose(card["boxes"], seen.boxes, atol=5e-5)
    layout = {name: rest for name, *rest in card["layout"]}
    assert layout["image.1.GA"] == [3, 5, 4, "regions", "words", 3]
    assert layout["question.0.SA"] == [3, 4, 4, "words", "words", 3]
    assert layout["image.reduction"] == [1, 1, 5]


@pytest.mark.parametrize(("score", "verdict"), [(0, "wrong"), (0.3, "partly"), (1, "right")])
def test_verdict(path, score, verdict):
    seen = made_up()
    facts = replace(seen.facts, score=score)
    assert written(path, replace(seen, facts=facts)).cards[0]["verdict"] == verdict
    assert written(path, replace(seen, facts=replace(facts, score=None))).cards[0]["verdict"] == ""


def test_nothing_known_but_words_and_weights(path):
    seen = made_up(words=(), boxes=False, facts=None, size=None)
    (card,) = written(path, seen).cards
    assert (card["boxes"], card["picture"], card["facts"], card["people"]) == (None, None, {}, [])
    assert (card["words"], card["note"]) == (["(none)"], "the question has no words")
    assert card["size"] == [SIDE, SIDE]


@pytest.mark.parametrize(
    ("size", "kind", "stored", "shown"),
    [
        ((1000, 500), "jpeg", (400, 200), [400, 300]),
        ((64, 64), "png", (64, 64), [400, 300]),
        ((1, 3000), "jpeg", (1, 400), [400, 300]),
    ],
)
def test_pictures_are_small_and_have_the_shape_of_the_image(path, size, kind, stored, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    (card,) = written(path, made_up(picture=Image.fromarray(pixels))).cards
    head, content = card["picture"].split(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(BytesIO(base64.b64decode(content))) as opened:
        assert opened.size == stored
        if kind == "png":
            np.testing.assert_array_equal(np.asarray(opened), pixels)
    assert card["size"] == shown  # of 640 x 480: the network may have read it in another shape


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_texts_stay_in_the_data(path, text):
    usual = written(path, made_up())
    page = written(path, attack(text), title=text, notes=[text], remarks=[text])
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in usual.tags]
    assert page.texts["script"][1] == usual.texts["script"][1]
    assert page.policy == usual.policy
    assert "<" not in page.texts["script"][0]
    (card,) = page.cards
    assert (card["question"], card["remark"], page.data["title"]) == (text,) * 3
    assert card["answers"][0] == [text, 0.9]
    assert card["people"] == [[text, 1], ["yes", 1]]
    assert card["cut"] == [text, text]
    assert page.texts["title"] == [" ".join(text.split())[:200].replace("\ud800", "\ufffd")]


def test_hundred_questions_with_36_boxes_fit(path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    words = tuple(f"word{number}" for number in range(14))
    four = [made_up(number, words, 36, 6, 8, picture=Image.fromarray(noise)) for number in range(4)]
    left_out = write_page(path, four * 25, "Hundred")
    assert not left_out
    assert path.stat().st_size <= 25_000_000
    assert len(Page(path).cards) == 100


def test_what_exceeds_the_limit_is_left_out_and_said(path):
    made = [made_up(number, regions=40, heads=8) for number in range(6)]
    written(path, *made)
    whole = path.stat().st_size
    for limit, stored in ((whole - 1, 8), (40_000, 2)):
        left_out = write_page(path, made, "Small", limit=limit)
        page = Page(path)
        assert path.stat().st_size <= limit
        assert len(page.cards) == 6
        assert page.data["notes"] == left_out
        assert len(left_out) == 1
        assert [len(card["layout"]) - 6 for card in page.cards] == [stored] * 6
        assert {entry[1] for entry in page.cards[0]["layout"]} == {1}
        if stored == 8:
            found, exact = unpack(page.cards[5]), made[5].weights["image.1.SA"].mean(0)
            np.testing.assert_allclose(found["image.1.SA"][0], exact, atol=exact.max() / 509)


def test_later_questions_are_left_out_last(path):
    made, asked = [made_up(number) for number in range(50)], []

    def ask():
        for seen in made:
            asked.append(seen)
            yield seen

    left_out = write_page(path, ask(), "Small", limit=45_000)
    count = len(Page(path).cards)
    assert path.stat().st_size <= 45_000
    assert 0 < count < 50
    assert left_out[-1].startswith(f"Only the first {count} questions fit into 0.045 MB")
    assert len(asked) == count + 1, "the others are not even computed"


@pytest.mark.parametrize("show", ["image.7.GA", "GA", "", "<b>"])
def test_unknown_attention(path, show):
    with pytest.raises(RunError, match="there is no attention") as caught:
        write_page(path, [made_up()], "A page", show=show)
    assert "image.1.GA" in str(caught.value)
    assert not path.exists()


def test_unknown_head(path):
    with pytest.raises(RunError, match=r"image.1.GA has no head 3, only heads 0 to 2"):
        write_page(path, [made_up()], "A page", show="image.1.GA", head=3)


def test_template_is_shipped_with_the_package():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    (pattern,) = options["package-data"]["mcan.explain"]
    assert [p.name for p in (ROOT / "mcan" / "explain").glob(pattern)] == ["page.html"]
