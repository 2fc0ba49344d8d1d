"""Explanations as one self-contained HTML page: `page.html` filled with the questions' data.

The page contacts no host and runs only its own script: its content security policy names the hashes
of the script and the style. The data is JSON, and the script inserts it as text only.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcan.explain.explanation import Explanation
from mcan.explain.weights import REDUCTIONS
from mcan.files import save_text

LIMIT = 25_000_000
"""Maximum size of a page in bytes."""
SIDE = 400
"""Maximum length of an image's longer side in pixels."""
_LOSSLESS = 128
"""Images with sides up to this many pixels are drawings or thumbnails, stored as PNG."""
_METHODS = {
    "reduction": (
        "Reduction: weights of the rows in the sum that predicts the answer",
        "The words sum to 1, and so do the regions.",
    ),
    "rollout": (
        "Roll-out: all layers multiplied, heads averaged",
        "Words and regions together sum to 2, 1 for each reduction. Each GA unit of the image "
        "moves half of the regions' remaining weight to the words.",
    ),
    "relevance": (
        "Relevance: weights times gradients of the answer",
        "The values have no fixed sum.",
    ),
}
"""What the list of attentions calls a method, and what its numbers sum to."""
_LEVELS = (
    "",
    "To stay below {limit}, the page omits single heads: each unit shows the mean of its heads.",
    "To stay below {limit}, the page omits the units: it shows reductions, roll-out and relevance.",
)
Level = Literal[0, 1, 2]
"""Which weights a page contains: all heads, their means, or no units."""


def write_page(
    path: Path,
    explanations: Iterable[Explanation],
    title: str,
    *,
    notes: Sequence[str] = (),
    remarks: Sequence[str] = (),
    show: str = "reduction",
    head: int | None = None,
    limit: int = LIMIT,
) -> list[str]:
    """Write a page with one card per explanation; return a sentence on each omission.

    `notes` are shown below the title, `remarks` on the cards, in order. The page opens with the
    method or attention `show` and one `head` or the mean. To stay within `limit` bytes, the page
    first omits single heads, then the units, then later questions. Raises `RunError` if there is no
    such attention, `DataError` if the page cannot be written.
    """
    template = files("mcan.explain").joinpath("page.html").read_text(encoding="utf-8")
    cards: list[str] = []
    weights: list[list[str]] = [[], [], []]
    sizes = [len(template) + 1000 + sum(len(_json(text)) for text in (title, title, *notes))] * 3
    level, left_out = 0, []
    for number, seen in enumerate(explanations):
        seen.values(show, head)
        remark = remarks[number] if number < len(remarks) else ""
        card = _json({**_card(seen), "remark": remark})[1:-1]
        packed = [_json(_pack(seen, each))[1:-1] if each >= level else "" for each in range(3)]
        grown = [size + len(card) + len(new) + 5 for size, new in zip(sizes, packed, strict=True)]
        fitting = next((each for each in range(level, 3) if grown[each] <= limit), None)
        if fitting is None:
            left_out.append(
                f"Only the first {len(cards)} questions fit into {_megabytes(limit)}; the others "
                "are omitted."
            )
            break
        level, sizes = fitting, grown
        cards.append(card)
        for each in range(level, 3):
            weights[each].append(packed[each])
        weights[:level] = [[]] * level  # never needed again
    if level:
        left_out.insert(0, _LEVELS[level].format(limit=_megabytes(limit)))
    data = {
        "title": title,
        "notes": [*notes, *left_out],
        "methods": _METHODS,
        "show": show,
        "head": head,
    }
    joined = ",\n".join(f"{{{a},{b}}}" for a, b in zip(cards, weights[level], strict=True))
    values = {
        "policy": _policy(template),
        # In ASCII, as the data is: a text may hold half a surrogate pair, which has no UTF-8.
        "title": html.escape(" ".join(title.split())[:200])
        .encode("ascii", "xmlcharrefreplace")
        .decode(),
        "data": f'{_json(data)[:-1]},"cards":[\n{joined}]}}',
    }
    # In one pass: a text of the data that looks like a place to fill stays as it is.
    save_text(path, re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template))
    return left_out


