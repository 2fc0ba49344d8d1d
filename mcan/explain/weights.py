"""The attention weights of a forward pass, and methods that combine them per word and region.

B questions, h heads, n words and m image rows of the longest sample, k = n + m. An attention is
named by modality, layer (from 0, as in `print(model)`) and unit: `image.1.GA`. The reductions are
`question.reduction` and `image.reduction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from mcan.batch import Batch
from mcan.errors import RunError
from mcan.nn.cascade import AttentionUnit

REDUCTIONS = ("question.reduction", "image.reduction")


@contextmanager
def record_attention(model: nn.Module, graph: bool = False) -> Iterator[dict[str, Tensor]]:
    """Record the weights of every attention in forward passes inside the block, by module name.

    The weights are in the order of computation and before dropout: (B, h, n, m) for attention,
    (B, glimpses, n) for attentional reduction. n and m are at least those of the longest sample.
    Padding comes after the valid rows; it is zero for keys and arbitrary for queries. A second
    forward pass replaces the weights of the first. With `graph`, the weights are the tensors that
    the output depends on, for gradients with respect to them; in the padded layout, padding may
    then be between regions and grid.
    """
    record: dict[str, Tensor] = {}

    def keep(name: str, weights: Tensor, queries: Tensor | None, keys: Tensor) -> None:
        if not graph:
            if queries is not None:
                weights = _valid_first(weights.mT, queries).mT
            weights = _valid_first(weights, keys).detach()
        record[name] = weights

    recorded = [(name, part) for name, part in model.named_modules() if hasattr(part, "record")]
    for name, part in recorded:
        part.record = partial(keep, name)
    try:
        yield record
    finally:
        for _, part in recorded:
            part.record = None


def _valid_first(x: Tensor, mask: Tensor) -> Tensor:
    """`x` (B, ..., n) with the entries where `mask` (B, n) is true in front."""
    order = mask.int().argsort(dim=1, descending=True, stable=True)
    return x.take_along_dim(order.view(len(x), *[1] * (x.dim() - 2), mask.shape[1]), -1)


@dataclass(frozen=True)
class Observation:
    """What a network computed for a batch of B questions, on the CPU in float32 or more.

    - `logits` (B, A), and `answers` (B,), the indices of the highest;
    - `weights`: by name, in the order of computation: (B, h, queries, keys) for a unit, (B,
      glimpses, keys) for a reduction;
    - `guided`: whether the keys of a unit come from the other modality;
    - `words` (B,) and `regions` (B,): numbers of valid rows, which come before the padding;
    - `gradients`, if requested: of the logits of `answers` with respect to `weights`.
    """

    logits: Tensor
    weights: Mapping[str, Tensor]
    guided: Mapping[str, bool]
    words: Tensor
    regions: Tensor
    answers: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def units(self) -> list[str]:
        """The names of all units, in the order of computation."""
        return [name for name in self.weights if name not in REDUCTIONS]


def observe(network: nn.Module, batch: Batch, gradients: bool = False) -> Observation:
    """Run `network` (an `MCAN` in evaluation mode) on a batch in the packed layout.

    With `gradients`, also compute those of each question's highest logit with respect to all
    weights.
    """
    recording = record_attention(network, graph=gradients)
    with recording as record, torch.set_grad_enabled(gradients), _unfrozen(network, gradients):
        logits = network(batch.question, batch.image)
        answers = logits.argmax(1)
        names = {name: _public(name) for name in record}
        slopes: dict[str, Tensor] = {}
        if gradients:
            chosen = logits.take_along_dim(answers[:, None], 1).sum()
            found = torch.autograd.grad(chosen, list(record.values()), allow_unused=True)
            slopes = {
                names[name]: torch.zeros_like(weights) if slope is None else slope
                for (name, weights), slope in zip(record.items(), found, strict=True)
            }
    modules = dict(network.named_modules())
    units = {public: modules[name.removesuffix(".attention")] for name, public in names.items()}
    words = batch.question.rows.lengths  # type: ignore[union-attr]
    weights = {names[name]: _to_cpu(value) for name, value in record.items()}
    return Observation(
        _to_cpu(logits),
        weights,
        {name: unit.guided for name, unit in units.items() if isinstance(unit, AttentionUnit)},
        words,
        _count_regions(batch, weights["image.reduction"]),
        answers.cpu(),
        {name: _to_cpu(value) for name, value in slopes.items()},
    )


@contextmanager
def _unfrozen(network: nn.Module, gradients: bool) -> Iterator[None]:
    """Unfreeze all parameters: if none needs a gradient, there is no graph to the weights."""
    frozen = [p for p in network.parameters() if gradients and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _public(name: str) -> str:
    if name.endswith("_reduction"):
        return name.replace("_", ".")
    return name.removeprefix("cascade.").removesuffix(".attention")


def _to_cpu(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _count_regions(batch: Batch, reduction: Tensor) -> Tensor:
    """(B,) number of rows of each question's image: regions and grid cells, or cells of a stem."""
    image = batch.image
    if image.pixels is not None:
        return torch.full((batch.size,), reduction.shape[2])
    lengths = image.rows.lengths  # type: ignore[union-attr]
    if image.grid_rows is not None:
        lengths = lengths + image.grid_rows.lengths  # type: ignore[union-attr]
    return lengths if image.of_question is None else lengths[image.of_question]


