"""table.png: what it shows, and that it is an image for a README."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from made import Made, make, row
from PIL import Image

from mcan.drawing import drawing
from mcan.tables.writing import draw_curves, draw_table, write_figures


def drawn(made: Made, draw=draw_table):
    """The figure as matplotlib holds it."""
    with drawing():
        return draw(made.summary)


def png(made: Made, name: str = "table.png") -> bytes:
    folder = made.table.path.parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_figures(folder, made.summary)
    return (folder / name).read_bytes()


def legend(figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


@pytest.fixture
def dots(tmp_path) -> Made:
    rows = [row(f"row {n}", n, published={"overall": 60.0 + n}) for n in (1, 2)]
    made = make(tmp_path, rows, columns=["overall", "number"])
    for seed in range(3):
        made.finish("row 1", seed, 61.0 + seed, {"number": 40.0})
    return made


def test_dots_stand_where_the_values_are(dots):
    figure = drawn(dots)
    panel, other = figure.axes
    assert [panel.get_title(), other.get_title()] == ["overall", "number"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["row 1", "row 2"]
    means, published = panel.lines[0], panel.lines[-1]
    np.testing.assert_equal(means.get_xydata(), [[62.0, 0.0], [np.nan, 1.0]])  # of 61, 62, 63
    np.testing.assert_equal(published.get_xydata(), [[61.0, 0.0], [62.0, 1.0]])
    (bar,) = panel.collections
    np.testing.assert_equal(bar.get_segments()[0][:, 0], [61.0, 63.0])
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first row on top
    assert legend(figure) == ["runs", "published"]


def test_published_values_are_drawn_if_they_can_be_compared(tmp_path):
    made = make(tmp_path, [row("A", 1, published={"overall": 60.0}, verified=False)])
    assert legend(drawn(made)) == ["runs", "published (from memory)"]
    made.finish("A", 0, 90.0, dataset="shapes")
    assert legend(drawn(made)) == ["runs"]


def test_lines_run_over_x_in_order(tmp_path):
    rows = [
        {"name": f"{heads}, {depth}", "series": f"s{heads}", "x": depth}
        | {"overrides": [f"model.depth={depth}", f"model.heads={heads}"]}
        for heads in (1, 2)
        for depth in (4, 1, 2)
    ]
    made = make(tmp_path, rows, [0, 1], columns=["overall", "number"], plot={"x": "depth L"})
    for each in rows:
        for seed in range(2):
            value = 60.0 + each["x"] + seed
            made.finish(each["name"], seed, value, {"number": value})
    figure = drawn(made)
    assert [panel.get_title() for panel in figure.axes] == ["overall", "number"]
    for panel in figure.axes:
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("depth L", "accuracy (%)")
        curves = [line for line in panel.lines if line.get_linestyle() == "-"]
        for curve in curves:
            np.testing.assert_allclose(curve.get_xydata(), [[1, 61.5], [2, 62.5], [4, 64.5]])
        assert len({(curve.get_color(), curve.get_marker()) for curve in curves}) == 2
    assert legend(figure) == ["s1", "s2"]


def limits(made: Made) -> list[tuple[float, float]]:
    along = "get_ylim" if made.table.plot else "get_xlim"
    return [getattr(panel, along)() for panel in drawn(made).axes]


@pytest.mark.parametrize("plot", [None, {"x": "depth"}])
def test_all_panels_have_one_scale_and_hold_all_whiskers(tmp_path, plot):
    rows = [{**row(f"row {n}", n), "x": n} for n in (1, 2)]
    columns = ["overall", "yes/no", "number", "none"]
    made = make(tmp_path, rows, columns=columns, seeds=[0, 1], plot=plot)
    for name, overall in (("row 1", 71.0), ("row 2", 80.0)):
        for seed, number in enumerate((60.0, 100.0)):
            made.finish(name, seed, overall, {"yes/no": 100.0, "number": number})
    found = limits(made)[:3]
    np.testing.assert_allclose(np.ptp(found, axis=1), np.ptp(found[0]))
    deviation = 20 * 2**0.5
    values = [(71.0, 80.0), (100.0, 100.0), (80 - deviation, 80 + deviation)]
    for (low, high), (least, most) in zip(found, values, strict=True):
        assert low < least <= most < high


def test_small_differences_look_small(dots):
    for seed in range(3):
        dots.finish("row 1", seed, 61.0 + seed / 100, {"number": 40.0})
        dots.finish("row 2", seed, 61.02, {"number": 40.0})
    np.testing.assert_allclose(np.diff(limits(dots)), 2.0)


def test_curves_are_means_over_seeds(dots):
    """Of the epochs after which all finished runs of the row were evaluated."""
    png(dots)
    assert not (dots.table.path.parent / "curves.png").exists()
    dots.train("row 1", 0, {1: 40.0, 2: 50.0, 3: 61.0})
    dots.train("row 1", 1, {2: 52.0, 3: 62.0})
    dots.train("row 1", 2, {2: 54.0, 3: 63.0})
    dots.train("row 2", 0, {1: 10.0})  # not finished
    figure = drawn(dots, draw_curves)
    (panel,) = figure.axes
    (line,), (band,) = panel.lines, panel.collections
    np.testing.assert_equal(line.get_xydata(), [[2.0, 52.0], [3.0, 62.0]])
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [50.0, 63.0])
    assert legend(figure) == ["row 1"]


@pytest.mark.parametrize("plot", [None, {"x": "depth $L$"}])
@pytest.mark.parametrize(
    "names",
    [
        ["A"],
        [f"a row with quite a long name, number {n}" for n in range(48)],
        ["<script>", "costs $1 and $x_", "_hidden", "视觉问答", "tab\there", "\\frac"],
    ],
    ids=["one", "many", "odd"],
)
def test_images_have_the_width_of_a_readme_and_text_inside(tmp_path, names, plot):
    rows = [{**row(name, n + 1), "series": name[-8:], "x": n} for n, name in enumerate(names)]
    made = make(tmp_path, rows, seeds=[0], title="A $title with_ <b>", plot=plot)
    for name in names[1:]:
        made.finish(name, 0, 60.0, {"yes/no": 80.0, "number": 40.0})
    pngs = [png(made)]
    for name in names:
        made.finish(name, 0, 60.0)
        made.train(name, 0, {1: 50.0, 2: 60.0})
    for content in (*pngs, png(made, "curves.png")):
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.width) == ("PNG", 880)
        assert 150 <= image.height <= 100 * (10 + 0.6 * len(names))
        pixels = np.asarray(image.convert("L"))
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert edge.min() == 255  # nothing is cut off


def test_the_same_bytes_whatever_the_users_settings(dots):
    import matplotlib

    dots.train("row 1", 0, {1: 50.0, 2: 60.0})
    first, curves = png(dots), png(dots, "curves.png")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert (png(dots), png(dots, "curves.png")) == (first, curves)
        assert matplotlib.rcParams["font.size"] == 30
    assert b"Software" not in first
    assert b"tIME" not in first