def _policy(template: str) -> str:
    """The content security policy, with the hashes of the one style and the one script."""

    def source(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        assert found is not None
        return base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{source('script')}'; "
        f"style-src 'sha256-{source('style')}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )


def _json(value: Any) -> str:
    """JSON in ASCII that cannot close the script element around it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:g} MB"


def _card(seen: Explanation) -> dict[str, Any]:
    """What the page shows of a question, except the weights."""
    facts, words = seen.facts, seen.words
    score = None if facts is None else facts.score
    named: dict[str, Any] = {}
    people: Sequence[str] = ()
    if facts is not None:
        people = facts.human_answers
        named = {
            "score": None if score is None else f"{score:.2f}",
            "question": facts.question_id,
            "image": facts.image_id,
            "answer type": facts.answer_type,
            "question type": facts.question_type,
        }
    size = seen.size or (seen.picture.size if seen.picture else (SIDE, SIDE))
    scale = SIDE / max(size)
    return {
        "question": seen.question,
        "facts": {name: str(text) for name, text in named.items() if text not in (None, "")},
        "verdict": "" if score is None else {0.0: "wrong", 1.0: "right"}.get(score, "partly"),
        "answer_type": facts.answer_type if facts else "",
        "question_type": facts.question_type if facts else "",
        "answers": [
            [a.text, a.probability if math.isfinite(a.probability) else None] for a in seen.answers
        ],
        "people": Counter(people).most_common(),
        "words": seen.labels,
        "unknown": words.unknown,
        "cut": words.cut,
        "note": words.note,
        "regions": len(seen.methods["reduction"][1]),
        "boxes": None if seen.boxes is None else np.round(seen.boxes.astype(float), 4).tolist(),
        "size": [max(1, round(side * scale)) for side in size],
        "picture": seen.picture and _data_uri(seen.picture),
    }


def _data_uri(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    kind = "png" if max(picture.size) <= _LOSSLESS else "jpeg"
    buffer = BytesIO()
    small.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _pack(seen: Explanation, level: Level | int) -> dict[str, Any]:
    """The weights of a question. `layout` lists name, matrices, rows, columns, what rows and
    columns are, and the original number of heads; `weights` contains the numbers.

    These are a zlib stream in base64: the float32 scale of each matrix, little-endian, then the
    bytes of each matrix. A weight is its byte times the scale.
    """
    layout: list[list[Any]] = []
    scales, numbers = [], []

    def add(name: str, values: NDArray[np.floating[Any]], *of: Any) -> None:
        rounded, scale = quantise(values)
        layout.append([name, *values.shape, *of])
        scales.append(scale)
        numbers.append(rounded.ravel())

    for name, weights in seen.weights.items():
        if name in REDUCTIONS:
            add(name, weights[:, None])
        elif level < 2:
            rows = "words" if name.startswith("question.") else "regions"
            columns = "words" if seen.on_words(name) else "regions"
            kept = weights.mean(0, keepdims=True) if level else weights
            add(name, kept, rows, columns, len(weights))
    for name, of in seen.methods.items():
        for kind, values in zip(("words", "regions"), of, strict=True):
            add(f"{name}.{kind}", values[None, None])
    content = np.concatenate(scales).astype("<f4").tobytes() + np.concatenate(numbers).tobytes()
    return {"layout": layout, "weights": base64.b64encode(zlib.compress(content)).decode()}


def quantise(
    weights: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round matrices (h, queries, keys) to bytes, with one scale per matrix (h,). The error of a
    weight is at most half the scale. Negative and non-finite values become 0."""
    weights = np.clip(np.nan_to_num(weights.astype(np.float64), posinf=0.0), 0, None)
    scale = (weights.reshape(len(weights), -1).max(1, initial=0) / 255).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None, None]
    return np.minimum(np.rint(weights / divisor), 255).astype(np.uint8), scale
