"""Attention figures with matplotlib: one explanation, and the paper's figures 7 and 8.

Lengths are in inches from the top left corner of a figure, so that the words of a question can be
set in lines. n words and m image rows, as in `mcan.explain.explanation`.
"""

from __future__ import annotations

import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcan.console import printable
from mcan.drawing import drawing
from mcan.errors import RunError
from mcan.explain.explanation import Explanation, Facts, check_suffix
from mcan.explain.weights import REDUCTIONS
from mcan.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.float32] | None
_WIDTH, _MARGIN, _GAP = 8.8, 0.15, 0.3
_LINE = 0.17
"""Height of a line of small text."""
_PIXELS = 800
"""Length of the long side of an image inside a figure."""
_DARK = 0.3
"""Brightness factor of a pixel with weight 0; a pixel with the highest weight keeps its own."""
_OUTLINES = ("#D55E00", "#009E73", "#CC79A7")
_GREY = "#555555"
_MOST_ANSWERS = 10
_CAUTION = (
    "Percentages are shares of all words or regions. Brightness adds up where regions overlap. "
    "A high weight is not proof of a cause: rows of deep layers are mixtures."
)
_MATRICES = (
    "Rows are queries, columns are keys; rows sum to 1. Each map is as dark as its highest weight. "
    "Coloured marks: the regions with the highest weights in the reduction."
)
_LONGEST = 0.8
"""Width of a word at an axis."""
_TITLES = {
    "reduction": "Weights of the attentional reductions",
    "rollout": "Attention roll-out, read out by the reductions",
    "relevance": "Relevance for the first answer, from weights and gradients",
}


def draw_explanation(seen: Explanation, name: str = "reduction", head: int | None = None) -> Figure:
    """Draw question and image shaded by a method or an attention, and the answers.

    Without a picture, regions are drawn on a blank image of the same shape; without boxes, the
    weights are drawn as a matrix. Raises the same errors as `Explanation.attention`.
    """
    words, rows = seen.values(name, head)
    width = 4.6
    right = _WIDTH - width - _GAP - 2 * _MARGIN
    with drawing():
        text = _set_words(seen.labels, _WIDTH - 2 * _MARGIN, 12, numbers=words is not None)
        unit = name not in seen.methods and name not in REDUCTIONS
        size = _shape_of(seen, width, width * (2 if unit and seen.boxes is None else 1))
        top = 0.55 + text.height
        sheet = _Sheet(top + max(size[1], _answers_height(seen, right, _MOST_ANSWERS)) + 0.45)
        sheet.text(_MARGIN, 0.15, _title(seen, name, head), 11, weight="bold")
        sheet.words(_MARGIN, 0.48, text, words)
        if seen.boxes is not None:
            best = _best(rows)
            labels = [_shares(rows)[number] for number in best]
            sheet.picture(_MARGIN + (width - size[0]) / 2, top, size, seen, rows, best, labels)
        elif not unit:
            if rows is not None:
                sheet.matrix(_MARGIN, top, size, seen, rows[None], ("", "image"))
        else:
            sheet.matrix(_MARGIN, top, size, seen, seen.attention(name, head), _sides(seen, name))
        sheet.answers(_MARGIN + width + _GAP, top, right, seen, _MOST_ANSWERS)
        sheet.text(_MARGIN, sheet.height - 0.25, _CAUTION, 7, color=_GREY)
    return sheet.figure


