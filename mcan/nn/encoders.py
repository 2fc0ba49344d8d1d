"""Question and image encoders: word ids, region features, grid cells or pixels -> rows of width d.

B samples, n words, m regions, V tokens, E width of the embedding, D width of a region feature, d
width of the model. Rows are (B, n, d) or (T, d), see `mcan.rows`. Yu et al. 2019, section 4.1.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcan.batch import Image, Question
from mcan.rows import Rows


class LSTMEncoder(nn.Module):
    """A one-layer LSTM; its outputs are the question's features."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(embedding, width, batch_first=True)
        # Without AVX-512, torch has no LSTM in bf16 on a CPU.
        self.cpu_has_bf16 = torch.backends.cpu.get_cpu_capability() == "AVX512"

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        # Padding follows the words: only a layer that reads backwards would need packed sequences.
        padded = rows.pad(x)  # (B, n, E)
        if x.device.type != "cpu" or self.cpu_has_bf16:
            return rows.unpad(self.lstm(padded)[0])
        with torch.autocast("cpu", enabled=False):
            return rows.unpad(self.lstm(padded.to(self.lstm.bias_hh_l0.dtype))[0])  # type: ignore[arg-type]


class PositionalEncoder(nn.Module):
    """A linear map with sinusoidal positional encoding (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, width)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        mapped: Tensor = self.linear(x)
        return mapped + sinusoidal(rows.position, mapped.shape[-1]).to(mapped.dtype)


QUESTION_ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "lstm": LSTMEncoder,
    "positional": PositionalEncoder,
}
"""name -> module for (E, d), called with embedded words and their rows."""


class QuestionEncoder(nn.Module):
    """Word embedding (V, E), then one of `QUESTION_ENCODERS` to width d.

    `vectors` (V, E) initialise the embedding; `frozen` keeps it.
    """

    def __init__(
        self,
        tokens: int,
        embedding: int,
        width: int,
        encoder: str = "lstm",
        vectors: Tensor | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        if vectors is not None:
            self.embedding.weight.data.copy_(vectors)
        self.embedding.weight.requires_grad_(not frozen)
        self.encoder = QUESTION_ENCODERS[encoder](embedding, width)

    def forward(self, question: Question) -> tuple[Tensor, Rows]:
        """Word ids (B, n) or (T,) -> rows of width d."""
        return self.encoder(self.embedding(question.tokens), question.rows), question.rows


class Coordinates(nn.Module):
    """(B, C, H, W) -> (B, C + 2, H, W): row and column of each value, from -1 to 1."""

    def forward(self, maps: Tensor) -> Tensor:
        options: Any = {"dtype": maps.dtype, "device": maps.device}
        axes = [torch.linspace(-1, 1, size, **options) for size in maps.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, H, W)
        return torch.cat([maps, grid.expand(maps.shape[0], -1, -1, -1)], 1)


class ConvStem(nn.Module):
    """Pixels -> the cells of a small convolutional network's last map, as region rows.

    One 3 x 3 convolution, GroupNorm (batch norm would make samples depend on each other) and ReLU
    per entry of `channels` and `strides`; with `coordinates`, CoordConv (Liu et al. 2018).
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], coordinates: bool = False
    ) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        inputs = 3
        for number, (out, stride) in enumerate(zip(channels, strides, strict=True)):
            inputs += 2 * coordinates
            groups = next(n for n in range(max(1, out // 8), 0, -1) if out % n == 0)
            convolution = nn.Conv2d(inputs, out, 3, stride=stride, padding=1, bias=False)
            if coordinates:
                layers[f"coordinates{number}"] = Coordinates()
            for place, layer in enumerate((convolution, nn.GroupNorm(groups, out), nn.ReLU())):
                layers[str(3 * number + place)] = layer
            inputs = out
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in 0-255 -> (B, cells, channels), and row and column of each (cells, 2)."""
        maps = self.layers(pixels / 127.5 - 1.0)
        rows, columns = (torch.arange(size, device=maps.device) for size in maps.shape[2:])
        return maps.flatten(2).transpose(1, 2), torch.cartesian_prod(rows, columns)


class ImageEncoder(nn.Module):
    """One linear map of region features to d, with the options of the authors' later code.

    - `box_size`: five numbers of each box (normalised corners, area) -> Linear(5, `box_size`),
      joined to the features before the map;
    - `grid_size`: width of more rows, which have a Linear of their own and follow the regions;
    - `position_encoding`: add a 2-D encoding to rows that are cells of a grid;
    - `stem`: the network that makes region features of pixels.
    """

    def __init__(
        self,
        feature_size: int,
        width: int,
        box_size: int | None = None,
        grid_size: int | None = None,
        position_encoding: bool = False,
        stem: ConvStem | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.box = nn.Linear(5, box_size) if box_size else None
        self.projection = nn.Linear(feature_size + (box_size or 0), width)
        self.grid = nn.Linear(grid_size, width) if grid_size else None
        self.position_encoding = position_encoding

    def forward(self, image: Image) -> tuple[Tensor, Rows]:
        """Features (B, m, D) or (T, D) -> rows of width d."""
        features: Any = image.regions
        rows, cells = image.rows, image.cells
        if self.stem is not None:
            maps, cells = self.stem(image.pixels)
            features, rows = rows.equal(maps)
            cells = cells.expand(maps.shape[0], -1, -1).reshape(*features.shape[:-1], 2)
        if self.box is not None:
            x1, y1, x2, y2 = image.boxes.unbind(-1)  # type: ignore[union-attr]
            numbers = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], -1)
            features = torch.cat([features, self.box(numbers).to(features.dtype)], -1)
        x = self._add_position(self.projection(features), cells)
        if self.grid is None:
            return x, rows
        grid = self._add_position(self.grid(image.grid), image.grid_cells)
        return rows.append(x, grid, image.grid_rows)

    def _add_position(self, x: Tensor, cells: Tensor | None) -> Tensor:
        if not self.position_encoding or cells is None:
            return x
        row, column = (sinusoidal(cells[..., axis], x.shape[-1] // 2) for axis in (0, 1))
        return x + torch.cat([row, column], -1).to(x.dtype)


def sinusoidal(positions: Tensor, size: int) -> Tensor:
    """(...) positions -> (..., size), which is even: sin(p / 10000^(2i/size)) and cos in turn.

    Vaswani et al. 2017, section 3.5. In float64, to be rounded by the caller.
    """
    index = torch.arange(0, size, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None] * torch.exp(index * (-math.log(10000.0) / size))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
