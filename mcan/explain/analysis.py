"""Does attention explain answers? Its entropy, its share on targets, and accuracy after erasure.

B questions of a batch, Q in total; h heads, n words, m image rows (regions, or cells of a grid or
stem), M the maximum number of rows; S targets: sets of image rows that are known to matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mcan.batch import Batch
from mcan.console import progress
from mcan.data.arrays import Id
from mcan.data.dataset import VQADataset
from mcan.errors import DataError
from mcan.explain.weights import METHODS, REDUCTIONS, Observation
from mcan.rows import Packed

Array = NDArray[Any]
Targets = Mapping[str, Sequence[Sequence[int]]]
"""Name -> for each question, the image rows that matter; empty if there are none."""
MODALITIES = ("words", "regions")
ANY = "any row"
DRAWS = 3
"""Number of random orders of erasure, whose scores are averaged."""
MOST_STEPS = 10
_OBSERVED, _ERASED = 32, 256  # questions of one batch, and questions with rows erased


def entropies(weights: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """(B, h) the entropy of weights (B, h, q, k) in nats, and relative to that of even weights.

    Both are means over the first `queries` (B,). Even weights on `keys` (B,) have entropy log keys.
    With a single key, the relative entropy is undefined (NaN).
    """
    factors = _mean_over(_first(queries, weights.shape[2])).to(weights.dtype)
    nats = (torch.special.entr(weights).sum(-1) * factors[:, None]).sum(-1)
    highest = keys.to(weights.dtype).log().where(keys > 1, torch.nan)
    return nats, nats / highest[:, None]


def masses(weights: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """(B, h, F, S) the share of attention that goes from each source to each target.

    For weights (B, h, >= q, >= k): the sum over a target's rows, averaged over a source's rows.
    `sources` (B, F, q) and `targets` (B, S, k) mark the rows of each; NaN for one without rows.
    """
    weights = weights[:, :, : sources.shape[2], : targets.shape[2]]
    factors = _mean_over(sources).to(weights.dtype)
    found = factors[:, None] @ weights @ targets.to(weights.dtype).mT[:, None]
    return found.masked_fill(~targets.any(-1)[:, None, None], torch.nan)


def _first(counts: Tensor, length: int) -> Tensor:
    """(B, length) which rows are among the first `counts` (B,)."""
    return torch.arange(length) < counts[:, None]


def _mean_over(sets: Tensor) -> Tensor:
    """(..., q) the factors that make a sum over all rows a mean over those in a set, or NaN."""
    return sets.double() / sets.sum(-1, keepdim=True)


def _sides(seen: Observation, name: str) -> tuple[str, str]:
    """The modalities of the queries and the keys of an attention."""
    image = not name.startswith("question.")
    return MODALITIES[image], MODALITIES[image != seen.guided.get(name, False)]


def last_unit(seen: Observation) -> tuple[Tensor | None, Tensor | None]:
    """Words (B, n) and regions (B, m): the raw weights of the last unit with these keys, averaged
    over heads and queries; None if there is no such unit."""
    found: dict[str, Tensor] = {}
    for name in seen.units:
        of_queries, of_keys = _sides(seen, name)
        weights = seen.weights[name].mean(1)
        factors = _mean_over(_first(getattr(seen, of_queries), weights.shape[1]))
        found[of_keys] = (factors[:, None].to(weights.dtype) @ weights)[:, 0]
    return found.get("words"), found.get("regions")


RANKINGS: dict[str, Callable[[Observation], tuple[Tensor | None, Tensor | None]]] = {
    "last unit": last_unit,
    **METHODS,
}
"""What erasure compares: methods that give each word and each region one value."""


@dataclass(frozen=True)
class Attended:
    """Measures of the attention for Q questions.

    - `nats` and `relative`: name of an attention -> (Q, h), see `entropies`. For a reduction,
      glimpses take the place of heads;
    - `mass`: name of an attention on image rows, or of a ranking -> (Q, h, F, S), see `masses`. The
      first source is `ANY` row; image self-attention also has the targets as sources;
    - `uniform` (Q, S): the share of a question's image rows that are in a target, NaN for none;
    - `rankings`: modality -> ranking -> (Q, M) a value for each of the `counts` (Q,) rows. The
      ranking `targets` puts the rows of all targets first.
    """

    nats: dict[str, Array]
    relative: dict[str, Array]
    mass: dict[str, Array]
    uniform: Array
    rankings: dict[str, dict[str, Array]]
    counts: dict[str, Array]


def study(
    observe: Callable[[Sequence[int]], Observation], question_ids: Sequence[Id], targets: Targets
) -> Attended:
    """Measure all questions. `observe`, with gradients, takes their positions in `question_ids`.

    Raises `DataError` if a target has a row that its image does not have.
    """
    parts: dict[tuple[str, str], list[Tensor]] = {}

    def keep(kind: str, name: str, value: Tensor | None) -> None:
        if value is not None:
            parts.setdefault((kind, name), []).append(value)

    total = len(question_ids)
    for first in progress(range(0, total, _OBSERVED), "observing", unit="batch", delay=1):
        rows = range(first, min(first + _OBSERVED, total))
        seen = observe(rows)
        counts = {"words": seen.words, "regions": seen.regions}
        sets = _sets(targets, rows, seen.regions.tolist(), question_ids)
        share = sets.double().sum(-1) / seen.regions[:, None]
        keep("all", "uniform", share.where(share > 0, torch.nan))
        if targets:  # what an explanation would erase that knows what matters
            keep("regions", "targets", sets.any(1).float())
        for modality, count in counts.items():
            keep("counts", modality, count)
        for ranking, method in RANKINGS.items():
            for modality, values in zip(MODALITIES, method(seen), strict=True):
                keep(modality, ranking, values)
                if modality == "regions" and values is not None:
                    shares, all_of_them = _mean_over(values)[:, None, None], sets.new_ones(1, 1, 1)
                    keep("mass", ranking, masses(shares, all_of_them, sets))
        for name, weights in seen.weights.items():
            of_queries, of_keys = _sides(seen, name)
            queries = counts[of_queries]
            if name in REDUCTIONS:
                weights, queries = weights[:, :, None], torch.ones_like(queries)
            nats, relative = entropies(weights, queries, counts[of_keys])
            keep("nats", name, nats)
            keep("relative", name, relative)
            if of_keys == "regions":
                sources = _first(queries, int(queries.max()))[:, None]
                if of_queries == "regions" and name not in REDUCTIONS:
                    sources = torch.cat([sources, sets], 1)
                keep("mass", name, masses(weights, sources, sets))

    def joined(kind: str) -> dict[str, Array]:
        return {name: _join(values) for (of, name), values in parts.items() if of == kind}

    return Attended(
        nats=joined("nats"),
        relative=joined("relative"),
        mass=joined("mass"),
        uniform=joined("all")["uniform"],
        rankings={modality: joined(modality) for modality in MODALITIES},
        counts=joined("counts"),
    )


def _sets(targets: Targets, rows: range, counts: list[int], ids: Sequence[Id]) -> Tensor:
    """(B, S, m) whether an image row is in a target, for the questions `rows`."""
    sets = torch.zeros(len(rows), len(targets), max(counts), dtype=torch.bool)
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        for number, (name, of_question) in enumerate(targets.items()):
            chosen = list(of_question[row])
            if any(not 0 <= index < count for index in chosen):
                raise DataError(
                    f"targets of question {ids[row]!r}: {name!r} is {chosen}, but its image has "
                    f"the rows 0 to {count - 1}"
                )
            sets[place, number, chosen] = True
    return sets


def _join(parts: Sequence[Tensor]) -> Array:
    """Concatenate batches; shorter last axes are padded with zeros."""
    if parts[0].dim() > 1:
        longest = max(part.shape[-1] for part in parts)
        parts = [F.pad(part, (0, longest - part.shape[-1])) for part in parts]
    return torch.cat(list(parts)).numpy()


def erase_rows(network: nn.Module, batch: Batch, modality: str, keep: Tensor) -> Tensor:
    """(B, A) the logits of a packed batch without the words or regions for which `keep` (B, M) is
    false; it is false beyond a question's rows.

    Words are removed before the question is encoded. Image rows are removed after the image
    encoder. It encodes each row by itself, so this equals removing them from the input. But the
    cells of a stem still contain what they received from the pixels around them.
    """

    def kept(x: Tensor, rows: Packed) -> tuple[Tensor, Packed]:
        chosen = keep[:, : rows.longest]
        places = chosen.to(rows.device)[rows.mask]
        return x[: rows.valid][places], Packed(chosen.sum(1), 0, rows.device)

    def without_regions(_: nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> Any:
        x, rows = output
        if batch.image.of_question is not None:  # questions share images up to here
            x, rows = rows.take(x, batch.image.of_question)
        return kept(x, rows)

    if modality == "words":
        tokens, rows = kept(batch.question.tokens, batch.question.rows)  # type: ignore[arg-type]
        logits: Tensor = network(replace(batch.question, tokens=tokens, rows=rows), batch.image)
        return logits
    handle = network.image_encoder.register_forward_hook(without_regions)  # type: ignore[union-attr]
    try:
        logits = network(batch.question, replace(batch.image, of_question=None))
    finally:
        handle.remove()
    return logits


@torch.no_grad()
def erased_answers(
    network: nn.Module,
    dataset: VQADataset,
    enter: Callable[[Batch], Batch],
    modality: str,
    rows: Array,
    keep: Array,
) -> Array:
    """(N,) the answer to each of the questions `rows` (N,) with only the rows `keep` (N, M)."""
    # Equally many rows need no padding, and questions about one image share its encoding.
    order, shared = np.lexsort((rows, keep.sum(1))), dataset.with_shared_images()
    answers = np.empty(len(rows), np.int64)
    for first in range(0, len(rows), _ERASED):
        part = order[first : first + _ERASED]
        batch = enter(shared[rows[part].tolist()])
        logits = erase_rows(network, batch, modality, torch.from_numpy(keep[part]))
        answers[part] = logits.argmax(1).cpu().numpy()
    return answers


def erase(
    score: Callable[[Array, Array], Array],
    rankings: Mapping[str, Array],
    counts: Array,
    seed: int = 0,
) -> tuple[list[int], dict[tuple[str, str], Array]]:
    """Erase more and more of `counts` (Q,) rows, in the order of each of the `rankings` (Q, M).

    `score` takes questions (N,) and the rows to keep (N, M), and returns scores (N,). Returns the
    numbers of erased rows (K), and the scores (K, Q) by ranking and by which rows go first, "most"
    or "least"; those of ("random", "random") are the mean of several draws. One row always stays.
    Ties are broken at random, in the order of the first draw.
    """
    longest = max(int(counts.max()), 1)
    draws = np.random.default_rng(seed).random((DRAWS, len(counts), longest))
    valid = np.arange(longest) < counts[:, None]
    orders = [(1, valid, draw) for draw in draws]
    for values in rankings.values():
        orders += [(sign, values[:, :longest], draws[0]) for sign in (-1, 1)]
    # When each row goes, by each order: (V, Q, M), padding last.
    # In 8 bytes a row, these alone would be 4.6 GB for 440,000 questions on 100 rows.
    turns = np.empty((len(orders), *valid.shape), np.uint16)
    for turn, (sign, by, ties) in zip(turns, orders, strict=True):
        turn[:] = np.lexsort((ties, sign * by, ~valid)).argsort(1)
    del draws, orders
    rows = np.tile(np.arange(len(counts)), len(turns))
    steps, scores = erasure_steps(longest), []
    for step in progress(steps, "erasing", unit="step", delay=1):
        keep = ((turns >= np.minimum(step, counts - 1)[:, None]) & valid).reshape(-1, longest)
        # Orders agree on many questions: each distinct set of rows is computed once.
        codes = np.concatenate([rows[:, None].view(np.uint8), np.packbits(keep, 1)], 1)
        _, unique, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        scores.append(score(rows[unique], keep[unique])[inverse.ravel()].reshape(len(turns), -1))
    random, *ranked = np.split(np.stack(scores, 1), range(DRAWS, len(turns)))
    names = [(ranking, first) for ranking in rankings for first in ("most", "least")]
    found = {name: each[0] for name, each in zip(names, ranked, strict=True)}
    return steps, {("random", "random"): random.mean(0), **found}


def erasure_steps(longest: int) -> list[int]:
    """0, 1, ..., `longest` - 1, or at most ten above 0 in geometric steps."""
    most = longest - 1
    if most <= MOST_STEPS:
        return list(range(most + 1))
    return [0, *np.unique(np.geomspace(1, most, MOST_STEPS).round().astype(int)).tolist()]


def area(steps: Sequence[int], curve: Array) -> float:
    """The mean height of a curve (K,) over the number of erased rows (trapezoidal rule)."""
    widths = np.diff(steps)
    if not len(widths):
        return float(curve[0])
    return float(((curve[1:] + curve[:-1]) / 2 @ widths) / widths.sum())