def draw_figure_7(
    seen: Explanation, layers: Sequence[int] | None = None, head: int | None = None
) -> Figure:
    """Draw attention maps of single units as matrices, with queries in rows and keys in columns.

    `layers` count from 0; None: three typical ones. Titles count from 1, as in the paper. The three
    regions with the highest weights in the attentional reduction are outlined in the image and
    marked at the axes. `head`: one head of each unit; None: the mean. Raises `RunError` for a layer
    or head that does not exist.
    """
    units: dict[str, dict[int, str]] = {}  # kind of unit, as the paper writes it -> layer -> name
    for name in seen.names:
        if name not in REDUCTIONS:
            units.setdefault(_kind(seen, name), {})[int(name.split(".")[1])] = name
    if not units:
        raise RunError("the network has no attention units to draw")
    known = sorted({layer for names in units.values() for layer in names})
    if layers is None:
        thirds = (round(len(known) * part / 3) - 1 for part in (1, 2, 3))
        layers = sorted({known[max(0, number)] for number in thirds})
    if missing := [layer for layer in layers if layer not in known]:
        raise RunError(f"there is no layer {missing[0]}, only layers 0 to {known[-1]}")
    with drawing():
        text = _set_words(seen.labels, _WIDTH - 2 * _MARGIN, 12, numbers=False)
        words = [_fit(word, 7, _LONGEST) for word in seen.labels]
        space = max(_text_width(word, 7) for word in words) + 0.1
        width = min((_WIDTH - 2 * _MARGIN + 0.15) / len(units), 3.2)
        side = width - space - 0.15
        size = (-_GAP, 0.0) if seen.boxes is None else _shape_of(seen, 2.4, 2.4)
        header = 0.6 + text.height + max(size[1], _answers_height(seen, 3.6, 3))
        sheet = _Sheet(header + len(layers) * (side + space + 0.45) + 0.25)
        sheet.text(_MARGIN, 0.15, f"Attention maps of units, {_of_heads(head)}", 11, weight="bold")
        sheet.words(_MARGIN, 0.45, text, None)
        best = _best(seen.attention("image.reduction"))
        if seen.boxes is not None:
            labels = [str(number) for number in best]
            sheet.picture(_MARGIN, 0.5 + text.height, size, seen, None, best, labels)
        sheet.answers(_MARGIN + size[0] + _GAP, 0.5 + text.height, 3.6, seen, 3)
        for row, layer in enumerate(layers):
            for column, (kind, names) in enumerate(units.items()):
                if layer not in names:
                    continue
                name, top = names[layer], header + row * (side + space + 0.45)
                matrix = seen.attention(name, head)
                left = _MARGIN + column * width
                sheet.text(left + space, top, f"{kind}-{layer + 1}", 10, weight="bold")
                note = f"{name}, up to {matrix.max():.2f}"
                sheet.text(left + space + side, top + 0.04, note, 7, color=_GREY, ha="right")
                place = left, top + 0.2, (space + side, space + side)
                sheet.matrix(*place, seen, matrix, _sides(seen, name), best)
        sheet.text(_MARGIN, sheet.height - 0.25, _MATRICES, 7, color=_GREY)
    return sheet.figure


