"""The network in both layouts against the paper's equations, and samples against each other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import (
    ANSWERS,
    FEATURES,
    GRID,
    LAYOUTS,
    TOKENS,
    enter,
    logits_of,
    make_batch,
    packed_rows,
    samples,
    small_config,
    small_model,
)

from mcan import rows
from mcan.batch import Image, PaddedLengths
from mcan.build import build_model
from mcan.config.schema import ModelConfig
from mcan.explain.weights import record_attention
from mcan.nn.attention import SIMILARITIES
from mcan.nn.cascade import CASCADES, MCA_LAYERS
from mcan.nn.encoders import QUESTION_ENCODERS
from mcan.nn.mcan import ModelSizes

BOTH = pytest.mark.parametrize("layout", LAYOUTS)
ENCODERS = pytest.mark.parametrize("encoder", QUESTION_ENCODERS)
POSITIONAL = {"embedding_size": 5, "encoder": "positional"}
OPTIONS = {"boxes": True, "box_embedding_size": 4, "position_encoding": True}
PIXELS = {"input": "pixels", "stem": {"channels": (4, FEATURES), "strides": (2, 2)}}
CONFIGS = {
    "-".join(names): small_config(
        names[3], mca_layer=names[0], cascade=names[1], similarity=names[2], glimpses=2
    )
    for names in itertools.product(MCA_LAYERS, CASCADES, SIMILARITIES, QUESTION_ENCODERS)
}


def expected_of(model, config, batch):
    state = model.state_dict()
    return torch.stack([naive.mcan(state, config, sample) for sample in samples(batch)])


def check(config, batch, grid_size=None):
    """Both layouts and modes against the equations; gradients against each other."""
    model = small_model(config, grid_size)
    expected, gradients = expected_of(model, config, batch), []
    for layout in LAYOUTS:
        model.zero_grad()
        logits = logits_of(model.train(), batch, layout)
        torch.testing.assert_close(logits, expected)
        (logits * torch.arange(logits.numel()).view_as(logits)).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        with torch.no_grad():
            torch.testing.assert_close(logits_of(model.eval(), batch, layout), expected)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_choice_equals_the_papers_equations(name):
    check(CONFIGS[name], make_batch([2, 1], [1, 3]))


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize(
    ("changes", "lengths"),
    [
        ({"depth": 1, "question_depth": 2, "heads": 4, "feed_forward_factor": 2}, {}),
        ({"heads": 1, "similarity": "perceptron", "glimpses": 3}, {}),
        ({"image": {"position_encoding": True}}, {}),
        ({"image": OPTIONS}, {}),
        ({"image": OPTIONS}, {"grid": [2, 6, 1]}),
        ({"image": OPTIONS}, {"regions": [2, 2, 2], "grid": [2, 6, 1]}),
        ({"image": OPTIONS}, {"regions": [1, 0, 3], "grid": [2, 6, 1]}),
        ({"image": OPTIONS}, {"regions": [4, 2], "grid": [2, 6], "of_question": [1, 0, 1]}),
        ({}, {"regions": [0, 3, 0]}),
        ({"question": POSITIONAL}, {"regions": [0, 0, 0]}),
    ],
)
def test_sizes_and_kinds_of_rows_equal_the_papers_equations(changes, lengths, filled):
    batch = make_batch(**{"words": [3, 1, 2], "regions": [4, 2, 9], **lengths}, filled=filled)
    check(small_config(**changes), batch, GRID if "grid" in lengths else None)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_groups_of_similar_length_equal_the_papers_equations(similarity, monkeypatch):
    monkeypatch.setattr(rows, "GROUP_SCORES", 2 * 20 * 20 * 2)  # two samples each
    batch = make_batch([3, 1, 5, 7, 2], [10, 20, 2, 17, 18], filled=True)
    assert len(enter(batch, "packed").image.rows.groups(2)) == 3
    check(small_config(similarity=similarity, depth=1), batch)


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(CONFIGS)), lengths)
def test_layouts_agree_for_any_lengths(name, lengths):
    words, regions = zip(*lengths, strict=True)
    model, batch = small_model(CONFIGS[name]), make_batch(words, regions)
    torch.testing.assert_close(*(logits_of(model, batch, layout) for layout in LAYOUTS))


def test_longer_padding_changes_nothing():
    model, batch = small_model(small_config()), make_batch([3, 1], [1, 4])
    entered = batch.enter("cpu", "padded", torch.float64, PaddedLengths((14,), (100,)))
    assert entered.image.regions.shape == (2, 100, FEATURES)
    torch.testing.assert_close(
        model(entered.question, entered.image), logits_of(model, batch, "packed")
    )


@BOTH
@ENCODERS
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_bf16_autocast(encoder, similarity, layout):
    model = small_model(small_config(encoder, similarity=similarity)).float()
    batch = make_batch([4, 1], [2, 6], filled=True)
    exact = enter(batch, layout, torch.float32)
    expected = model(exact.question, exact.image)
    rounded = enter(batch, layout, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rounded.question, rounded.image)
    torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0.05)
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@BOTH
@pytest.mark.parametrize("name", sorted(CONFIGS)[::5])
def test_other_samples_cannot_be_seen(name, layout):
    """Neither their lengths nor their values, even if these are not numbers."""
    model, results = small_model(CONFIGS[name]), []
    for words, regions, value in ((5, 2, 1e3), (1, 7, float("nan")), (2, 3, float("inf"))):
        batch = make_batch([words, 2], [regions, 3])
        batch.question.tokens[-2:] = torch.tensor([3, 4])
        batch.image.regions[:regions] = value
        batch.image.regions[regions:] = torch.arange(3 * FEATURES).view(3, FEATURES).sin()
        results.append(logits_of(model, batch, layout)[1])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("mca_layer", MCA_LAYERS)
def test_recorded_attention(mca_layer):
    """Which weights there are; each row sums to one over the valid keys, which come first."""
    config = small_config(mca_layer=mca_layer, glimpses=3)
    model, batch = small_model(config, GRID), make_batch([2, 4], [5, 1], grid=[2, 3], filled=True)
    y, x = [2, 4], [7, 4]
    expected = {"question_reduction": (None, y), "image_reduction": (None, x)}
    for level in range(2):
        if mca_layer != "id_ga":
            expected[f"cascade.question.{level}.SA.attention"] = (y, y)
        if mca_layer == "sa_sga":
            expected[f"cascade.image.{level}.SA.attention"] = (x, x)
        expected[f"cascade.image.{level}.GA.attention"] = (x, y)
    records = []
    for layout in LAYOUTS:
        with record_attention(model) as record:
            logits = logits_of(model, batch, layout)
        torch.testing.assert_close(logits, logits_of(model, batch, layout))
        assert record.keys() == expected.keys()
        for name, (queries, keys) in expected.items():
            for sample, weights in enumerate(record[name]):
                real = weights if queries is None else weights[:, : queries[sample]]
                torch.testing.assert_close(real.sum(-1), torch.ones_like(real[..., 0]))
                assert not real[..., keys[sample] :].any()
        # The second sample has four words and four image rows.
        records.append({k: v[1, ..., :4][..., :4, :] for k, v in record.items()})
    torch.testing.assert_close(*records)


@BOTH
def test_an_empty_batch(layout):
    model = small_model(small_config("positional"))
    assert logits_of(model, make_batch([], []), layout).shape == (0, ANSWERS)


@BOTH
def test_pixels_go_through_the_stem(layout):
    """As their cells would as regions; questions may share them."""
    config = small_config(image=PIXELS | {"position_encoding": True})
    torch.manual_seed(0)
    model = build_model(config, ModelSizes(TOKENS, ANSWERS)).double()
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    found, cells = model.image_encoder.stem(pixels.double())
    batch = make_batch([2, 4], [1, 1])
    ones, of_cells = packed_rows([1, 1]), packed_rows([len(cells)] * 2)
    logits = logits_of(model, replace(batch, image=Image(ones, pixels=pixels)), layout)
    shared = Image(ones, pixels=pixels.flip(0), of_question=torch.tensor([1, 0]))
    torch.testing.assert_close(logits_of(model, replace(batch, image=shared), layout), logits)
    model.image_encoder.stem = None
    regions = Image(of_cells, found.flatten(0, 1), cells=cells.repeat(2, 1))
    torch.testing.assert_close(logits_of(model, replace(batch, image=regions), layout), logits)


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
