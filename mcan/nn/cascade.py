"""Deep co-attention as lists of units (Yu et al. 2019, sections 3 and 4.2, figures 2, 4, 5).

d width, h heads. Rows are (B, n, d) or (T, d), see `mcan.rows`.

A unit maps x to x, and may look at the other modality, its guide. Every unit is post-norm:
LayerNorm(x + dropout(f(x))). A layer is a list of units; a cascade is a stack of layers for the
question and one for the image. As in the reference, the paper's SGA has one feed-forward unit, at
its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mcan.nn.attention import MultiHeadAttention
from mcan.nn.dropout import Dropout
from mcan.rows import Rows

NORM_EPS = 1e-6  # the reference adds it to the standard deviation


@dataclass(frozen=True)
class UnitSizes:
    """What all units of a network have in common: d, h, width of the feed-forward, dropout."""

    width: int
    heads: int
    inner: int
    dropout: float
    similarity: str = "scaled_dot"


class AttentionUnit(nn.Module):
    """Attention from x to x itself, or to the guide if `guided`."""

    def __init__(self, sizes: UnitSizes, guided: bool) -> None:
        super().__init__()
        self.guided = guided
        self.attention = MultiHeadAttention(
            sizes.width, sizes.heads, sizes.dropout, sizes.similarity
        )
        self.dropout = Dropout(sizes.dropout)
        self.norm = nn.LayerNorm(sizes.width, eps=NORM_EPS)

    def forward(self, x: Tensor, rows: Rows, guide: Tensor, guide_rows: Rows) -> Tensor:
        source, source_rows = (guide, guide_rows) if self.guided else (x, rows)
        attended = self.attention(x, source, rows, source_rows)
        out: Tensor = self.norm(x + self.dropout(attended))
        return out


class FeedForwardUnit(nn.Module):
    """W_2 dropout(relu(W_1 x)) with `inner` hidden units."""

    def __init__(self, sizes: UnitSizes) -> None:
        super().__init__()
        self.mlp = mlp(sizes.width, sizes.inner, sizes.width, sizes.dropout)
        self.dropout = Dropout(sizes.dropout)
        self.norm = nn.LayerNorm(sizes.width, eps=NORM_EPS)

    def forward(self, x: Tensor, rows: Rows, guide: Tensor, guide_rows: Rows) -> Tensor:
        out: Tensor = self.norm(x + self.dropout(self.mlp(x)))
        return out


def mlp(size: int, inner: int, out: int, dropout: float) -> nn.Sequential:
    """Two linear maps with ReLU and dropout in between."""
    return nn.Sequential(nn.Linear(size, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, out))


UNITS: dict[str, Callable[[UnitSizes], nn.Module]] = {
    "SA": lambda sizes: AttentionUnit(sizes, guided=False),
    "GA": lambda sizes: AttentionUnit(sizes, guided=True),
    "FFN": FeedForwardUnit,
}
"""Self-attention, guided attention, feed-forward; called with (x, rows, guide, guide_rows)."""

MCA_LAYERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "id_ga": ((), ("GA", "FFN")),
    "sa_ga": (("SA", "FFN"), ("GA", "FFN")),
    "sa_sga": (("SA", "FFN"), ("SA", "GA", "FFN")),
}
"""The paper's layers (figure 4): the units for the question Y and the units for the image X."""

MCA_LAYER_MEANINGS: dict[str, str] = {
    name: f"question: {', '.join(question) or 'identity'}; image: {', '.join(image)}"
    for name, (question, image) in MCA_LAYERS.items()
}

CASCADES: dict[str, str] = {
    "stacking": "image layer l is guided by the question after question layer l (eq. 8-9)",
    "encoder_decoder": "every image layer is guided by the last question layer (eq. 10)",
}
"""How layers are cascaded (figure 5)."""


class Layer(nn.ModuleDict):
    """Units in order, by name (a second SA is `SA_2`); without units, the identity."""

    def __init__(self, units: Sequence[str], sizes: UnitSizes) -> None:
        super().__init__()
        for index, unit in enumerate(units):
            earlier = list(units[:index]).count(unit)
            self[f"{unit}_{earlier + 1}" if earlier else unit] = UNITS[unit](sizes)

    def forward(self, x: Tensor, rows: Rows, guide: Tensor, guide_rows: Rows) -> Tensor:
        for unit in self.values():
            x = unit(x, rows, guide, guide_rows)
        return x


class Cascade(nn.Module):
    """Layers for the question y and layers for the image x, in the order of one of `CASCADES`.

    `question` and `image` list the units of each layer; a stack has as many of one as of the other.
    A question layer may have guided units too: its guide is x as it is then.
    """

    def __init__(
        self,
        kind: str,
        question: Sequence[Sequence[str]],
        image: Sequence[Sequence[str]],
        sizes: UnitSizes,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.question = nn.ModuleList(Layer(units, sizes) for units in question)
        self.image = nn.ModuleList(Layer(units, sizes) for units in image)

    def forward(self, y: Tensor, x: Tensor, y_rows: Rows, x_rows: Rows) -> tuple[Tensor, Tensor]:
        if self.kind == "stacking":
            for question_layer, image_layer in zip(self.question, self.image, strict=True):
                y = question_layer(y, y_rows, x, x_rows)
                x = image_layer(x, x_rows, y, y_rows)
            return y, x
        for layer in self.question:
            y = layer(y, y_rows, x, x_rows)
        for layer in self.image:
            x = layer(x, x_rows, y, y_rows)
        return y, x
