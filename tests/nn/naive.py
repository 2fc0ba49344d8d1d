"""MCAN once more, from the paper's equations: one sample, loops over pairs and heads, no padding.

Parameters are read from the state of the real modules. x (m, d) image rows, y (n, d) question rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mcan.config.schema import ModelConfig

State = Mapping[str, Tensor]


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
    outputs = []
    for h in range(heads):
        own = {name: w[h] if w.dim() == 3 else w for name, w in similarity.items()}
        outputs.append(attention(kind, own, query[h], key[h], value[h])[0])
    return linear(part(state, "output"), torch.cat(outputs, 1))


def attend(state: State, kind: str, heads: int, x: Tensor, source: Tensor) -> Tensor:
    attended = multihead(part(state, "attention"), kind, heads, x, source)
    return layer_norm(part(state, "norm"), x + attended)


def feed_forward(state: State, x: Tensor) -> Tensor:
    first, second = part(state, "feed_forward.0"), part(state, "feed_forward.3")
    return layer_norm(part(state, "norm"), x + linear(second, linear(first, x).clamp(min=0)))


def self_attention_unit(state: State, kind: str, heads: int, x: Tensor) -> Tensor:
    x = attend(part(state, "attentions.self"), kind, heads, x, x)
    return feed_forward(part(state, "feed_forward"), x)


def guided_attention_unit(state: State, kind: str, heads: int, x: Tensor, y: Tensor) -> Tensor:
    x = attend(part(state, "attentions.guided"), kind, heads, x, y)
    return feed_forward(part(state, "feed_forward"), x)


def self_guided_attention_unit(state: State, kind: str, heads: int, x: Tensor, y: Tensor) -> Tensor:
    x = attend(part(state, "attentions.self"), kind, heads, x, x)
    return guided_attention_unit(state, kind, heads, x, y)


def cascade(state: State, config: ModelConfig, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    kind, heads = config.similarity, config.heads
    guided = self_guided_attention_unit if config.mca_layer == "sa_sga" else guided_attention_unit

    def question_layer(level: int, y: Tensor) -> Tensor:
        if config.mca_layer == "id_ga":
            return y
        return self_attention_unit(part(state, f"question_units.{level}"), kind, heads, y)

    def image_layer(level: int, x: Tensor, y: Tensor) -> Tensor:
        return guided(part(state, f"image_units.{level}"), kind, heads, x, y)

    if config.cascade == "stacking":
        for level in range(config.depth):
            y = question_layer(level, y)
            x = image_layer(level, x, y)
        return y, x
    for level in range(config.question_depth or config.depth):
        y = question_layer(level, y)
    for level in range(config.depth):
        x = image_layer(level, x, y)
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
        return lstm(part(state, "lstm"), words)
    mapped = linear(part(state, "projection"), words)
    places = torch.stack([position(i, mapped.shape[1]) for i in range(len(tokens))])
    return mapped + places.to(mapped.dtype)


def reduction(state: State, x: Tensor) -> Tensor:
    hidden = linear(part(state, "mlp.0"), x).clamp(min=0)
    scores = linear(part(state, "mlp.3"), hidden)
    sums = [
        sum(weight * row for weight, row in zip(softmax(column), x, strict=True))
        for column in scores.T
    ]
    return linear(part(state, "projection"), torch.cat(sums))


def mcan(state: State, config: ModelConfig, tokens: Tensor, regions: Tensor) -> Tensor:
    """The logits (A,) of one question about one image."""
    y = question(part(state, "question_encoder"), config.question.encoder, tokens)
    x = linear(part(state, "image_encoder.projection"), regions)
    y, x = cascade(part(state, "cascade"), config, y, x)
    fused = reduction(part(state, "question_reduction"), y)
    fused = fused + reduction(part(state, "image_reduction"), x)
    return linear(part(state, "classifier"), layer_norm(part(state, "norm"), fused))