def reduction_weights(seen: Observation) -> tuple[Tensor, Tensor]:
    """The mean over the glimpses of both reductions: words (B, n), regions (B, m)."""
    words, regions = (seen.weights[name].mean(1) for name in REDUCTIONS)
    return words, regions


def rollout(seen: Observation) -> tuple[Tensor, Tensor]:
    """How much of each word (B, n) and region (B, m) reaches the two reductions.

    Attention roll-out (Abnar and Zuidema 2020), with words and regions as one sequence of k rows.
    Each unit multiplies by half the identity (the residual) plus half its weights, averaged over
    heads. A guided unit's keys are rows of the other modality. Finally the reductions weight the
    rows, so words and regions together sum to 2. Each GA unit of the image moves half of what the
    regions still have to the words: after two, they have 0.25.
    """
    words, regions = reduction_weights(seen)
    n, m = words.shape[1], regions.shape[1]
    total = torch.eye(n + m, dtype=words.dtype).expand(len(words), -1, -1)
    for name, rows, keys in _blocks(seen, n, m):
        mixed = 0.5 * total[:, rows] + 0.5 * seen.weights[name].mean(1) @ total[:, keys]
        total = torch.cat([total[:, : rows.start], mixed, total[:, rows.stop :]], 1)
    return _read_out(total, words, regions)


def relevance(seen: Observation) -> tuple[Tensor, Tensor]:
    """The relevance of each word (B, n) and region (B, m) for the highest logit.

    Follows Chefer et al. 2021: positive products of weights and gradients, averaged over heads, are
    accumulated layer by layer, by their rules for self- and cross-attention. Differs in the
    read-out, at the reductions, which MCAN needs. Requires an observation with gradients.
    """
    words, regions = reduction_weights(seen)
    n, m = words.shape[1], regions.shape[1]
    total = torch.eye(n + m, dtype=words.dtype).repeat(len(words), 1, 1)
    for name, rows, keys in _blocks(seen, n, m):
        step = (seen.weights[name] * seen.gradients[name]).clamp(min=0).mean(1)
        if rows == keys:
            total[:, rows] = total[:, rows] + step @ total[:, rows]
            continue
        own, others = (_without_identity(total[:, s, s]) for s in (rows, keys))
        across = own.mT @ step @ others
        total[:, rows, rows] += step @ total[:, keys, rows]
        total[:, rows, keys] += across
    return _read_out(total, words, regions)


def _blocks(seen: Observation, n: int, m: int) -> Iterator[tuple[str, slice, slice]]:
    """For each unit, its name and its queries and keys among the k rows: words, then regions."""
    places = {"question": slice(0, n), "image": slice(n, n + m)}
    other = {"question": "image", "image": "question"}
    for name in seen.units:
        if name not in seen.guided:
            raise RunError(f"{name}: roll-out and relevance support attention units only")
        modality = name.partition(".")[0]
        keys = other[modality] if seen.guided[name] else modality
        yield name, places[modality], places[keys]


def _without_identity(total: Tensor) -> Tensor:
    """R - I with rows that sum to 1, or to 0 if nothing was added yet, plus I."""
    identity = torch.eye(total.shape[1], dtype=total.dtype)
    added = total - identity
    sums = added.sum(-1, keepdim=True)
    return (
        torch.where(sums > 0, added / sums.clamp(min=torch.finfo(total.dtype).tiny), 0) + identity
    )


def _read_out(total: Tensor, words: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    rows = (torch.cat([words, regions], 1)[:, None] @ total)[:, 0]
    return rows[:, : words.shape[1]], rows[:, words.shape[1] :]


METHODS: dict[str, Callable[[Observation], tuple[Tensor, Tensor]]] = {
    "reduction": reduction_weights,
    "rollout": rollout,
    "relevance": relevance,
}
"""Methods that give each word and each region one value."""
