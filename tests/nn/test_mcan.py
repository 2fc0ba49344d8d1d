"""The whole network against the paper's equations, and samples against each other."""

from __future__ import annotations

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import (
    ANSWERS,
    CASCADES,
    ENCODERS,
    FEATURES,
    MCA_LAYERS,
    SIMILARITIES,
    one_by_one,
    regions,
    rows,
    small_config,
    small_model,
    tokens,
)

from mcan.batch import ImageInput
from mcan.ragged import Layout, Ragged

CONFIGS = {
    "-".join(choice): small_config(
        encoder=choice[2], mca_layer=choice[0], cascade=choice[1], similarity=choice[3]
    )
    for choice in (
        (layer, cascade, encoder, similarity)
        for layer in MCA_LAYERS
        for cascade in CASCADES
        for encoder in ENCODERS
        for similarity in SIMILARITIES
    )
}
MODELS = {name: small_model(config) for name, config in CONFIGS.items()}


def round_up(patch: pytest.MonkeyPatch, wanted: bool) -> None:
    """In any precision: bf16 would hide what the rows that fill a batch up change."""
    rounded = property(lambda layout: wanted and layout.on_host and not layout.dense)
    patch.setattr(Layout, "rounded", rounded)


@pytest.fixture(autouse=True, scope="module", params=[False, True], ids=["plain", "rounded"])
def rounded(request):
    """Every test of this file, with rows as they are and rounded up."""
    with pytest.MonkeyPatch.context() as patch:
        round_up(patch, request.param)
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_a_ragged_batch_equals_the_papers_equations(name):
    config, model = CONFIGS[name], MODELS[name]
    question, image = tokens([3, 1]), regions([1, 4])
    pairs = zip(question.split(), image.regions.split(), strict=True)
    expected = [naive.mcan(model.state_dict(), config, *pair) for pair in pairs]
    torch.testing.assert_close(model(question, image), torch.stack(expected))


