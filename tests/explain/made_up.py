"""Explanations with made-up weights, and texts that attack a page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcan.explain.explanation import Answer, Answers, Explanation, Facts, Words

ATTACKS = {
    "script": "<script>window.attacked = 1</script>",
    "image": "<img src=x onerror='window.attacked = 1'>",
    "end of the data": "</script><script>window.attacked = 1</script><!-- <script>",
    "quotes": """"'`${window.attacked = 1}' onload="window.attacked=1" &quot;&lt;b&gt; \\u003c""",
    "right to left": "\u202ethgir ot tfel\u202c שלום \u2066<b>\u2069",
    "separators": "a\u2028b\u2029c\x00d\x1be\ud800f",
    "place to fill": "{{data}} {{policy}} {{title}}",
    "long": "x" * 10_000,
    "long words": "<b>word</b> " * 800,
    "no words": "",
}


def made_up(
    number: int = 0,
    words: tuple[str, ...] = ("what", "color", "is", "it"),
    regions: int = 5,
    layers: int = 2,
    heads: int = 3,
    picture: Image.Image | None = None,
    boxes: bool = True,
    **changed: Any,
) -> Explanation:
    """An encoder-decoder's explanation, with rows of weights that sum to 1."""
    random = np.random.default_rng(number)
    n, m = max(1, len(words)), regions

    def weights(*shape: int) -> NDArray[np.float32]:
        values = np.exp(2 * random.standard_normal(shape))
        return (values / values.sum(-1, keepdims=True)).astype(np.float32)

    found = {f"question.{layer}.SA": weights(heads, n, n) for layer in range(layers)}
    found["question.reduction"] = weights(1, n)
    for layer in range(layers):
        found[f"image.{layer}.SA"] = weights(heads, m, m)
        found[f"image.{layer}.GA"] = weights(heads, m, n)
    found["image.reduction"] = weights(1, m)
    corners = np.sort(random.random((m, 2, 2)), axis=1).reshape(m, 4).astype(np.float32)
    fields: dict[str, Any] = {
        "question": " ".join(words).capitalize() + "?",
        "answers": Answers([Answer("blue", 0.75), Answer("red", 0.2)], Words(words)),
        "weights": found,
        "guided": frozenset(f"image.{layer}.GA" for layer in range(layers)),
        "methods": {
            "reduction": (found["question.reduction"][0], found["image.reduction"][0]),
            "rollout": (weights(n), weights(m)),
            "relevance": (weights(n), weights(m)),
        },
        "boxes": corners if boxes else None,
        "picture": picture,
        "size": (640, 480),
        "facts": Facts(
            f"q{number}",
            number,
            ("blue",) * 7 + ("navy",) * 3,
            (1.0, 0.0, 0.3)[number % 3],
            ("other", "number")[number % 2],
            "what color",
        ),
    }
    return Explanation(**(fields | changed))


def attack(text: str) -> Explanation:
    """The text wherever a text can be."""
    read = Words(tuple(text.split()[:2000]), (text,), (text, text))
    facts = Facts(text or "empty", text or "empty", (text, "yes"), 0.0, text, text)
    answers = Answers([Answer(text, 0.9), Answer("yes", 0.1)], read)
    made = made_up(words=tuple(text.split()[:2000]), layers=1, heads=1)
    return Explanation(**(vars(made) | {"question": text, "answers": answers, "facts": facts}))
