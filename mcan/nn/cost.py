"""What a forward pass costs, in closed form.

n words, m image rows, d width, h heads, d_h = d / h, E width of the embedding.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcan.config.schema import ModelConfig
    from mcan.nn.mcan import ModelSizes


def forward_macs(
    model: ModelConfig, sizes: ModelSizes, words: float, regions: float, grid_rows: float = 0.0
) -> int:
    """Multiply-adds of all matrix products of one question's forward pass.

    `words` and `regions` are its valid rows (with pixels: cells of the stem's last map),
    `grid_rows` further rows of grid features. Elementwise work (norms, softmax, dropout) is not
    counted. A backward pass costs twice as much.
    """
    rows = regions + grid_rows
    total = _question(model, words) + _image(model, sizes, regions, grid_rows)
    if model.mca_layer != "id_ga":
        total += (model.question_depth or model.depth) * (
            _attention(model, words, words) + _feed_forward(model, words)
        )
    image_layer = _attention(model, rows, words) + _feed_forward(model, rows)
    if model.mca_layer == "sa_sga":
        image_layer += _attention(model, rows, rows)
    total += model.depth * image_layer
    total += _reduction(model, words) + _reduction(model, rows)
    return round(total + model.fusion_size * sizes.answers)


def _question(model: ModelConfig, words: float) -> float:
    width, embedding = model.hidden_size, model.question.embedding_size
    if model.question.encoder == "positional":
        return words * embedding * width
    return words * 4 * width * (embedding + width)


def _image(model: ModelConfig, sizes: ModelSizes, regions: float, grid_rows: float) -> float:
    image, total = model.image, 0.0
    features = sizes.feature_size or 0
    if image.input == "pixels":
        channels, strides = (3, *image.stem.channels), image.stem.strides
        places = 2 if image.stem.coordinates else 0
        for layer, (before, after) in enumerate(pairwise(channels)):
            cells = regions * prod(strides[layer + 1 :]) ** 2
            total += cells * 9 * (before + places) * after
        features = channels[-1]
    if image.boxes:
        total += regions * 5 * image.box_embedding_size
        features += image.box_embedding_size
    total += regions * features * model.hidden_size
    return total + grid_rows * (sizes.grid_size or 0) * model.hidden_size


def _attention(model: ModelConfig, queries: float, keys: float) -> float:
    """Four projections, the similarity, the weighted sum."""
    width, own = model.hidden_size, model.hidden_size // model.heads
    pairs = queries * keys * width
    similarity = {
        "dot": pairs,
        "scaled_dot": pairs,
        "general": pairs + queries * width * own,
        "concat": (queries + keys) * width,
        "perceptron": pairs + (queries + keys) * width * own,
    }[model.similarity]
    return 2 * (queries + keys) * width**2 + similarity + pairs


def _feed_forward(model: ModelConfig, rows: float) -> float:
    return 2 * rows * model.feed_forward_factor * model.hidden_size**2


def _reduction(model: ModelConfig, rows: float) -> float:
    width, glimpses = model.hidden_size, model.glimpses
    weights = rows * (width + glimpses) * model.reduction_size
    return weights + rows * width * glimpses + width * glimpses * model.fusion_size
