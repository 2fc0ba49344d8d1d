"""What `build_model` makes of a config, and what the entry points call."""

from __future__ import annotations

import pytest
import torch
from small import ANSWERS, FEATURES, TOKENS, small_config, tokens

from mcan.batch import ImageInput
from mcan.config.schema import ModelConfig
from mcan.nn.mcan import ModelSizes, build_model

PIXELS = {"input": "pixels", "stem": {"channels": (8, 12), "strides": (2, 2)}}


def test_pixels_go_through_the_stem():
    config = small_config(image=PIXELS | {"position_encoding": True})
    model = build_model(config, ModelSizes(TOKENS, ANSWERS)).double()
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    question = tokens([2, 4])
    logits = model(question, ImageInput(pixels=pixels))

    cells, places = model.stem(pixels)
    model.stem = None
    torch.testing.assert_close(logits, model(question, ImageInput(cells, cells=places)))
    assert not torch.allclose(logits, model(question, ImageInput(cells, cells=places.flip(0))))


@pytest.mark.parametrize("frozen", [False, True])
def test_word_vectors_reach_the_embedding(frozen):
    words = {"embedding_size": 5, "word_vectors": {"path": "x.txt", "frozen": frozen}}
    vectors = torch.randn(TOKENS, 5)
    model = build_model(
        small_config(question=words), ModelSizes(TOKENS, ANSWERS, FEATURES), vectors
    )
    assert torch.equal(model.question_encoder.embedding.weight, vectors)
    assert model.question_encoder.embedding.weight.requires_grad is not frozen


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 57_812_491),
        ({"heads": 4, "dropout": 0.5, "cascade": "stacking"}, 57_812_491),
        ({"hidden_size": 1024, "fusion_size": 2048}, 201_722_891),
        ({"hidden_size": 1024, "fusion_size": 2048, "heads": 16}, 201_722_891),
    ],
)
def test_the_papers_models_have_the_published_number_of_parameters(changes, parameters):
    with torch.device("meta"):
        model = build_model(ModelConfig(**changes), ModelSizes(20_572, 3_129, 2_048))
    assert sum(p.numel() for p in model.parameters()) == parameters