def draw_figure_8(examples: Sequence[Explanation]) -> Figure:
    """Draw the weights of the attentional reductions as the shade of words and the brightness of
    regions, for some questions with their answers. Where regions overlap, their weights are added
    (`Explanation.heat_map`). Raises `RunError` if there are no questions."""
    if not examples:
        raise RunError("there are no questions to draw")
    across = min(4, len(examples))
    width = (_WIDTH - 2 * _MARGIN - _GAP * (across - 1)) / across
    side = min(width, 3.6)
    with drawing():
        cells = [
            (seen, _set_words(seen.labels, width, 9), _shape_of(seen, side, side))
            for seen in examples
        ]
        rows = [cells[first : first + across] for first in range(0, len(cells), across)]
        heights = [
            [max(size[1] for *_, size in row) + 0.1, max(text.height for _, text, _ in row) + 0.05]
            for row in rows
        ]
        below = 3 * _LINE + 0.25
        sheet = _Sheet(sum(map(sum, heights)) + len(rows) * below + 0.8)
        title = "Learned attention of the attentional reductions to regions and words"
        sheet.text(_MARGIN, 0.15, title, 11, weight="bold")
        top = 0.5
        for row, (high, long) in zip(rows, heights, strict=True):
            for column, (seen, text, size) in enumerate(row):
                left = _MARGIN + column * (width + _GAP)
                words, regions = map(seen.attention, REDUCTIONS)
                if seen.boxes is None:
                    sheet.matrix(left, top, size, seen, regions[None], ("", "image"))
                else:
                    sheet.picture(left, top, size, seen, regions, (), ())
                sheet.words(left, top + high, text, words)
                for number, (line, colour) in enumerate(_verdict(seen)):
                    shown, place = _fit(line, 9, width), top + high + long + _LINE * number
                    sheet.text(left, place, shown, color=colour)
            top += high + long + below
        sheet.text(_MARGIN, sheet.height - 0.25, _CAUTION, 7, color=_GREY)
    return sheet.figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as .png, .pdf or .svg, completely or not at all; an old file is replaced.

    Raises `RunError` for another suffix. Equal figures give equal bytes on one version of
    matplotlib.
    """
    check_suffix(path, ".png", ".pdf", ".svg")
    form, no_date = path.suffix[1:], {"pdf": "CreationDate", "svg": "Date"}
    metadata: Any = {no_date.get(form, "Software"): None}
    with drawing():
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": "mcan"}):
            write_atomically(path, partial(figure.savefig, format=form, metadata=metadata))


class _Words(NamedTuple):
    """Words in lines: text, left, top and width of each."""

    size: float
    width: float
    height: float
    words: list[tuple[str, float, float, float]]


class _Sheet:
    """A figure, and things drawn at places of it."""

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self.figure, self.height = Figure(figsize=(_WIDTH, height), dpi=150), height

    def text(self, left: float, top: float, text: str, size: float = 9, **style: Any) -> None:
        look = {"fontsize": size, "va": "top", **style}
        self.figure.text(left / _WIDTH, 1 - top / self.height, text, **look)

    def axes(self, left: float, top: float, width: float, height: float, on: bool = True) -> Axes:
        """New axes; `on` with a frame and ticks, else in inches from their top left corner."""
        place = left / _WIDTH, 1 - (top + height) / self.height, width / _WIDTH
        axes = self.figure.add_axes((*place, height / self.height))
        axes.grid(False)
        if not on:
            axes.set(xlim=(0, width), ylim=(height, 0))
            axes.axis("off")
        return axes

    def words(self, left: float, top: float, text: _Words, values: Values) -> None:
        """Words shaded by their `values` (n,), with their shares below."""
        axes = self.axes(left, top, text.width, text.height, on=False)
        shades, shares = _relative(values), _shares(values)
        for number, (word, x, y, width) in enumerate(text.words):
            shade, height = 0.0, 1.6 * text.size / 72
            if values is not None:
                shade = float(shades[number])
                style: Any = {"size": 6.5, "color": _GREY, "ha": "center", "va": "center"}
                axes.text(x + width / 2, y + height + 0.07, shares[number], **style)
            _fill(axes, x, y, width, height, shade)
            colour = "white" if shade > 0.6 else "black"
            style = {"size": text.size, "color": colour, "ha": "center", "va": "center_baseline"}
            axes.text(x + width / 2, y + height / 2, word, **style)

    def picture(
        self,
        left: float,
        top: float,
        size: tuple[float, float],
        seen: Explanation,
        values: Values,
        outlined: Sequence[int],
        labels: Sequence[str],
    ) -> None:
        """The picture, darker where `values` (m,) are lower, with some boxes outlined."""
        from matplotlib.patches import Rectangle
        from matplotlib.patheffects import withStroke

        assert seen.boxes is not None
        picture = _picture(seen)
        pixels = np.asarray(picture) / 255
        if values is not None:
            heat = seen.heat_map(values, picture.size)
            pixels = pixels * (_DARK + (1 - _DARK) * heat[..., None])
        axes = self.axes(left, top, *size)
        axes.imshow(pixels, extent=(0, 1, 1, 0), aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=_GREY, linewidth=0.5)
        corners = [((x1, y1), x2 - x1, y2 - y1) for x1, y1, x2, y2 in seen.boxes.tolist()]
        if seen.picture is None:
            for box in corners:
                axes.add_patch(Rectangle(*box, fill=False, edgecolor=_GREY, linewidth=0.4))
        for number, label, colour in reversed(list(zip(outlined, labels, _OUTLINES, strict=False))):
            look: Any = {"fill": False, "edgecolor": colour, "linewidth": 1.8, "clip_on": False}
            halo = [withStroke(linewidth=3.4, foreground="white")]
            axes.add_patch(Rectangle(*corners[number], **look, path_effects=halo, zorder=3))
            back = {"facecolor": colour, "edgecolor": "white", "pad": 1.5, "linewidth": 0.5}
            style: Any = {"size": 7, "color": "white", "va": "top", "bbox": back}
            axes.text(*corners[number][0], label, zorder=4, **style)

    def matrix(
        self,
        left: float,
        top: float,
        size: tuple[float, float],
        seen: Explanation,
        weights: NDArray[np.float32],
        sides: tuple[str, str],
        marked: Sequence[int] = (),
    ) -> None:
        """Weights (queries, keys), dark if high. `sides` says what queries and keys are: question,
        image, or nothing to name; `marked` are numbers of image rows."""
        from matplotlib.ticker import MaxNLocator

        words = [_fit(word, 7, _LONGEST) for word in seen.labels]
        space = max(_text_width(word, 7) for word in words) + 0.1
        width, height = size[0] - space, size[1] - space
        panel = self.axes(left + space, top, width, height)
        panel.imshow(weights, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
        panel.spines[:].set(visible=True, color=_GREY, linewidth=0.5)
        panel.tick_params(labelsize=7, length=2, pad=2)
        for axis, side, length in ((panel.yaxis, sides[0], height), (panel.xaxis, sides[1], width)):
            if side == "question":
                every = -(-len(words) // max(1, int(length / 0.1)))
                turned = 90 if axis is panel.xaxis else 0
                axis.set_ticks(range(0, len(words), every), words[::every], rotation=turned)
            elif side == "image":
                axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            else:
                axis.set_ticks([])
        limits = panel.get_xlim(), panel.get_ylim()
        for number, colour in zip(marked, _OUTLINES, strict=False):
            look: Any = {"color": colour, "clip_on": False, "markersize": 6}
            if sides[1] == "image":
                panel.plot(number, limits[1][1], marker=7, **look)
            if sides[0] == "image":
                panel.plot(limits[0][1], number, marker=4, **look)
        panel.set(xlim=limits[0], ylim=limits[1])

    def answers(self, left: float, top: float, width: float, seen: Explanation, most: int) -> None:
        """The answers with bars of their probability; below, what else is known."""
        answers = seen.answers[:most]
        axes = self.axes(left, top, width, 0.3 * len(answers), on=False)
        for number, answer in enumerate(answers):
            y, weight = 0.3 * number, "normal" if number else "bold"
            _fill(axes, 0, y, width, 0.24, 0.05)
            _fill(axes, 0, y, width * answer.probability, 0.24, 0.35)
            style: Any = {"size": 9, "va": "center_baseline", "weight": weight}
            axes.text(0.06, y + 0.12, _fit(answer.text, 9, width - 0.8), **style)
            axes.text(width - 0.06, y + 0.12, f"{answer.probability:.1%}", ha="right", **style)
        for number, note in enumerate(_notes(seen, width)):
            self.text(left, top + 0.3 * len(answers) + 0.05 + _LINE * number, note, color=_GREY)


def _fill(axes: Axes, x: float, y: float, width: float, height: float, shade: float) -> None:
    from matplotlib.patches import Rectangle

    blue = np.array([0, 0x72, 0xB2]) / 255
    colour = tuple((1 - shade * (1 - blue)).tolist())
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, linewidth=0))


def _set_words(words: Sequence[str], width: float, size: float, numbers: bool = True) -> _Words:
    """Lines of at most `width`, with space for `numbers` below the words."""
    x = y = 0.0
    step, least = 1.6 * size / 72 + (0.18 if numbers else 0.05), 0.36 if numbers else 0.0
    placed = []
    for word in words:
        text = _fit(word, size, width - 0.1)
        long = max(_text_width(text, size) + 0.1, least)
        if x and x + long > width:
            x, y = 0.0, y + step
        placed.append((text, x, y, long))
        x += long + 0.06
    return _Words(size, width, y + step, placed)


def _fit(text: str, size: float, width: float) -> str:
    """The text, cut to a width; what cannot be printed is replaced."""
    shown = printable(text, 200)
    if _text_width(shown, size) <= width:
        return shown
    lengths = range(len(shown))
    most = bisect_right(lengths, width, key=lambda length: _text_width(f"{shown[:length]}…", size))
    return f"{shown[: max(0, most - 1)].rstrip()}…"


@lru_cache(maxsize=10_000)
def _text_width(text: str, size: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)
    return 1.03 * float(width) / 72  # hinting makes texts a little wider


def _picture(seen: Explanation) -> Image.Image:
    """The picture, or a blank of its shape, enlarged or reduced to the size in a figure."""
    width, height = _size(seen)
    scale = _PIXELS / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if seen.picture is None:
        return Image.new("RGB", size, "white")
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return seen.picture.convert("RGB").resize(size, how)


def _size(seen: Explanation) -> tuple[int, int]:
    return seen.picture.size if seen.picture is not None else seen.size or (4, 3)


def _shape_of(seen: Explanation, width: float, height: float) -> tuple[float, float]:
    """Width and height of the picture in a space for it; without boxes, those of one row."""
    if seen.boxes is None:
        return width, 0.4 * height
    scale = min(width / _size(seen)[0], height / _size(seen)[1])
    across, down = (max(0.4, scale * length) for length in _size(seen))
    return across, down


def _relative(values: Values) -> NDArray[np.float32]:
    """From 0 to 1, the highest."""
    if values is None or values.max(initial=0) <= 0:
        return np.zeros(0 if values is None else len(values), np.float32)
    relative: NDArray[np.float32] = np.clip(values / values.max(), 0, 1)
    return relative


def _shares(values: Values) -> list[str]:
    total = 0 if values is None else values.sum()
    return [
        f"{value / total:.0%}" if total else "0%" for value in (() if values is None else values)
    ]


def _best(values: Values) -> list[int]:
    return [] if values is None else np.argsort(-values, kind="stable")[: len(_OUTLINES)].tolist()


def _kind(seen: Explanation, name: str) -> str:
    """A unit as the paper writes it: SA(Y), SA(X), GA(X,Y)."""
    modality, _, unit = name.split(".", 2)
    own, other = ("Y", "X") if modality == "question" else ("X", "Y")
    return f"{unit}({own},{other})" if name in seen.guided else f"{unit}({own})"


def _sides(seen: Explanation, name: str) -> tuple[str, str]:
    """What the queries and the keys of a unit are."""
    return name.partition(".")[0], "question" if seen.on_words(name) else "image"


def _title(seen: Explanation, name: str, head: int | None) -> str:
    of = _of_heads(head)
    if name in seen.methods:
        return _TITLES.get(name, name) + ("" if head is None else f", glimpse {head}")
    if name in REDUCTIONS:
        return f"{name}, {of.replace('head', 'glimpse')}"
    layer = int(name.split(".")[1]) + 1
    return f"{name}, {_kind(seen, name)}-{layer} in the paper: mean over queries, {of}"


def _verdict(seen: Explanation) -> list[tuple[str, str]]:
    """The answer, right or wrong (a score of 0), and those of people; each with a colour."""
    facts, answer = seen.facts, str(seen.answers[0])
    if facts is None or facts.score is None:
        return [(answer, "black")]
    sign, colour = ("✓", _OUTLINES[1]) if facts.score > 0 else ("✗", _OUTLINES[0])
    people = f"people: {_people(facts)}"
    return [(f"{sign} {answer}", colour), (people, _GREY), (f"score: {facts.score:.0%}", _GREY)]


def _of_heads(head: int | None) -> str:
    return "mean over heads" if head is None else f"head {head}"


def _notes(seen: Explanation, width: float) -> list[str]:
    """Lines on what people answered, the score, and what the network did not see."""
    facts, notes = seen.facts, [seen.words.note]
    if facts is not None:
        if facts.human_answers:
            notes.append(f"people: {_people(facts)}")
        if facts.score is not None:
            notes.append(f"score: {facts.score:.0%}")
        notes.append(f"question {facts.question_id}, image {facts.image_id}")
    lines = [textwrap.wrap(note, int(width / 0.075), max_lines=4) for note in notes]
    return [_fit(line, 9, width) for note in lines for line in note]


def _answers_height(seen: Explanation, width: float, most: int) -> float:
    """Height of what `_Sheet.answers` draws."""
    return 0.3 * len(seen.answers[:most]) + _LINE * (len(_notes(seen, width)) + 1)


def _people(facts: Facts) -> str:
    counts = Counter(facts.human_answers).most_common(3)
    return ", ".join(f"{text} ({count})" if count > 1 else text for text, count in counts)
