"""Image encoders: region features, grid cells or pixels to rows of the model's width.

B images, T regions of all of them, D width of a region feature, d width of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcan.batch import ImageInput
from mcan.nn.position import sinusoidal_2d
from mcan.ragged import Layout, Ragged


class ConvStem(nn.Module):
    """Pixels -> the cells of a small convolutional network's last map, as region rows.

    One 3 x 3 convolution, GroupNorm and ReLU per entry of `channels` and `strides`. Relation
    Networks and FiLM use batch norm here; group norm keeps samples independent, so that results do
    not depend on how a batch is cut over accumulation steps and processes. `coordinates` gives
    every convolution two further input channels, the place of each value (CoordConv, Liu et al.
    2018).
    """

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[int, ...], coordinates: bool = False
    ) -> None:
        super().__init__()
        self.coordinates = coordinates
        layers: list[nn.Module] = []
        width = 3
        for out, stride in zip(channels, strides, strict=True):
            places = 2 if coordinates else 0
            layers += [
                nn.Conv2d(width + places, out, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_groups(out), out),
                nn.ReLU(inplace=True),
            ]
            width = out
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> tuple[Ragged, Tensor]:
        """(B, 3, H, W) uint8 -> regions (B · rows · columns, channels) and their cells (T, 2)."""
        maps = pixels.to(next(self.parameters()).dtype) / 127.5 - 1.0
        for layer in self.layers:
            if self.coordinates and isinstance(layer, nn.Conv2d):
                maps = torch.cat([maps, _coordinates(maps)], 1)
            maps = layer(maps)
        batch, _, rows, columns = maps.shape
        values = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        lengths = torch.full((batch,), rows * columns, device=maps.device)
        layout = Layout(lengths, rows * columns, batch * rows * columns)
        cell = torch.arange(rows * columns, device=maps.device)
        cells = torch.stack([cell // columns, cell % columns], 1).repeat(batch, 1)
        return Ragged(values, layout), cells


def _coordinates(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2, H, W): row and column of each value, from -1 to 1."""
    batch, _, rows, columns = maps.shape
    down, across = (
        torch.linspace(-1, 1, size, dtype=maps.dtype, device=maps.device)
        for size in (rows, columns)
    )
    return torch.stack(torch.meshgrid(down, across, indexing="ij")).expand(batch, -1, -1, -1)


def _groups(channels: int, width: int = 8) -> int:
    """The number of groups of about `width` channels that divides `channels`."""
    return next(n for n in range(max(1, channels // width), 0, -1) if channels % n == 0)


class ImageEncoder(nn.Module):
    """One linear map of region rows to d (section 4.1), with the options of the later reference
    code.

    - `box_embedding_size` E: five box numbers (normalised corners, area) -> Linear(5, E), appended
      to the features before the map;
    - `grid_size`: width of further rows, mapped by a Linear of their own and appended after the
      regions;
    - `position_encoding`: adds a 2-D encoding to rows that are cells of a grid.
    """

    def __init__(
        self,
        feature_size: int,
        size: int,
        box_embedding_size: int | None = None,
        grid_size: int | None = None,
        position_encoding: bool = False,
    ) -> None:
        super().__init__()
        self.box = nn.Linear(5, box_embedding_size) if box_embedding_size else None
        self.projection = nn.Linear(feature_size + (box_embedding_size or 0), size)
        self.grid = nn.Linear(grid_size, size) if grid_size else None
        self.position_encoding = position_encoding

    def forward(self, image: ImageInput) -> Ragged:
        """Rows (T, D) -> (T, d)."""
        assert image.regions is not None
        dtype, layout = self.projection.weight.dtype, image.regions.layout
        values = _convert(image.regions.values, dtype, layout.missing)
        if self.box is not None:
            assert image.boxes is not None
            boxes = _convert(image.boxes, dtype, layout.missing)
            values = torch.cat([values, self.box(box_numbers(boxes))], 1)
        projected = self.projection(values)[: layout.total]
        out = image.regions.replace(self._place(projected, image.cells))
        if self.grid is None:
            return out
        assert image.grid is not None
        rows = self.grid(image.grid.values.to(dtype))
        return out.append(image.grid.replace(self._place(rows, image.grid_cells)))

    def _place(self, rows: Tensor, cells: Tensor | None) -> Tensor:
        if not self.position_encoding or cells is None:
            return rows
        return rows + sinusoidal_2d(cells, rows.shape[1], rows.dtype)


def _convert(rows: Tensor, dtype: torch.dtype, missing: int) -> Tensor:
    """(T, D) -> (T + missing, D), the last ones zeros, in one pass."""
    if not missing:
        return rows.to(dtype)
    converted = rows.new_empty(len(rows) + missing, rows.shape[1], dtype=dtype)
    converted[: len(rows)] = rows
    converted[len(rows) :] = 0
    return converted


def box_numbers(boxes: Tensor) -> Tensor:
    """(T, 4) normalised x1 y1 x2 y2 -> (T, 5) with the area appended."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return torch.cat([boxes, (width * height)[:, None]], 1)
