"""The explanation page in a real browser: what its controls, keys and clicks do, and no more."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from made_up import ATTACKS, attack, made_up
from numpy.typing import NDArray
from PIL import Image

from mcan.explain.explanation import Explanation
from mcan.explain.page import write_page

PICTURE = Image.fromarray(np.random.default_rng(0).integers(60, 250, (30, 40, 3)).astype(np.uint8))
MADE = [
    made_up(number, picture=PICTURE if number != 1 else None, regions=5 + number)
    for number in range(6)
]
WIDTHS = pytest.mark.parametrize("width", [1200, 400])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page with spaces & #.html"
    write_page(path, MADE, "A page", notes=["6 questions"])
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Any:
    """The page at 1200 pixels; afterwards, nothing was complained of or asked for."""
    browser.open(page.as_uri())
    settle(browser)
    yield browser
    check_quiet(browser)


def check_quiet(browser: Browser) -> None:
    assert not browser.errors
    assert not browser.requests


def settle(browser: Browser, card: int = 0) -> None:
    """Wait until a card shows what the controls say."""
    browser.run(f"draw(page.cards[{card}])")


def canvas(browser: Browser, kind: str = "picture", card: int = 0) -> NDArray[np.uint8]:
    """(height, width, 4) what a canvas shows: the picture's, or the matrix's."""
    settle(browser, card)
    content = browser.run(f"page.cards[{card}].find('.{kind}').toDataURL()")
    with Image.open(BytesIO(base64.b64decode(content.split(",")[1]))) as image:
        return np.asarray(image.convert("RGBA"))


def words(browser: Browser, card: int = 0) -> list[float | None]:
    """The numbers below the words."""
    settle(browser, card)
    texts = browser.run(f"page.cards[{card}].buttons.map(b => b.lastChild.textContent)")
    return [float(text) if text.strip() else None for text in texts]


def text(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)}).innerText"))


def close(found: Any, expected: Any) -> bool:
    """Up to the digits that are shown, and 8 bits."""
    return bool(np.allclose(np.array(found, float), expected, atol=0.009))


def test_opens_with_the_reductions(opened):
    seen = MADE[0]
    assert close(words(opened), seen.methods["reduction"][0])
    assert text(opened, "#title") == "A page"
    assert text(opened, "#count") == "6 of 6 questions"
    assert opened.run("[...document.querySelectorAll('#show option')].map(o => o.value)") == [
        *("reduction", "rollout", "relevance", "question.SA", "image.SA", "image.GA")
    ]
    assert text(opened, ".facts").startswith("right · score 1.00 · question q0 · image 0")
    assert text(opened, ".network").split() == ["blue", "75.0", "%", "red", "20.0", "%"]
    assert text(opened, ".people").split() == ["blue", "7×", "navy", "3×"]


def expected_brightness(seen: Explanation, values: Any, size: tuple[int, int]) -> Any:
    return 0.2 + 0.8 * seen.heat_map(values, size)


@pytest.mark.parametrize("method", ["reduction", "rollout", "relevance"])
def test_methods_shade_picture_and_words(opened, method):
    opened.choose("#show", method)
    assert close(words(opened, 1), MADE[1].methods[method][0])
    found = canvas(opened, card=1)[..., 0] / 0x8C  # a blank of this grey, without a picture
    expected = expected_brightness(MADE[1], MADE[1].methods[method][1], found.shape[::-1])
    assert found.shape == (300, 400)
    # Outlines of boxes are drawn over it.
    assert np.mean(np.abs(found - expected) < 0.02) > 0.9
    option, caption = text(opened, f"#show option[value={method}]"), text(opened, ".shown")
    assert caption.startswith(f"{option}. ")
    assert ("together sum to 2" in caption) == (method == "rollout")


@WIDTHS
def test_controls_change_what_is_shown(browser, page, width):
    browser.open(page.as_uri(), width=width)
    shots = [canvas(browser)]
    for kind, layer, head in [
        *(("image.SA", "0", ""), ("image.SA", "1", ""), ("image.SA", "1", "2")),
        *(("question.SA", "1", "2"), ("image.GA", "1", "0"), ("image.GA", "0", "")),
    ]:
        for control, value in (("show", kind), ("layer", layer), ("head", head)):
            browser.choose(f"#{control}", value)
        modality, unit = kind.split(".")
        name, one = f"{modality}.{layer}.{unit}", int(head) if head else None
        on_words, on_regions = MADE[0].values(name, one)
        if on_words is not None:
            assert close(words(browser), on_words)
        else:
            assert words(browser) == [None] * 4
            shots.append(canvas(browser))
            assert on_regions is not None
            best = int(on_regions.argmax())
            assert text(browser, ".seen").startswith(f"Highest: region {best} (")
        shown = f"head {head}" if head else "mean of 3 heads"
        assert text(browser, ".shown").startswith(f"{name}, {shown}: ")
        check_matrix(browser, MADE[0].attention(name, one))
    assert len({shot.tobytes() for shot in shots}) == len(shots) == 4
    assert browser.run("document.documentElement.scrollWidth") <= width
    check_quiet(browser)


def check_matrix(browser: Browser, weights: NDArray[np.float32]) -> None:
    """The opacity of each cell is its weight over the highest."""
    shown = canvas(browser, "matrix")[..., 3]
    m = browser.run("(({left, top, w, h}) => ({left, top, w, h}))(page.cards[0].matrix)")
    x, y = (np.arange(size) + 0.5 for size in weights.shape[::-1])
    rows = (2 * (m["top"] + y * m["h"])).astype(int)
    columns = (2 * (m["left"] + x * m["w"])).astype(int)
    np.testing.assert_allclose(
        shown[np.ix_(rows, columns)] / 255, weights / weights.max(), atol=0.02
    )


def test_layers_and_heads_that_exist_are_offered(opened):
    def offered() -> Any:
        return [
            opened.run(f"[...get('{name}').options].map(o => o.value)")
            for name in ("layer", "head")
        ]

    assert offered() == [[""], [""]]
    opened.choose("#show", "image.GA")
    assert offered() == [["0", "1"], ["", "0", "1", "2"]]
    assert opened.run("get('layer').value") == "1"
    opened.choose("#layer", "0")
    opened.choose("#head", "2")
    opened.choose("#show", "question.SA")
    assert opened.run("[get('layer').value, get('head').value]") == ["0", "2"]
    opened.choose("#show", "rollout")
    assert opened.run("[get('layer').disabled, get('head').disabled]") == [True, True]


def test_a_word_as_query_and_as_key(opened):
    seen = MADE[0]
    opened.choose("#show", "question.SA")
    opened.click("article .words button:nth-child(3)")
    assert close(words(opened), seen.attention("question.1.SA")[2])
    assert opened.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    assert "“is” attends to words" in text(opened, ".shown")
    opened.choose("#show", "image.GA")
    settle(opened)
    column = seen.attention("image.1.GA")[:, 2]
    assert f"region {column.argmax()} ({column.max():.2f})" in text(opened, ".seen")
    assert "regions attend to “is”" in text(opened, ".shown")
    opened.choose("article .query", "regions 4")
    assert close(words(opened), seen.attention("image.1.GA")[4])
    opened.choose("article .query", "")
    assert close(words(opened), seen.attention("image.1.GA").mean(0))


def test_a_region_as_query_by_a_click_on_picture_or_matrix(opened):
    seen = MADE[0]
    areas = np.prod(seen.boxes[:, 2:] - seen.boxes[:, :2], 1)
    smallest = int(areas.argmin())
    x, y = seen.boxes[smallest].reshape(2, 2).mean(0).tolist()
    opened.choose("#show", "image.GA")
    before = canvas(opened)
    opened.click("article .picture", x, y)
    assert close(words(opened), seen.attention("image.1.GA")[smallest])
    assert (canvas(opened) != before).any(), "its outline"
    other = (smallest + 1) % 5
    m = opened.run(
        f"(m => [m.top + {other + 0.5} * m.h, m.left + 0.5 * m.w, m.width])(page.cards[0].matrix)"
    )
    height = opened.run("document.querySelector('.matrix').clientHeight")
    opened.click("article .matrix", m[1] / m[2], m[0] / height)
    assert close(words(opened), seen.attention("image.1.GA")[other])
    value = seen.attention("image.1.GA")[other, 0]
    assert text(opened, ".value") == f"region {other} on “what”: {value:.2f}"
    opened.press("Escape")
    assert close(words(opened), seen.attention("image.1.GA").mean(0))


@WIDTHS
def test_filters(browser, page, width):
    browser.open(page.as_uri(), width=width)

    def left() -> Any:
        shown = browser.run("page.cards.map((c, i) => c.element.offsetParent ? i : -1)")
        found = [number for number in shown if number >= 0]
        assert text(browser, "#count") == f"{len(found)} of 6 questions"
        return found

    browser.choose("#result", "wrong")
    assert left() == [1, 4]
    browser.choose("#answer_type", "number")
    assert left() == [1]
    browser.choose("#result", "right")
    assert left() == [3]
    browser.choose("#result", "partly")
    browser.choose("#answer_type", "other")
    assert left() == [2]
    browser.choose("#result", "")
    browser.choose("#answer_type", "")
    assert left() == [0, 1, 2, 3, 4, 5]
    for typed, expected in [("Q4", [4]), ("NAVY", [0, 1, 2, 3, 4, 5]), ("nothing such", [])]:
        browser.type("#search", typed)
        assert left() == expected
    check_quiet(browser)


def test_keys_go_to_the_next_and_the_previous_question(opened):
    def current() -> Any:
        return opened.run("page.cards.findIndex(c => c.element.contains(document.activeElement))")

    opened.choose("#result", "wrong")
    visited = []
    for key in ("j", "j", "j", "k", "ArrowRight", "ArrowLeft", "k"):
        opened.press(key)
        visited.append(current())
    assert visited == [1, 4, 4, 1, 4, 1, 1]
    top = opened.run("page.cards[1].element.getBoundingClientRect().top")
    bar = opened.run("get('view').getBoundingClientRect().bottom")
    assert bar <= top < 300, "below the controls"
    opened.choose("#result", "")
    opened.type("#search", "j")
    assert opened.run("get('search').value") == "j"
    assert opened.run("document.activeElement.id") == "search"


def test_everything_is_reached_and_used_by_keyboard(opened):
    opened.run("get('search').focus()")
    reached = []
    for _ in range(3):
        opened.press("Tab")
        reached.append(opened.run("document.activeElement.id || document.activeElement.innerText"))
    assert [name.split("\n")[0] for name in reached] == ["show", "what", "color"]
    opened.choose("#show", "question.SA")
    opened.run("document.querySelector('article .words button').focus()")
    opened.press("Enter")
    assert close(words(opened), MADE[0].attention("question.1.SA")[0])
    unnamed = opened.run(
        "[...document.querySelectorAll('select, input, canvas')].filter(e => "
        "!e.labels?.length && !e.getAttribute('aria-label')).length"
    )
    assert unnamed == 0


def test_opens_with_the_attention_that_was_asked_for(browser, tmp_path):
    path = tmp_path / "page.html"
    write_page(path, MADE[:1], "A page", show="image.0.GA", head=1)
    browser.open(path.as_uri())
    assert close(words(browser), MADE[0].attention("image.0.GA", 1).mean(0))
    check_quiet(browser)


def test_opens_with_the_reductions_if_units_are_left_out(browser, tmp_path):
    path = tmp_path / "page.html"
    large = made_up(regions=100, heads=8)
    left_out = write_page(path, [large], "A page", show="image.0.GA", head=1, limit=40_000)
    assert "the page omits the units" in left_out[0]
    browser.open(path.as_uri())
    assert close(words(browser), large.methods["reduction"][0])
    assert left_out[0] in text(browser, "#notes")
    check_quiet(browser)


def test_without_boxes_only_words_and_matrix(browser, tmp_path):
    path = tmp_path / "page.html"
    write_page(path, [made_up(words=(), boxes=False, facts=None)], "A page", show="image.1.SA")
    browser.open(path.as_uri())
    settle(browser)
    assert browser.run("document.querySelector('.picture').hidden")
    assert text(browser, ".seen").startswith("The positions of the regions are unknown")
    assert not browser.run("document.querySelector('.matrix').hidden")
    assert text(browser, ".note") == "the question has no words"
    assert text(browser, ".facts") == "not scored · 1 of 1"
    check_quiet(browser)


@WIDTHS
def test_texts_that_attack_are_shown_as_text(browser, tmp_path, width):
    path = tmp_path / f"page {ATTACKS['quotes'][:20].replace('/', '')}.html"
    seen = [attack(hostile) for hostile in ATTACKS.values()]
    notes = list(ATTACKS.values())
    write_page(path, seen, ATTACKS["script"], notes=notes, remarks=notes)
    browser.open(path.as_uri(), width=width)
    browser.run("Promise.all(page.cards.map(draw))")
    for control in browser.run("[...get('show').options].map(o => o.value)"):
        browser.choose("#show", control)
        browser.run("Promise.all(page.cards.map(draw))")
    assert browser.run("window.attacked") is None
    assert browser.run("document.title") == ATTACKS["script"]
    shown = "page.cards.map(c => c.element.querySelector('{}').textContent)"
    whole = [hostile.replace("\ud800", "\ufffd") for hostile in ATTACKS.values()]
    for place in (".remark", ".network bdi", ".people bdi", ".cut"):
        found = browser.run(f"{shown.format(place)}.map(t => t.toWellFormed())")
        assert found == whole, place
    assert browser.run(shown.format(".question"))[-1] == "(no question)"
    counts = "['script', 'img', 'b', 'iframe'].map(t => document.querySelectorAll(t).length)"
    assert browser.run(counts) == [2, 0, 0, 0]
    assert browser.run("document.documentElement.scrollWidth") <= width
    # Left-to-right text after it is not turned around.
    assert browser.run("getComputedStyle(document.querySelector('bdi')).unicodeBidi") == "isolate"
    check_quiet(browser)


def test_nothing_could_leave_the_page_or_be_run_in_it(opened):
    """The policy holds: what a hole in the script could do is refused."""
    blocked = """(async () => {
      const done = [];
      document.addEventListener('securitypolicyviolation', e => done.push(e.effectiveDirective));
      try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>') } catch { done.push('html') }
      const image = new Image();
      image.src = 'http://localhost:9/x.png';
      await fetch('http://localhost:9/').catch(() => done.push('fetch'));
      await new Promise(resolve => setTimeout(resolve, 100));
      return done;
    })()"""
    done = opened.run(blocked)
    assert {"html", "fetch", "img-src", "connect-src"} <= set(done)
    assert not opened.requests
    opened.errors.clear()  # the browser reports each refusal
