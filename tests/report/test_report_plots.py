"""table.png: what is in the figure, and that it is a picture a README can show."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from made import Made, make, row
from PIL import Image

from mcan.report import plots
from mcan.report.plots import png


def drawn(made: Made):
    """The figure as matplotlib holds it."""
    with plots._drawing():
        return (plots._lines if made.table.plot else plots._dots)(made.summary)


def picture(made: Made) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Image.open(io.BytesIO(png(made.summary)))


@pytest.fixture
def dots(tmp_path) -> Made:
    rows = [row(f"row {n}", n, published={"overall": 60.0 + n}) for n in (1, 2)]
    made = make(tmp_path, rows, columns=["overall", "number"])
    for seed in range(3):
        made.finish("row 1", seed, 61.0 + seed, {"number": 40.0})
    return made


def lines_table(folder, series: int, columns: tuple[str, ...] = ("overall",)) -> Made:
    rows = [
        {**row(f"{name}, {depth}", depth), "series": f"s{name}", "x": depth}
        for name in range(series)
        for depth in (4, 1, 2)
    ]
    for each in rows:
        each["overrides"].append(f"model.heads={2 ** int(each['series'][1:])}")
    made = make(folder, rows, columns=list(columns), plot={"x": "depth L"})
    for each in rows:
        for seed in range(2):
            value = 60.0 + each["x"] + seed
            made.finish(each["name"], seed, value, dict.fromkeys(columns[1:], value))
    return made


def test_dots_stand_where_the_figures_are(dots):
    figure = drawn(dots)
    panel, other = figure.axes
    assert [panel.get_title(), other.get_title()] == ["overall", "number"]
    assert panel.get_xlabel() == "accuracy (%)"
    assert [label.get_text() for label in panel.get_yticklabels()] == ["row 1", "row 2"]
    points = [line.get_xydata().tolist() for line in panel.lines if len(line.get_xdata()) == 1]
    assert [[62.0, 0.0]] in points  # mean of 61, 62, 63
    assert [[61.0, 0.0]] in points  # published, of the first row
    assert [[62.0, 1.0]] in points  # and of the second
    (bar,) = panel.collections
    ends = [segment[:, 0].tolist() for segment in bar.get_segments()]
    assert ends == [[61.0, 63.0]]
    hollow = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 2
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first row on top


def test_published_figures_of_another_dataset_are_not_drawn(tmp_path):
    made = make(tmp_path, [row("A", 1, published={"overall": 60.0})], columns=["overall"])
    made.finish("A", 0, 90.0, dataset="shapes")
    (panel,) = drawn(made).axes
    assert [line.get_xydata().tolist() for line in panel.lines] == [[[90.0, 0.0]]]


def test_lines_run_over_x_in_order(tmp_path):
    made = lines_table(tmp_path, 2, ("overall", "number"))
    figure = drawn(made)
    assert [panel.get_title() for panel in figure.axes] == ["overall", "number"]
    for panel in figure.axes:
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("depth L", "accuracy (%)")
        curves = [line for line in panel.lines if line.get_linestyle() == "-"]
        assert len(curves) == 2
        for curve in curves:
            np.testing.assert_allclose(curve.get_xydata(), [[1, 61.5], [2, 62.5], [4, 64.5]])
        assert len({curve.get_color() for curve in curves}) == 2
        assert len({curve.get_marker() for curve in curves}) == 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["s0", "s1"]


def limits(made: Made) -> list[tuple[float, float]]:
    along = "get_ylim" if made.table.plot else "get_xlim"
    return [getattr(panel, along)() for panel in drawn(made).axes]


@pytest.mark.parametrize("plot", [None, {"x": "depth"}])
def test_all_panels_have_one_scale_and_hold_all_whiskers(tmp_path, plot):
    rows = [{**row(f"row {n}", n), "x": n} for n in (1, 2)]
    made = make(tmp_path, rows, columns=["overall", "yes/no", "number"], seeds=[0, 1], plot=plot)
    for name, overall in (("row 1", 71.0), ("row 2", 80.0)):
        for seed, number in enumerate((60.0, 100.0)):
            made.finish(name, seed, overall, {"yes/no": 100.0, "number": number})
    spans = [high - low for low, high in limits(made)]
    np.testing.assert_allclose(spans, spans[0])
    deviation = 20 * 2**0.5
    for (low, high), (least, most) in zip(
        limits(made),
        [(71.0, 80.0), (100.0, 100.0), (80 - deviation, 80 + deviation)],
        strict=True,
    ):
        assert low < least <= most < high
    assert limits(made)[1][1] < 105  # not half of it above 100 %
    figure = drawn(made)
    steps = {
        round(float(step), 6)
        for panel in figure.axes
        for step in np.diff(panel.get_yticks() if plot else panel.get_xticks())
    }
    assert len(steps) == 1


def test_small_differences_look_small(dots):
    for seed in range(3):
        dots.finish("row 1", seed, 61.0 + seed / 100, {"number": 40.0})
        dots.finish("row 2", seed, 61.02, {"number": 40.0})
    for low, high in limits(dots):
        assert high - low == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ({"row 1": 3}, "mean of 3 seeds, whiskers: ± sample standard deviation"),
        ({"row 1": 3, "row 2": 1}, "mean of 1 to 3 seeds, whiskers: ± sample standard deviation"),
        ({"row 1": 1}, "accuracies of one run each"),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("plot", [None, {"x": "depth"}])
def test_the_number_of_seeds_and_the_whiskers_are_told(tmp_path, seeds, told, plot):
    rows = [{**row(f"row {n}", n, published={"overall": 60.0}), "x": n} for n in (1, 2)]
    made = make(tmp_path, rows, columns=["overall"], plot=plot)
    for name, count in seeds.items():
        for seed in range(count):
            made.finish(name, seed, 61.0 + seed)
    (legend,) = drawn(made).legends
    assert legend.get_title().get_text() == told


def test_series_never_look_the_same():
    styles = [tuple(plots._line_style(number).values()) for number in range(28)]
    assert len(set(styles)) == 28


@pytest.mark.parametrize("rows", [1, 48])
def test_the_picture_has_the_width_of_a_readme_and_text_inside(tmp_path, rows):
    names = [f"a row with quite a long name, number {n}" for n in range(rows)]
    made = make(tmp_path, [row(name, n + 1) for n, name in enumerate(names)], seeds=[0])
    for name in names:
        made.finish(name, 0, 60.0, {"yes/no": 80.0, "number": 40.0})
    image = picture(made)
    assert image.format == "PNG"
    assert image.width == 880
    assert 150 <= image.height <= 100 * (2 + 0.6 * rows)
    pixels = np.asarray(image.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255  # nothing is cut off


def test_the_legend_is_below_the_panels(dots):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = drawn(dots)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    top = legend.get_window_extent().y1
    assert all(panel.get_tightbbox().y0 >= top for panel in figure.axes)


@pytest.mark.parametrize("plot", [None, {"x": "depth $L$"}])
def test_odd_names_are_drawn_without_a_warning(tmp_path, plot):
    names = ["<script>", "costs $1 and $x_", "_hidden", "视觉问答", "tab\there", "\\frac"]
    rows = [
        {**row(name, n + 1, published={"overall": 59.0}), "series": name, "x": n}
        for n, name in enumerate(names)
    ]
    made = make(tmp_path, rows, columns=["overall"], title="A $title with_ <b>", plot=plot)
    for name in names:
        made.finish(name, 0, 60.0)
    assert picture(made).width == 880


@pytest.mark.parametrize("plot", [None, {"x": "depth"}])
def test_a_table_without_any_figure_has_a_picture_too(tmp_path, plot):
    made = make(tmp_path, [row("A", 1, x=1.0)], plot=plot)
    assert picture(made).width == 880
    assert "no figures yet" in [text.get_text() for text in drawn(made).axes[0].texts]


def test_the_same_bytes_whatever_the_users_settings(dots):
    import matplotlib

    first = png(dots.summary)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert png(dots.summary) == first
        assert matplotlib.rcParams["font.size"] == 30
    assert b"Software" not in first
    assert b"tIME" not in first
