"""What a model answers to one question, how it read it, and where it looked.

h heads, n words and m rows of the image: regions, cells of a grid, or both, in this order.
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
"""Of files that `Explanation.save` writes."""


@dataclass(frozen=True)
class Answer:
    """An answer of the vocabulary and its probability, from 0 to 1."""

    text: str
    probability: float

    def __str__(self) -> str:
        return f"{self.text} ({self.probability:.1%})"


@dataclass(frozen=True)
class Words:
    """How a question was read: the `tokens` (n) that the network sees; `unknown` ones, which all
    look alike to it; those that were `cut` off the end."""

    tokens: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence on what the network does not see of the question; empty if it sees all."""
        if not self.tokens:
            return "the question has no words"
        if len(self.unknown) == len(self.tokens):
            return f"all words are unknown: {shorten(self.unknown)}"
        unknown = [f"unknown words: {shorten(self.unknown)}"] if self.unknown else []
        cut = [f"cut off after {len(self.tokens)} words: {shorten(self.cut)}"] if self.cut else []
        return "; ".join(unknown + cut)


class Answers(list[Answer]):
    """The answers to a question, the most probable first; `words` says how it was read."""

    def __init__(self, answers: Iterable[Answer], words: Words) -> None:
        super().__init__(answers)
        self.words = words


@dataclass(frozen=True)
class Facts:
    """What a dataset knows of a question; `human_answers` as written, `score` from 0 to 1."""

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
      keys) of a unit, (glimpses, keys) of a reduction; rows sum to 1. Queries and keys are the n
      words or the m image rows; `guided` units have keys of the other modality;
    - `methods`: name -> numbers of words (n,) and of image rows (m,): `reduction`, `rollout` and
      `relevance`;
    - `boxes` (m, 4): where the image rows are, normalised x1 y1 x2 y2; None if nobody knows;
    - `picture`: the image, if it is at hand; `size`: its width and height in pixels, if known.

    A high weight is not a cause: deep layers mix what rows hold. Compare with erasing words or
    regions, as `scripts/analyse_attention.py` does.
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
        """(n,) the words as the network sees them; a question without words is one unknown word."""
        return self.words.tokens or ("(none)",)

    @property
    def names(self) -> list[str]:
        """The names of all units and reductions."""
        return list(self.weights)

    def attention(self, name: str, head: int | None = None) -> NDArray[np.float32]:
        """(queries, keys) of a unit, or (keys,) of a reduction: the mean over heads or glimpses,
        or that of one `head` (glimpse), counted from 0. Raises `RunError` if there is none."""
        if name not in self.weights:
            raise RunError(f"there is no attention {name!r}; there is {shorten(self.names, 40)}")
        weights = self.weights[name]
        if head is None:
            mean: NDArray[np.float32] = weights.mean(0)
            return mean
        if not 0 <= head < len(weights):
            raise RunError(f"{name} has {len(weights)} heads, counted from 0; there is no {head}")
        one: NDArray[np.float32] = weights[head]
        return one

    def values(
        self, name: str, head: int | None = None
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """One number for each word (n,) and image row (m,), None for those it says nothing of.

        `name` is a method, or an attention: the mean over its queries.
        """
        if name in self.methods:
            return self.methods[name]
        weights = self.attention(name, head)
        keys = weights if name in REDUCTIONS else weights.mean(0)
        return (keys, None) if self.on_words(name) else (None, keys)

    def on_words(self, name: str) -> bool:
        """Whether the keys of an attention are the words."""
        return name.startswith("question.") != (name in self.guided)

    def heat_map(self, values: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[Any]:
        """(height, width) from 0 to 1: each pixel has the sum of the boxes around it, relative to
        the highest. `values` (m,); `size` is width and height. Raises `RunError` without boxes."""
        if self.boxes is None:
            raise RunError("the image rows have no boxes, so nobody knows where they are")
        width, height = size
        heat = np.zeros((height, width))
        corners = self.boxes * [width, height, width, height]
        for value, (x1, y1, x2, y2) in zip(values.tolist(), corners.tolist(), strict=True):
            left, top = int(np.floor(x1)), int(np.floor(y1))
            heat[top : max(top + 1, round(y2)), left : max(left + 1, round(x2))] += value
        highest = heat.max()
        return heat / highest if highest > 0 else heat

    def figure(self, name: str = "reduction", head: int | None = None) -> Figure:
        """Picture and question, shaded by a method or an attention, beside the answers."""
        from mcan.explain.figures import draw_explanation  # needs matplotlib

        return draw_explanation(self, name, head)

    def save(self, path: str | Path, name: str = "reduction", head: int | None = None) -> None:
        """As a page (.html) with controls for all units, or as `figure` (.png, .pdf, .svg).

        An old file is replaced.
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
