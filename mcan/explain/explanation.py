"""A model's answers to one question, the words it read, and its attention.

h heads, n words and m image rows: regions, grid cells, or both, in this order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcan.data.arrays import Id
from mcan.errors import RunError, shorten
from mcan.explain.weights import REDUCTIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".png", ".pdf", ".svg")
"""File formats of `Explanation.save`."""


@dataclass(frozen=True)
class Answer:
    """An answer of the vocabulary and its probability, from 0 to 1."""

    text: str
    probability: float

    def __str__(self) -> str:
        return f"{self.text} ({self.probability:.1%})"


@dataclass(frozen=True)
class Words:
    """How the network reads a question: the `tokens` (n) that it sees; the `unknown` ones among
    them, which it cannot tell apart; and the words `cut` off the end."""

    tokens: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What the network does not see of the question; empty if it sees everything."""
        if not self.tokens:
            return "the question has no words"
        if len(self.unknown) == len(self.tokens):
            return f"all words are unknown: {shorten(self.unknown)}"
        unknown = [f"unknown words: {shorten(self.unknown)}"] if self.unknown else []
        cut = [f"cut off after {len(self.tokens)} words: {shorten(self.cut)}"] if self.cut else []
        return "; ".join(unknown + cut)


class Answers(list[Answer]):
    """The answers to a question, the most probable first, and the `words` as read."""

    def __init__(self, answers: Iterable[Answer], words: Words) -> None:
        super().__init__(answers)
        self.words = words


@dataclass(frozen=True)
class Facts:
    """What a dataset records about a question: `human_answers` as written, `score` from 0 to 1."""

    question_id: Id
    image_id: Id
    human_answers: tuple[str, ...] = ()
    score: float | None = None
    answer_type: str = ""
    question_type: str = ""


@dataclass(frozen=True)
class Explanation:
    """The answers to a question, and the attention of every unit behind them.

    - `weights`: by name (see `mcan.explain.weights`), in the order of computation: (h, queries,
      keys) for a unit, (glimpses, keys) for a reduction; rows sum to 1. Queries and keys are the n
      words or the m image rows; the keys of `guided` units are of the other modality;
    - `methods`: name -> a value for each word (n,) and each image row (m,): `reduction`, `rollout`
      and `relevance`;
    - `boxes` (m, 4): positions of the image rows, normalised x1 y1 x2 y2; None if unknown;
    - `picture`: the image, if available; `size`: its width and height in pixels, if known.

    A high weight is not proof of a cause, because rows of deep layers are mixtures. Erase words or
    regions and compare the answers, as `scripts/analyse_attention.py` does.
    """

    question: str
    answers: Answers
    weights: Mapping[str, NDArray[np.float32]]
    guided: frozenset[str]
    methods: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    boxes: NDArray[np.float32] | None = None
    picture: Image.Image | None = field(default=None, repr=False)
    size: tuple[int, int] | None = None
    facts: Facts | None = None

    @property
    def words(self) -> Words:
        return self.answers.words

    @property
    def labels(self) -> tuple[str, ...]:
        """(n,) the words as the network sees them: one unknown word if the question is empty."""
        return self.words.tokens or ("(none)",)

    @property
    def names(self) -> list[str]:
        """The names of all units and reductions."""
        return list(self.weights)

    def attention(self, name: str, head: int | None = None) -> NDArray[np.float32]:
        """Return (queries, keys) for a unit, or (keys,) for a reduction: the mean over heads or
        glimpses, or one `head` (glimpse), counted from 0. Raises `RunError` for a wrong name or
        head."""
        if name not in self.weights:
            raise RunError(f"there is no attention {name!r}; choose from {shorten(self.names, 40)}")
        weights = self.weights[name]
        if head is None:
            mean: NDArray[np.float32] = weights.mean(0)
            return mean
        if not 0 <= head < len(weights):
            raise RunError(f"{name} has no head {head}, only heads 0 to {len(weights) - 1}")
        one: NDArray[np.float32] = weights[head]
        return one

    def values(
        self, name: str, head: int | None = None
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Return a value for each word (n,) and each image row (m,).

        `name` is a method, or an attention. An attention gives the mean over its queries, and None
        for the modality without keys. `head` of `reduction` is a glimpse. Raises the same errors as
        `attention`, also for a head of another method, which combines all heads.
        """
        if name == "reduction" and head is not None:
            words, regions = (self.attention(reduction, head) for reduction in REDUCTIONS)
            return words, regions
        if name in self.methods:
            if head is not None:
                raise RunError(f"{name} combines all heads, so no head can be chosen")
            return self.methods[name]
        weights = self.attention(name, head)
        keys = weights if name in REDUCTIONS else weights.mean(0)
        return (keys, None) if self.on_words(name) else (None, keys)

    def on_words(self, name: str) -> bool:
        """Whether the keys of an attention are words."""
        return name.startswith("question.") != (name in self.guided)

    def heat_map(self, values: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[Any]:
        """Return (height, width), from 0 to 1: each pixel is the sum of the `values` (m,) of the
        boxes that contain it, divided by the maximum. Adding is usual for regions, but many weak
        boxes may be brighter than a strong one. `size` is width and height. Raises `RunError`
        without boxes."""
        if self.boxes is None:
            raise RunError("the image rows have no boxes, so their positions are unknown")
        width, height = size
        heat = np.zeros((height, width))
        corners = self.boxes * [width, height, width, height]
        for value, (x1, y1, x2, y2) in zip(values.tolist(), corners.tolist(), strict=True):
            left, top = int(np.floor(x1)), int(np.floor(y1))
            heat[top : max(top + 1, round(y2)), left : max(left + 1, round(x2))] += value
        highest = heat.max()
        return heat / highest if highest > 0 else heat

    def figure(self, name: str = "reduction", head: int | None = None) -> Figure:
        """Draw image and question, shaded by a method or an attention, beside the answers."""
        from mcan.explain.figures import draw_explanation  # needs matplotlib

        return draw_explanation(self, name, head)

    def save(self, path: str | Path, name: str = "reduction", head: int | None = None) -> None:
        """Write a page (.html) with controls for all units, or the `figure` (.png, .pdf, .svg).

        An existing file is replaced: it can be made again, unlike the weights of `Model.save`.
        """
        path = Path(path)
        check_suffix(path, *SUFFIXES)
        if path.suffix == ".html":
            from mcan.explain.page import write_page

            write_page(path, [self], title=self.question, show=name, head=head)
        else:
            from mcan.explain.figures import save_figure

            save_figure(self.figure(name, head), path)


def check_suffix(path: Path, *suffixes: str) -> None:
    """Raise `RunError` for a path without one of the suffixes."""
    if path.suffix not in suffixes:
        expected = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise RunError(f"{path}: ends in {path.suffix or 'nothing'}; use {expected}")
