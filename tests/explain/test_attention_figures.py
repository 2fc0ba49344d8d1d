"""Figures of attention: what they show, for every kind of explanation, and how they are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import ATTACKS, attack, made_up
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mcan.errors import RunError
from mcan.explain.explanation import Answer, Answers, Explanation, Words
from mcan.explain.figures import draw_explanation, draw_figure_7, draw_figure_8, save_figure

PICTURE = Image.new("RGB", (64, 48), (200, 100, 0))
LONG = tuple(f"word{number}" for number in range(30))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))]


def shown_words(figure: Figure) -> list[str]:
    """The words in lines, in the order of reading."""
    return [text.get_text() for text in figure.axes[0].texts if not text.get_text().endswith("%")]


def assert_inside(figure: Figure) -> None:
    """All of the figure's own texts are inside it."""
    figure.draw_without_rendering()
    for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
        extent = text.get_window_extent()
        assert extent.x0 >= -3, text.get_text()
        assert extent.x1 <= figure.bbox.x1 + 3, text.get_text()
        assert extent.y0 >= -3, text.get_text()
        assert extent.y1 <= figure.bbox.y1 + 3, text.get_text()


CASES = {
    "regions": {"picture": PICTURE},
    "no picture": {},
    "no picture, no size": {"size": None},
    "no boxes": {"boxes": False},
    "one box": {"regions": 1, "picture": PICTURE},
    "100 boxes": {"regions": 100, "layers": 6, "heads": 8},
    "one word": {"words": ("what",)},
    "30 words": {"words": LONG, "regions": 36, "layers": 6},
    "long words": {"words": ("x" * 300, "W" * 50, "\u202eword", "a\x00b") * 3},
    "no words": {"words": (), "answers": Answers([Answer("yes", 1.0)], Words(()))},
    "wide": {"picture": Image.new("L", (3000, 2))},
    "high": {"picture": Image.new("RGBA", (1, 500))},
    "dot": {"picture": Image.new("RGB", (1, 1))},
    "no facts": {"facts": None},
    "many answers": {"answers": Answers([Answer("a" * 99, 0.01)] * 99, Words(("a",)))},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_kind_of_explanation_is_drawn(options):
    seen = made_up(**options)
    for name in ("reduction", "image.0.GA", "question.reduction"):
        assert_inside(draw_explanation(seen, name))
    assert_inside(draw_explanation(seen, "image.1.SA", head=2))
    assert_inside(draw_figure_7(seen))
    assert_inside(draw_figure_8([seen] * 2))


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_texts_are_only_shown(tmp_path, text, suffix):
    path = tmp_path / f"seen.{suffix}"
    seen = attack(text)
    if len(seen.labels) > 40:
        seen = attack(text[:100])
    save_figure(draw_explanation(seen), path)
    assert b"<script" not in path.read_bytes()
    save_figure(draw_figure_8([seen]), path)


def test_formulas_are_not_typeset():
    assert "$x^2$" in shown_words(draw_explanation(made_up(words=("$x^2$", "is"))))


def test_words_are_shaded_by_their_weight():
    seen = made_up(picture=PICTURE)
    words, _ = seen.methods["relevance"]
    figure = draw_explanation(seen, "relevance")
    assert shown_words(figure) == list(seen.labels)
    shares = [text.get_text() for text in figure.axes[0].texts if text.get_text().endswith("%")]
    assert shares == [f"{share:.0%}" for share in words / words.sum()]
    blue = [patch.get_facecolor()[0] for patch in figure.axes[0].patches]
    np.testing.assert_allclose(blue, 1 - words / words.max(), atol=1e-6)


def test_picture_is_as_bright_as_its_regions():
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 0.5]], np.float32)
    regions = np.array([0.75, 0.25], np.float32)
    seen = made_up(regions=2, picture=PICTURE)
    seen = replace(
        seen, boxes=boxes, methods={"reduction": (seen.methods["reduction"][0], regions)}
    )
    (image,) = draw_explanation(seen).axes[1].images
    shown = np.asarray(image.get_array())
    for y, x, heat in ((300, 100, 1), (100, 700, 1 / 3), (500, 700, 0)):
        np.testing.assert_allclose(
            shown[y, x], np.array([200, 100, 0]) / 255 * (0.3 + 0.7 * heat), atol=1e-6
        )
    labels = [text.get_text() for text in draw_explanation(seen).axes[1].texts]
    assert sorted(labels) == ["25%", "75%"]


def test_words_alone_leave_the_picture_as_it_is():
    figure = draw_explanation(made_up(picture=PICTURE), "image.0.GA")
    np.testing.assert_allclose(figure.axes[1].images[0].get_array()[0, 0] * 255, [200, 100, 0])
    assert "0%" not in shown_words(figure)


