"""Encoders against closed forms and loops over cells; `test_mcan.py` compares whole networks."""

from __future__ import annotations

import pytest
import torch
from small import TOKENS, enter, make_batch

from mcan.nn.encoders import ConvStem, QuestionEncoder, sinusoidal

E, D = 5, 8


@pytest.mark.parametrize("frozen", [True, False])
def test_word_vectors_initialise_the_embedding_and_stay_if_frozen(frozen):
    vectors = torch.randn(TOKENS, E)
    encoder = QuestionEncoder(TOKENS, E, D, "lstm", vectors, frozen)
    assert torch.equal(encoder.embedding.weight, vectors)
    encoder(enter(make_batch([3, 2], [1, 1]), "padded").question)[0].sum().backward()
    assert (encoder.embedding.weight.grad is None) == frozen
    assert encoder.encoder.lstm.weight_ih_l0.grad.any()
    vectors.zero_()
    assert encoder.embedding.weight.any()


def test_positions_equal_recorded_values():
    """sin and cos of 13 and of 13 / 10000^(4/6), as float32 has them."""
    found = sinusoidal(torch.tensor(13), 6).float()[[0, 1, 4, 5]].tolist()
    expected = [0.42016704, 0.90744678, 0.02800399, 0.99960781]
    assert found == pytest.approx(expected, abs=6e-8, rel=0)


def pixels(batch: int, height: int = 6, width: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width)).double()


def test_stem_returns_the_cells_of_its_last_map_row_by_row():
    torch.manual_seed(0)
    model, images = ConvStem((8, 16), (2, 1)).double(), pixels(2)
    found, cells = model(images)
    maps = model.layers(images / 127.5 - 1)
    assert cells.tolist() == [[r, c] for r in range(3) for c in range(5)]
    for sample, values in enumerate(found):
        for (row, column), value in zip(cells.tolist(), values, strict=True):
            torch.testing.assert_close(value, maps[sample, :, row, column])


def test_stem_layer_is_convolution_group_norm_relu():
    model, images = ConvStem((8,), (2,)).double(), pixels(1, 4, 4)
    convolution, norm, _ = model.layers
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    padded = torch.nn.functional.pad(images / 127.5 - 1, (1, 1, 1, 1))[0]
    corners = [(r, c) for r in (0, 2) for c in (0, 2)]
    windows = torch.stack([padded[:, r : r + 3, c : c + 3].flatten() for r, c in corners])
    maps = windows @ convolution.weight.flatten(1).T  # (cells, channels)
    normed = (maps - maps.mean()) / (maps.var(correction=0) + norm.eps).sqrt()
    expected = (normed * norm.weight + norm.bias).clamp(min=0)
    torch.testing.assert_close(model(images)[0][0], expected)


def test_coordinates_reach_every_layer():
    """A layer that sees nothing else returns row and column; those of one row are -1."""
    model = ConvStem((2, 2), (2, 1), coordinates=True).double()
    for name in ("0", "3"):
        convolution = model.layers.get_submodule(name)
        torch.nn.init.zeros_(convolution.weight)
        convolution.weight.data[[0, 1], [-2, -1], 1, 1] = 1
    for layer in (1, 2, 4, 5):
        setattr(model.layers, str(layer), torch.nn.Identity())
    found, _ = model(pixels(2, 1, 10))
    places = torch.stack([torch.full((5,), -1.0), torch.linspace(-1, 1, 5)], 1).double()
    torch.testing.assert_close(found, places.expand(2, -1, -1))
    for name in ("3", "coordinates1"):
        setattr(model.layers, name, torch.nn.Identity())
    places = torch.stack([torch.full((5,), -1.0), torch.linspace(-1, 1, 10)[::2]], 1).double()
    torch.testing.assert_close(model(pixels(1, 1, 10))[0][0], places)


@pytest.mark.parametrize("channels", [(8, 16), (1, 5), (20, 24), (30, 128)])
def test_stem_keeps_samples_independent(channels):
    """Of any number of channels, whose groups differ in size."""
    model, images = ConvStem(channels, (2, 1)).double(), pixels(3)
    alone = torch.cat([model(image[None])[0] for image in images])
    torch.testing.assert_close(model(images)[0], alone)
    assert model(images[:0])[0].shape == (0, 15, channels[1])
