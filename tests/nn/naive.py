"""MCAN once more, from the paper's equations: one sample, loops over pairs and heads, no padding.

Parameters are read from the state of the real modules. x (m, d) image rows, y (n, d) question rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mcan.config.schema import ImageConfig, ModelConfig

State = Mapping[str, Tensor]
SEEN: list[Tensor] = []
"""The weights of every attention, in the order of computation: (h, n, m), and (glimpses, m)."""


def part(state: State, name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def linear(state: State, x: Tensor) -> Tensor:
    return x @ state["weight"].T + state["bias"]


def layer_norm(state: State, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return state["weight"] * centred / deviation + state["bias"]


def softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum()


def score(kind: str, state: State, q: Tensor, k: Tensor) -> Tensor:
    """The similarity of one query (d,) and one key (d,)."""
    if kind == "dot":
        return (q * k).sum()
    if kind == "scaled_dot":
        return (q * k).sum() / math.sqrt(len(q))
    if kind == "general":
        return torch.einsum("i,ij,j->", q, state["weight"], k)
    if kind == "concat":
        weight = torch.cat([state["query_weight"], state["key_weight"]])[:, 0]
        return (weight * torch.cat([q, k])).sum()
    assert kind == "perceptron"
    hidden = torch.tanh(state["query_weight"].T @ q + state["key_weight"].T @ k)
    return (state["vector"][:, 0] * hidden).sum()


def attention(
    kind: str, state: State, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output (n, e) and the weights (n, m); `mask` (n, m)."""
    out = value.new_zeros(len(query), value.shape[1])
    weights = value.new_zeros(len(query), len(key))
    for i, q in enumerate(query):
        valid = [j for j in range(len(key)) if mask is None or mask[i, j]]
        if not valid:
            continue
        normalised = softmax(torch.stack([score(kind, state, q, key[j]) for j in valid]))
        for weight, j in zip(normalised, valid, strict=True):
            weights[i, j] = weight
            out[i] += weight * value[j]
    return out, weights


def multihead(state: State, kind: str, heads: int, x: Tensor, source: Tensor) -> Tensor:
    query = linear(part(state, "query"), x).chunk(heads, 1)
    key = linear(part(state, "key"), source).chunk(heads, 1)
    value = linear(part(state, "value"), source).chunk(heads, 1)
    similarity = part(state, "similarity")
    outputs, weights = [], []
    for h in range(heads):
        own = {name: w[h] if w.dim() == 3 else w for name, w in similarity.items()}
        output, of_head = attention(kind, own, query[h], key[h], value[h])
        outputs.append(output)
        weights.append(of_head)
    SEEN.append(torch.stack(weights))
    return linear(part(state, "output"), torch.cat(outputs, 1))


def attend(state: State, kind: str, heads: int, x: Tensor, source: Tensor) -> Tensor:
    attended = multihead(part(state, "attention"), kind, heads, x, source)
    return layer_norm(part(state, "norm"), x + attended)


def feed_forward(state: State, x: Tensor) -> Tensor:
    first, second = part(state, "mlp.0"), part(state, "mlp.3")
    return layer_norm(part(state, "norm"), x + linear(second, linear(first, x).clamp(min=0)))


def layer(state: State, config: ModelConfig, x: Tensor, y: Tensor) -> Tensor:
    """The units of a layer, in the order in which its state has them; y guides x."""
    kind, heads = config.similarity, config.heads
    for unit in dict.fromkeys(name.split(".")[0] for name in state):
        own = part(state, unit)
        if unit.startswith("FFN"):
            x = feed_forward(own, x)
        else:
            x = attend(own, kind, heads, x, x if unit.startswith("SA") else y)
    return x


def cascade(state: State, config: ModelConfig, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if config.cascade == "stacking":
        for level in range(config.depth):
            y = layer(part(state, f"question.{level}"), config, y, x)
            x = layer(part(state, f"image.{level}"), config, x, y)
        return y, x
    for level in range(config.question_depth or config.depth):
        y = layer(part(state, f"question.{level}"), config, y, x)
    for level in range(config.depth):
        x = layer(part(state, f"image.{level}"), config, x, y)
    return y, x


def lstm(state: State, words: Tensor) -> Tensor:
    size = state["weight_hh_l0"].shape[1]
    hidden, cell = words.new_zeros(size), words.new_zeros(size)
    outputs = []
    for word in words:
        gates = state["weight_ih_l0"] @ word + state["bias_ih_l0"]
        gates = gates + state["weight_hh_l0"] @ hidden + state["bias_hh_l0"]
        enter, forget, content, leave = gates.chunk(4)
        cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs)


def position(place: int, size: int) -> Tensor:
    """(size,) the sinusoidal encoding of one place."""
    angles = [place / 10000 ** (2 * (i // 2) / size) for i in range(size)]
    values = [math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]
    return torch.tensor(values, dtype=torch.float64)


def question(state: State, encoder: str, tokens: Tensor) -> Tensor:
    words = state["embedding.weight"][tokens]
    if encoder == "lstm":
        return lstm(part(state, "encoder.lstm"), words)
    mapped = linear(part(state, "encoder.linear"), words)
    places = torch.stack([position(i, mapped.shape[1]) for i in range(len(tokens))])
    return mapped + places.to(mapped.dtype)


def image(state: State, config: ImageConfig, sample: Mapping[str, Tensor | None]) -> Tensor:
    """The regions and then the grid rows of one image."""

    def add_positions(mapped: Tensor, cells: Tensor | None) -> Tensor:
        if not config.position_encoding or cells is None:
            return mapped
        half = mapped.shape[1] // 2
        encodings = [
            torch.cat([position(row, half), position(column, half)])
            for row, column in cells.tolist()
        ]
        return mapped + torch.stack(encodings) if encodings else mapped

    features = sample["regions"]
    if config.boxes:
        x1, y1, x2, y2 = sample["boxes"].T
        numbers = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], 1)
        features = torch.cat([features, linear(part(state, "box"), numbers)], 1)
    rows = add_positions(linear(part(state, "projection"), features), sample["cells"])
    if sample["grid"] is None:
        return rows
    grid = linear(part(state, "grid"), sample["grid"])
    return torch.cat([rows, add_positions(grid, sample["grid_cells"])])


def reduction(state: State, x: Tensor) -> Tensor:
    hidden = linear(part(state, "mlp.0"), x).clamp(min=0)
    sums = []
    scores = linear(part(state, "mlp.3"), hidden).T
    SEEN.append(torch.stack([softmax(column) for column in scores]))
    for column in scores:
        weighted = [weight * row for weight, row in zip(softmax(column), x, strict=True)]
        sums.append(torch.stack(weighted).sum(0) if weighted else x.new_zeros(x.shape[1]))
    return linear(part(state, "projection"), torch.cat(sums))


def mcan(state: State, config: ModelConfig, sample: Mapping[str, Tensor | None]) -> Tensor:
    """The logits (A,) of one question about one image."""
    y = question(part(state, "question_encoder"), config.question.encoder, sample["tokens"])
    x = image(part(state, "image_encoder"), config.image, sample)
    y, x = cascade(part(state, "cascade"), config, y, x)
    fused = reduction(part(state, "question_reduction"), y)
    fused = fused + reduction(part(state, "image_reduction"), x)
    return linear(part(state, "classifier"), layer_norm(part(state, "norm"), fused))