def test_blank_has_the_shape_of_the_image_and_all_boxes():
    seen = made_up(regions=7, size=(300, 600))
    axes = draw_explanation(seen, "image.0.GA").axes[1]
    assert axes.images[0].get_array().shape == (800, 400, 3)
    drawn = [patch.get_bbox().extents for patch in axes.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose(drawn, seen.boxes, atol=1e-6)


def test_answers_and_what_people_said():
    shown = texts(draw_explanation(made_up()))
    assert {"blue", "75.0%", "red", "20.0%", "people: blue (7), navy (3)"} <= set(shown)
    assert "question q0, image 0" in shown
    assert {"score: 100%", "Weights of the attentional reductions"} <= set(shown)
    shown = texts(draw_explanation(made_up(), "image.1.GA", 2))
    assert "image.1.GA, GA(X,Y)-2 in the paper: mean over queries, head 2" in shown


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (4, {1, 3, 4}), (6, {2, 4, 6})]
)
def test_figure_7_shows_typical_layers_as_the_paper_names_them(layers, expected):
    shown = texts(draw_figure_7(made_up(layers=layers)))
    titles = [f"{unit}-{n}" for n in range(1, 7) for unit in ("SA(Y)", "SA(X)", "GA(X,Y)")]
    found = [title for title in titles if title in shown]
    assert found == [title for title in titles if int(title[-1]) in expected]


def matrices(figure: Figure) -> dict[str, np.ndarray]:
    """The maps of figure 7 by the name that stands at each."""
    names = [text.get_text().split(",")[0] for text in figure.texts if ", up to" in text.get_text()]
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images][-len(names) :]
    return dict(zip(names, maps, strict=True))


def test_figure_7_shows_the_weights():
    seen = made_up(layers=3, regions=9)
    for head in (None, 1):
        shown = matrices(draw_figure_7(seen, head=head))
        assert list(shown) == [f"{kind}.{n}.{unit}" for n in range(3) for kind, unit in (
            ("question", "SA"), ("image", "SA"), ("image", "GA"))]  # fmt: skip
        for name, weights in shown.items():
            np.testing.assert_array_equal(weights, seen.attention(name, head))
    assert list(matrices(draw_figure_7(seen, [1]))) == ["question.1.SA", "image.1.SA", "image.1.GA"]


def test_figure_7_outlines_the_highest_regions_in_the_picture_and_at_the_axes():
    seen = made_up(regions=9, picture=PICTURE, layers=1)
    best = np.argsort(-seen.attention("image.reduction"))[:3].tolist()
    figure = draw_figure_7(seen)
    picture, *_ = (axes for axes in figure.axes if axes.images)
    assert [text.get_text() for text in picture.texts] == [str(n) for n in reversed(best)]
    colours = {text.get_text(): text.get_bbox_patch().get_facecolor() for text in picture.texts}
    _, on_image, guided = (axes for axes in figure.axes[3:] if axes.images)
    assert [line.get_xdata()[0] for line in on_image.lines[::2]] == best
    assert [line.get_ydata()[0] for line in guided.lines] == best
    assert len({str(colour) for colour in colours.values()}) == 3
    ticks = [label.get_text() for label in guided.get_xticklabels()]
    assert ticks == list(seen.labels)


def without(seen: Explanation, *starts: str) -> Explanation:
    weights = {k: v for k, v in seen.weights.items() if not k.startswith(starts)}
    return replace(seen, weights=weights)


def test_figure_7_of_networks_without_some_units():
    shown = matrices(draw_figure_7(without(made_up(), "question.0", "question.1", "image.1.SA")))
    assert list(shown) == ["image.0.SA", "image.0.GA", "image.1.GA"]


@pytest.mark.parametrize(
    ("layers", "head", "message"),
    [
        ([2], None, "there is no layer 2, only layers 0 to 1"),
        ([0, -1], None, "there is no layer -1"),
        (None, 3, "has no head 3, only heads 0 to 2"),
    ],
)
def test_figure_7_of_what_does_not_exist(layers, head, message):
    with pytest.raises(RunError, match=message):
        draw_figure_7(made_up(), layers, head)


def test_figure_8_says_what_is_right_and_wrong():
    shown = texts(draw_figure_8([made_up(0), made_up(1), made_up(2)]))
    assert [text for text in shown if text.endswith("blue (75.0%)")] == [
        "✓ blue (75.0%)",
        "✗ blue (75.0%)",
        "✓ blue (75.0%)",
    ]
    assert {"score: 100%", "score: 0%", "score: 30%"} <= set(shown)
    assert "blue (75.0%)" in texts(draw_figure_8([made_up(facts=None)]))
    with pytest.raises(RunError, match="there are no questions to draw"):
        draw_figure_8([])


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_equal_figures_are_equal_files(tmp_path, suffix):
    contents = []
    for number in range(2):
        path = tmp_path / f"{number}.{suffix}"
        save_figure(draw_explanation(made_up()), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.PNG", "a.html"])
def test_unknown_format(tmp_path, name):
    with pytest.raises(RunError, match=r"use \.png, \.pdf or \.svg"):
        save_figure(draw_explanation(made_up()), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_figure(draw_explanation(made_up()), path)
    old = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_figure(draw_explanation(made_up(1)), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_ours_and_not_the_users_style(tmp_path):
    import matplotlib as mpl

    figures = [tmp_path / "a.png", tmp_path / "b.png"]
    save_figure(draw_figure_8([made_up()]), figures[0])
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        made_up().save(tmp_path / "c.svg")
        save_figure(draw_figure_8([made_up()]), figures[1])
    assert Path(figures[0]).read_bytes() == Path(figures[1]).read_bytes()