def test_more_glimpses_and_unequal_depths_equal_the_papers_equations():
    config = small_config(glimpses=3, depth=1, question_depth=2, heads=4, feed_forward_factor=2)
    model, question, image = small_model(config), tokens([2, 5]), regions([3, 1])
    pairs = zip(question.split(), image.regions.split(), strict=True)
    expected = [naive.mcan(model.state_dict(), config, *pair) for pair in pairs]
    torch.testing.assert_close(model(question, image), torch.stack(expected))


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(CONFIGS)), lengths)
def test_batched_equals_one_by_one(name, lengths):
    words, boxes = (list(side) for side in zip(*lengths, strict=True))
    question, image = tokens(words), regions(boxes)
    torch.testing.assert_close(
        MODELS[name](question, image), one_by_one(MODELS[name], question, image)
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_batched_equals_one_by_one_in_single_precision(encoder):
    model = small_model(small_config(encoder)).float()
    question, image = tokens([14, 1, 6]), regions([10, 40, 100])
    image = ImageInput(image.regions.replace(image.regions.values.float()))
    torch.testing.assert_close(
        model(question, image), one_by_one(model, question, image), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_that_fill_a_batch_up_change_neither_logits_nor_gradients(encoder, monkeypatch):
    model = small_model(small_config(encoder)).float()
    question, image = tokens([14, 1, 6]), regions([10, 40, 100]).regions
    totals, encoded = [], []
    model.image_encoder.projection.register_forward_pre_hook(
        lambda _, inputs: encoded.append(len(inputs[0]))
    )
    model.cascade.register_forward_pre_hook(
        lambda _, inputs: totals.append([rows.layout.total for rows in inputs[:2]])
    )

    def run():
        rows = Ragged(image.values.float().requires_grad_(), Layout.of(image.layout.lengths))
        logits = model(question, ImageInput(rows))
        total = (logits * torch.arange(logits.numel()).view_as(logits)).sum()
        return logits, *torch.autograd.grad(total, (rows.values, *model.parameters()))

    round_up(monkeypatch, False)
    expected = run()
    round_up(monkeypatch, True)
    torch.testing.assert_close(run(), expected, atol=1e-5, rtol=1e-5)
    assert totals == [[21, 150], [24, 192]]
    assert encoded == [150, 192]


@pytest.mark.parametrize("name", CONFIGS)
def test_other_samples_cannot_be_seen(name):
    """Neither their lengths nor their values, were they not even numbers."""
    model, results = MODELS[name], []
    own_words, own_rows = torch.tensor([3, 4]), rows([3], FEATURES).values
    for words, boxes, value in ([5, 2, 1e3], [1, 7, float("nan")], [2, 3, float("inf")]):
        question = Ragged.of([torch.full((words,), 20), own_words])
        others = torch.full((boxes, FEATURES), value, dtype=torch.float64)
        results.append(model(question, ImageInput(Ragged.of([others, own_rows])))[1])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_no_gradient_reaches_other_samples(name):
    model, image = MODELS[name], regions([2, 3])
    embedding = model.question_encoder.embedding.weight
    question = Ragged.of([torch.tensor([20, 20, 20]), torch.tensor([3, 4])])
    logits = model(
        question, ImageInput(image.regions.replace(image.regions.values.requires_grad_()))
    )
    by_rows, by_words = torch.autograd.grad(logits[1].sum(), (image.regions.values, embedding))
    assert not by_rows[:2].any()
    assert not by_words[20].any()
    assert by_rows[2:].all()
    assert by_words[3:5].all()


@pytest.mark.parametrize("cascade", CASCADES)
@pytest.mark.parametrize("mca_layer", MCA_LAYERS)
def test_record_holds_the_weights_of_every_attention(mca_layer, cascade):
    config = small_config(mca_layer=mca_layer, cascade=cascade, glimpses=3)
    model, question, image = small_model(config), tokens([2, 4]), regions([5, 1])
    record: dict[str, torch.Tensor] = {}
    logits = model(question, image, record)
    torch.testing.assert_close(logits, model(question, image))

    y, x = question.layout, image.regions.layout
    expected = {"question.reduction": (3, y), "image.reduction": (3, x)}
    for level in range(2):
        if mca_layer != "id_ga":
            expected[f"question.{level}.self"] = (2, 4, y)
        if mca_layer == "sa_sga":
            expected[f"image.{level}.self"] = (2, 5, x)
        expected[f"image.{level}.guided"] = (2, 5, y)
    assert record.keys() == expected.keys()
    for name, (*sizes, keys) in expected.items():
        weights = record[name]
        assert weights.shape == (2, *sizes, keys.longest)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert not weights.movedim(-1, 1)[~keys.mask].any()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_images_without_regions(encoder):
    model, question = small_model(small_config(encoder)), tokens([2, 3])
    for counts in ([0, 3], [0, 0]):
        for record in (None, {}):
            logits = model(question, regions(counts), record)
            assert logits.isfinite().all()
            torch.testing.assert_close(
                logits[:1], model(Ragged.of([question.split()[0]]), regions([0]))
            )
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_an_empty_batch():
    model = small_model(small_config("positional"))
    assert model(tokens([]), regions([])).shape == (0, ANSWERS)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients(encoder, similarity):
    """Of all parameters and the features, in double precision."""
    config = small_config(encoder, similarity=similarity, depth=1, glimpses=2)
    model, question, image = small_model(config), tokens([2, 1]), regions([1, 3])

    def run(values, *_):
        return model(question, ImageInput(image.regions.replace(values)))

    inputs = (image.regions.values.requires_grad_(), *model.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_bf16_autocast(encoder, similarity):
    model = small_model(small_config(encoder, similarity=similarity)).float()
    question, image = tokens([4, 1]), regions([2, 6])
    image = ImageInput(image.regions.replace(image.regions.values.half()))
    exact = model(question, image)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(question, image)
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.05)
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_every_image_option_at_once_in_a_batch():
    options = {"boxes": True, "box_embedding_size": 4, "position_encoding": True}
    model = small_model(small_config(image=options), grid_size=3)
    question, image, grid = tokens([2, 4]), regions([3, 2]).regions, rows([2, 6], 3)
    boxes, cells = torch.rand(5, 4), torch.randint(0, 9, (8, 2))
    together = model(question, ImageInput(image, boxes, grid=grid, grid_cells=cells))
    for i, (own, later) in enumerate(((slice(0, 3), slice(0, 2)), (slice(3, 5), slice(2, 8)))):
        alone = ImageInput(
            Ragged.of([image.split()[i]]),
            boxes[own],
            grid=Ragged.of([grid.split()[i]]),
            grid_cells=cells[later],
        )
        torch.testing.assert_close(together[i], model(Ragged.of([question.split()[i]]), alone)[0])


def test_questions_share_images():
    options = {"boxes": True, "box_embedding_size": 4, "position_encoding": True}
    model = small_model(small_config(image=options), grid_size=3)
    question, image, grid = tokens([2, 4, 1, 3]), regions([3, 2]).regions, rows([2, 6], 3)
    boxes, cells, of_question = torch.rand(5, 4), torch.randint(0, 9, (8, 2)), [1, 0, 1, 1]
    shared = ImageInput(
        image, boxes, grid=grid, grid_cells=cells, of_question=torch.tensor(of_question)
    )
    each = ImageInput(
        Ragged.of([image.split()[i] for i in of_question]),
        torch.cat([boxes.split([3, 2])[i] for i in of_question]),
        grid=Ragged.of([grid.split()[i] for i in of_question]),
        grid_cells=torch.cat([cells.split([2, 6])[i] for i in of_question]),
    )
    torch.testing.assert_close(model(question, shared), model(question, each))


def test_questions_share_pixels():
    stem = {"channels": (4, FEATURES), "strides": (2, 2)}
    model = small_model(small_config(image={"input": "pixels", "stem": stem}))
    question, pixels = tokens([2, 4, 1]), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    of_question = torch.tensor([1, 1, 0])
    shared = model(question, ImageInput(pixels=pixels, of_question=of_question))
    torch.testing.assert_close(shared, model(question, ImageInput(pixels=pixels[of_question])))
