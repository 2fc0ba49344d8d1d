"""Image encoders against numbers worked out by hand and loops over samples and cells."""

from __future__ import annotations

import math

import naive
import pytest
import torch
from small import rows

from mcan.batch import ImageInput
from mcan.nn.image import ConvStem, ImageEncoder, box_numbers
from mcan.nn.position import sinusoidal_2d
from mcan.ragged import Ragged

FEATURES, GRID, D = 6, 3, 8


def make(**options: object) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(FEATURES, D, **options).double()


def test_box_numbers():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0, 0, 1, 1], [0.3, 0.3, 0.3, 0.9]])
    expected = torch.tensor([[0.1, 0.2, 0.5, 0.7, 0.2], [0, 0, 1, 1, 1], [0.3, 0.3, 0.3, 0.9, 0]])
    torch.testing.assert_close(box_numbers(boxes), expected)
    assert box_numbers(boxes[:0]).shape == (0, 5)


def test_regions_are_mapped_by_one_linear_layer():
    encoder, regions = make(), rows([2, 1], FEATURES)
    out = encoder(ImageInput(regions, boxes=torch.rand(3, 4)))
    expected = naive.linear(naive.part(encoder.state_dict(), "projection"), regions.values)
    torch.testing.assert_close(out.values, expected)
    assert out.layout is regions.layout


def test_boxes_are_embedded_and_appended_to_the_features():
    encoder, regions = make(box_embedding_size=4), rows([2, 1], FEATURES)
    boxes = torch.tensor([[0.0, 0.5, 0.25, 1], [0, 0, 1, 1], [0.5, 0.5, 0.75, 0.75]])
    numbers = torch.cat([boxes, torch.tensor([[0.125], [1.0], [0.0625]])], 1).double()
    state = encoder.state_dict()
    embedded = naive.linear(naive.part(state, "box"), numbers)
    joined = torch.cat([regions.values, embedded], 1)
    expected = naive.linear(naive.part(state, "projection"), joined)
    torch.testing.assert_close(encoder(ImageInput(regions, boxes=boxes)).values, expected)


@pytest.mark.parametrize("lengths", [[3, 1, 2], [2, 2, 2], [0, 0, 1]])
def test_grid_rows_follow_the_regions_of_their_sample(lengths):
    encoder, regions, grid = make(grid_size=GRID), rows([2, 4, 1], FEATURES), rows(lengths, GRID, 1)
    state, expected = encoder.state_dict(), []
    for region, cell in zip(regions.split(), grid.split(), strict=True):
        expected.append(naive.linear(naive.part(state, "projection"), region))
        expected.append(naive.linear(naive.part(state, "grid"), cell))
    out = encoder(ImageInput(regions, grid=grid))
    torch.testing.assert_close(out.values, torch.cat(expected))
    assert out.layout.lengths.tolist() == [a + b for a, b in zip([2, 4, 1], lengths, strict=True)]


def closed_form_2d(row: int, column: int) -> torch.Tensor:
    half = D // 2
    values = []
    for place in (row, column):
        for i in range(half // 2):
            angle = place / 10000 ** (2 * i / half)
            values += [math.sin(angle), math.cos(angle)]
    return torch.tensor(values, dtype=torch.float64)


def test_positions_are_added_to_cells_only():
    cells = torch.tensor([[0, 0], [0, 3], [12, 5]])
    expected = torch.stack([closed_form_2d(*cell) for cell in cells.tolist()])
    torch.testing.assert_close(sinusoidal_2d(cells, D, torch.float64), expected)

    regions, grid = rows([1, 2], FEATURES), rows([2, 1], GRID, seed=1)
    encoder, plain = (make(grid_size=GRID, position_encoding=p) for p in (True, False))
    for image, added in (
        (ImageInput(regions, grid=grid, grid_cells=cells), [None, 0, 1, None, None, 2]),
        (ImageInput(regions, cells=cells, grid=grid), [0, None, None, 1, 2, None]),
    ):
        difference = encoder(image).values - plain(image).values
        wanted = [torch.zeros(D).double() if i is None else expected[i] for i in added]
        torch.testing.assert_close(difference, torch.stack(wanted))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_features_are_read_as_the_weights(dtype):
    encoder = make(box_embedding_size=4, grid_size=GRID).to(dtype=torch.float32)
    regions, grid, boxes = rows([2, 1], FEATURES), rows([1, 1], GRID), torch.rand(3, 4)

    def image(precision: torch.dtype) -> ImageInput:
        return ImageInput(
            regions.replace(regions.values.half().to(precision)),
            boxes=boxes.half().to(precision),
            grid=grid.replace(grid.values.half().to(precision)),
        )

    out = encoder(image(dtype)).values
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, encoder(image(torch.float64)).values)


