"""Recorded attention, roll-out and relevance against loops over single samples."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from small import (
    ANSWERS,
    FEATURES,
    GRID,
    TOKENS,
    enter,
    make_batch,
    packed_rows,
    samples,
    small_config,
    small_model,
)

from mcan.batch import Image
from mcan.build import build_model
from mcan.errors import RunError
from mcan.explain.weights import observe, reduction_weights, relevance, rollout
from mcan.nn.attention import SIMILARITIES
from mcan.nn.cascade import CASCADES, MCA_LAYERS
from mcan.nn.mcan import ModelSizes

WORDS, REGIONS, CELLS = [2, 4, 1], [5, 1, 3], [2, 3, 1]
EVERY_CASCADE = [(kind, layer) for kind in CASCADES for layer in MCA_LAYERS]


def naive_weights(model, config, batch):
    """Of each question the weights by name, in the order of computation, and the logits."""
    layers = [(m, i) for m in ("question", "image") for i in range(config.depth)]
    if config.cascade == "stacking":
        layers = [(m, i) for i in range(config.depth) for m in ("question", "image")]
    units = dict(zip(("question", "image"), MCA_LAYERS[config.mca_layer], strict=True))
    names = [f"{m}.{i}.{unit}" for m, i in layers for unit in units[m] if unit != "FFN"]
    found = []
    for sample in samples(batch):
        naive.SEEN.clear()
        logits = naive.mcan(model.state_dict(), config, sample)
        names_and_ends = [*names, "question.reduction", "image.reduction"]
        found.append((dict(zip(names_and_ends, naive.SEEN, strict=True)), logits))
    return found


def check(model, config, batch, observed=None):
    seen = observe(model.eval(), enter(observed or batch, "packed"))
    for sample, (expected, logits) in enumerate(naive_weights(model, config, batch)):
        torch.testing.assert_close(seen.logits[sample], logits)
        assert list(seen.weights) == list(expected)
        n, m = int(seen.words[sample]), int(seen.regions[sample])
        for name, weights in expected.items():
            queries, keys = weights.shape[-2:]
            assert {queries, keys} <= {n, m, config.heads, config.glimpses}
            own = seen.weights[name][sample]
            if "reduction" not in name:
                own = own[:, :queries]
            torch.testing.assert_close(own[..., :keys], weights, atol=1e-10, rtol=0)
            assert not own[..., keys:].any()
            torch.testing.assert_close(own.sum(-1), torch.ones_like(own[..., 0]))


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("kind", "layer"), EVERY_CASCADE)
def test_weights_of_regions(kind, layer, similarity):
    config = small_config(cascade=kind, mca_layer=layer, similarity=similarity, glimpses=3)
    check(small_model(config), config, make_batch(WORDS, REGIONS, filled=True))


@pytest.mark.parametrize(("kind", "layer"), EVERY_CASCADE)
def test_weights_of_regions_and_grid(kind, layer):
    config = small_config(cascade=kind, mca_layer=layer)
    batch = make_batch(WORDS, REGIONS, grid=CELLS, filled=True)
    check(small_model(config, GRID), config, batch)


def test_weights_of_questions_that_share_images():
    config = small_config()
    batch = make_batch(WORDS, REGIONS[:2], of_question=[1, 0, 1])
    check(small_model(config), config, batch)


@pytest.mark.parametrize(("kind", "layer"), EVERY_CASCADE)
def test_weights_of_pixels(kind, layer):
    pixel_input = {"input": "pixels", "stem": {"channels": (4, FEATURES), "strides": (2, 2)}}
    config = small_config(cascade=kind, mca_layer=layer, image=pixel_input)
    torch.manual_seed(0)
    model = build_model(config, ModelSizes(TOKENS, ANSWERS)).double()
    pixels = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    maps, _ = model.image_encoder.stem(pixels.double())
    batch = make_batch(WORDS[:2], [1, 1])
    as_regions = Image(packed_rows([6, 6]), maps.detach().flatten(0, 1))
    as_pixels = Image(packed_rows([1, 1]), pixels=pixels)
    check(model, config, replace(batch, image=as_regions), replace(batch, image=as_pixels))


def test_rows_without_a_valid_key_are_zero():
    seen = observe(small_model(small_config()).eval(), enter(make_batch([2, 3], [0, 3]), "packed"))
    for name, weights in seen.weights.items():
        empty = name in ("image.0.SA", "image.reduction")
        assert weights[0].any() != empty or name.startswith("image")
    assert not seen.weights["image.reduction"][0].any()
    assert seen.regions.tolist() == [0, 3]
    for method in (reduction_weights, rollout):
        words, regions = method(seen)
        assert words.isfinite().all()
        assert not regions[0].any()


@pytest.mark.parametrize(("kind", "layer"), EVERY_CASCADE)
def test_rollout(kind, layer):
    """By the definition, unit by unit, one question at a time and without padding."""
    config = small_config(cascade=kind, mca_layer=layer, glimpses=2)
    model, batch = small_model(config), make_batch(WORDS, REGIONS)
    found = rollout(observe(model.eval(), enter(batch, "packed")))
    for sample, (weights, _) in enumerate(naive_weights(model, config, batch)):
        n, m = WORDS[sample], REGIONS[sample]
        total = torch.eye(n + m, dtype=torch.float64)
        for name, of_unit in list(weights.items())[:-2]:
            step = torch.eye(n + m, dtype=torch.float64)
            start = 0 if name.startswith("question") else n
            source = 0 if name.startswith("question") or name.endswith("GA") else n
            for i, row in enumerate(of_unit.mean(0)):
                step[start + i] *= 0.5
                for j, weight in enumerate(row):
                    step[start + i, source + j] += 0.5 * weight
            total = step @ total
        ends = torch.cat([weights[f"{of}.reduction"].mean(0) for of in ("question", "image")])
        expected = ends @ total
        torch.testing.assert_close(expected.sum(), torch.tensor(2.0, dtype=torch.float64))
        torch.testing.assert_close(found[0][sample, :n], expected[:n])
        torch.testing.assert_close(found[1][sample, :m], expected[n:])
        assert not found[0][sample, n:].any()
        assert not found[1][sample, m:].any()


def slope(model, batch, unit, place, answer):
    """The derivative of a logit with respect to one weight, by a difference quotient."""

    def logit(step):
        def shift(module, args, weights):
            weights = weights.clone()
            weights[place] += step
            return weights

        hook = unit.dropout.register_forward_hook(shift)
        with torch.no_grad():
            out = model(batch.question, batch.image)[place[0], answer]
        hook.remove()
        return out

    return (logit(1e-5) - logit(-1e-5)) / 2e-5


def test_gradients():
    model = small_model(small_config(cascade="stacking")).eval()
    batch = enter(make_batch([3], [4]), "packed")
    seen = observe(model, batch, gradients=True)
    answer = int(seen.logits.argmax())
    modules = dict(model.named_modules())
    for name in ("question.0.SA", "question.1.SA", "image.0.SA", "image.0.GA", "image.1.GA"):
        unit = modules[f"cascade.{name}.attention"]
        for place in ((0, 0, 0, 0), (0, 1, 2, 2), (0, 1, 0, 1)):
            expected = slope(model, batch, unit, place, answer)
            torch.testing.assert_close(seen.gradients[name][place], expected, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_a_frozen_network(frozen):
    model = small_model(small_config()).eval()
    model.requires_grad_(not frozen)
    seen = observe(model, enter(make_batch([3], [4]), "packed"), gradients=True)
    assert seen.gradients["image.1.GA"].any()
    assert all(p.requires_grad != frozen for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("kind", "layer"), EVERY_CASCADE)
def test_relevance(kind, layer):
    """By the rules of Chefer et al. with a matrix for each pair of modalities."""
    config = small_config(cascade=kind, mca_layer=layer)
    model, batch = small_model(config), make_batch(WORDS, REGIONS)
    seen = observe(model.eval(), enter(batch, "packed"), gradients=True)
    found = relevance(seen)
    for sample, (n, m) in enumerate(zip(WORDS, REGIONS, strict=True)):
        size = {"question": n, "image": m}
        r = {(s, q): torch.zeros(size[s], size[q]).double() for s in size for q in size}
        for s in size:
            r[s, s] += torch.eye(size[s])

        def normal(s, r=r, size=size):
            rest = r[s, s] - torch.eye(size[s])
            sums = rest.sum(1, keepdim=True)
            return torch.where(sums == 0, 0, rest / sums) + torch.eye(size[s])

        for name in seen.units:
            s = name.partition(".")[0]
            other = "image" if s == "question" else "question"
            q = other if name.endswith("GA") else s
            positive = (seen.weights[name] * seen.gradients[name])[sample].clamp(min=0)
            step = positive.mean(0)[: size[s], : size[q]]
            if q == s:
                r[s, s], r[s, other] = r[s, s] + step @ r[s, s], r[s, other] + step @ r[s, other]
            else:
                across, own = normal(s).T @ step @ normal(q), step @ r[q, s]
                r[s, q], r[s, s] = r[s, q] + across, r[s, s] + own
        alpha, beta = (
            seen.weights[f"{of}.reduction"][sample, 0, : size[of]] for of in ("question", "image")
        )
        words = alpha @ r["question", "question"] + beta @ r["image", "question"]
        regions = alpha @ r["question", "image"] + beta @ r["image", "image"]
        torch.testing.assert_close(found[0][sample, :n], words)
        torch.testing.assert_close(found[1][sample, :m], regions)


def test_a_unit_of_another_kind_has_no_rollout():
    model = small_model(small_config()).eval()
    seen = observe(model, enter(make_batch([2], [2]), "packed"))
    with pytest.raises(
        RunError, match=r"^image.0.GA: roll-out and relevance support attention units"
    ):
        rollout(replace(seen, guided={k: v for k, v in seen.guided.items() if k != "image.0.GA"}))