def stem(dtype: torch.dtype = torch.float64) -> ConvStem:
    torch.manual_seed(0)
    return ConvStem((8, 16), (2, 1)).to(dtype)


def pixels(batch: int, height: int = 6, width: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stem_returns_the_cells_of_its_last_map_row_by_row(dtype):
    model, images = stem(dtype), pixels(2)
    regions, cells = model(images)
    maps = model.layers(images.to(dtype) / 127.5 - 1)
    assert regions.layout.lengths.tolist() == [15, 15]
    assert cells.tolist() == [[r, c] for r in range(3) for c in range(5)] * 2
    for sample, values in enumerate(regions.split()):
        for (row, column), value in zip(cells.tolist(), values, strict=False):
            torch.testing.assert_close(value, maps[sample, :, row, column])


def test_stem_layer_is_convolution_group_norm_relu():
    model, images = ConvStem((8,), (2,)).double(), pixels(1, 4, 4)
    convolution, norm, _ = model.layers
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    padded = torch.nn.functional.pad(images.double() / 127.5 - 1, (1, 1, 1, 1))
    maps = torch.stack(
        [
            (convolution.weight * padded[0, :, r : r + 3, c : c + 3]).sum((1, 2, 3))
            for r in (0, 2)
            for c in (0, 2)
        ]
    )
    normed = (maps - maps.mean()) / (maps.var(correction=0) + norm.eps).sqrt()
    expected = (normed * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(model(images)[0].values, expected)


def test_coordinates_tell_every_layer_the_place_of_a_value():
    """A layer that sees nothing else returns row and column; those of one row are -1."""
    model = ConvStem((2, 2), (2, 1), coordinates=True).double()
    for convolution in (model.layers[0], model.layers[3]):
        torch.nn.init.zeros_(convolution.weight)
        convolution.weight.data[[0, 1], [-2, -1], 1, 1] = 1
    for layer in (1, 2, 4, 5):
        model.layers[layer] = torch.nn.Identity()
    found, cells = model(pixels(2, 1, 10))
    places = torch.stack([torch.full((5,), -1.0), torch.linspace(-1, 1, 5)], 1).double()
    torch.testing.assert_close(found.values, places.repeat(2, 1))
    assert cells.tolist() == [[0, column] for column in range(5)] * 2
    model.layers[3] = torch.nn.Identity()
    places = torch.stack([torch.full((5,), -1.0), torch.linspace(-1, 1, 10)[::2]], 1).double()
    torch.testing.assert_close(model(pixels(1, 1, 10))[0].values, places)


def test_stem_keeps_samples_independent():
    model, images = stem(), pixels(3)
    alone = torch.cat([model(image[None])[0].values for image in images])
    torch.testing.assert_close(model(images)[0].values, alone)
    assert model(images[:0])[0].values.shape == (0, 16)


@pytest.mark.parametrize("channels", [1, 5, 8, 20, 24, 30, 128])
def test_stem_takes_any_number_of_channels(channels):
    regions, _ = ConvStem((channels,), (2,))(pixels(2))
    assert isinstance(regions, Ragged)
    assert regions.values.shape == (30, channels)
