"""Attention against loops over pairs of a query and a key."""

from __future__ import annotations

import naive
import pytest
import torch
from small import SIMILARITIES
from torch import Tensor

from mcan.nn.attention import Similarity, attention, build_similarity, masked_softmax

N, M, D, E, HEADS = 3, 5, 4, 6, 2

MASKS = {
    "none": None,
    "key": torch.tensor([True, False, True, True, False]),
    "row": torch.tensor([[False, True, True, False, True]]),
    "pair": torch.tensor([[1, 0, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]]).bool(),
    "some_without_key": torch.tensor([[1, 0, 1, 0, 0], [0] * 5, [1] * 5]).bool(),
    "all_without_key": torch.zeros(N, M, dtype=torch.bool),
}
KINDS = pytest.mark.parametrize("kind", SIMILARITIES)


def make(kind: str, heads: int = 1) -> Similarity:
    torch.manual_seed(1)
    return build_similarity(kind, D, heads).double()


def inputs(*leading: int, requires_grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    shapes = ((N, D), (M, D), (M, E))
    query, key, value = (torch.randn(*leading, *s, dtype=torch.float64) for s in shapes)
    return tuple(t.requires_grad_(requires_grad) for t in (query, key, value))


@KINDS
@pytest.mark.parametrize("name", MASKS)
def test_equals_loops_over_pairs(kind, name):
    similarity, (query, key, value), mask = make(kind), inputs(), MASKS[name]
    pairs = None if mask is None else mask.expand(N, M)
    expected = naive.attention(kind, similarity.state_dict(), query, key, value, pairs)
    out, weights = attention(query, key, value, similarity, mask, return_weights=True)
    torch.testing.assert_close((out, weights), expected)
    lean, nothing = attention(query, key, value, similarity, mask)
    assert nothing is None
    torch.testing.assert_close(lean, expected[0])


@KINDS
def test_key_may_be_the_value(kind):
    similarity, (query, key, _) = make(kind), inputs()
    expected, _ = naive.attention(kind, similarity.state_dict(), query, key, key)
    torch.testing.assert_close(attention(query, key, key, similarity)[0], expected)


@KINDS
@pytest.mark.parametrize("heads", [1, HEADS])
def test_leading_dimensions_are_independent_attentions(kind, heads):
    similarity, (query, key, value) = make(kind, heads), inputs(3, HEADS)
    out, weights = attention(query, key, value, similarity, return_weights=True)
    for b in range(3):
        for h in range(HEADS):
            own = {k: w[h] if w.dim() == 3 else w for k, w in similarity.state_dict().items()}
            one = naive.attention(kind, own, query[b, h], key[b, h], value[b, h])
            torch.testing.assert_close((out[b, h], weights[b, h]), one)


@KINDS
@pytest.mark.parametrize("name", MASKS)
def test_path_with_weights_and_path_without_agree_in_gradients(kind, name):
    similarity, tensors = make(kind), inputs(requires_grad=True)
    wanted = (*tensors, *similarity.parameters())
    gradients = []
    for explicit in (True, False):
        out, _ = attention(*tensors, similarity, MASKS[name], return_weights=explicit)
        total = (out * torch.arange(out.numel()).view_as(out)).sum()
        gradients.append(torch.autograd.grad(total, wanted, materialize_grads=True))
    torch.testing.assert_close(*gradients)
    assert all(gradient.isfinite().all() for gradient in gradients[0])


@pytest.mark.parametrize("kind", ["dot", "scaled_dot", "general"])
@pytest.mark.parametrize("name", MASKS)
def test_fused_kernel_of_inference_agrees_with_explicit_products(kind, name, monkeypatch):
    similarity, tensors = make(kind), inputs()
    with torch.inference_mode():
        fused, _ = attention(*tensors, similarity, MASKS[name])
        monkeypatch.setattr("mcan.nn.attention._fused_is_faster", lambda *_: False)
        explicit, _ = attention(*tensors, similarity, MASKS[name])
    torch.testing.assert_close(fused, explicit)


@KINDS
@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_query_without_keys_gets_zeros_and_finite_gradients(kind, explicit, device):
    similarity = build_similarity(kind, 8).to(device)
    shapes = ((2, 1, 3, 8), (2, 1, 5, 8), (2, 1, 5, 8))
    tensors = [torch.randn(s, device=device, requires_grad=True) for s in shapes]
    mask = torch.tensor([[True] * 4 + [False], [False] * 5], device=device)[:, None, None]
    out, weights = attention(*tensors, similarity, mask, return_weights=explicit)
    assert bool((out[0] != 0).any())
    assert not out[1].any()
    assert weights is None or not weights[1].any()
    out.sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@KINDS
@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(0, 2), (2, 0), (0, 0)])
def test_no_queries_or_no_keys(kind, explicit, queries, keys):
    query, key, value = torch.ones(2, queries, D), torch.ones(2, keys, D), torch.ones(2, keys, E)
    similarity = build_similarity(kind, D)
    out, weights = attention(query, key, value, similarity, return_weights=explicit)
    torch.testing.assert_close(out, torch.zeros(2, queries, E))
    assert weights is None or weights.shape == (2, queries, keys)


@KINDS
def test_weights_sum_to_one_over_valid_keys(kind):
    mask = MASKS["pair"]
    _, weights = attention(*inputs(2), make(kind), mask, return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, N, dtype=torch.float64))
    assert not weights.masked_select(~mask).any()


def test_concat_weights_do_not_depend_on_the_query():
    query, key, value = inputs()
    similarity = make("concat")
    _, weights = attention(query, key, value, similarity, return_weights=True)
    _, others = attention(7 * query + 1, key, value, similarity, return_weights=True)
    torch.testing.assert_close(weights, others)
    torch.testing.assert_close(weights, weights[:1].expand_as(weights))


@pytest.mark.parametrize("kind", ["scaled_dot", "general", "perceptron"])
@pytest.mark.parametrize("explicit", [True, False])
def test_dropout_zeroes_weights_and_scales_the_rest(kind, explicit):
    """With the identity as value, the output is the weights after dropout."""
    size, rate = 100, 0.3
    torch.manual_seed(0)
    query, key = torch.randn(2, size, D, dtype=torch.float64), torch.randn(size, D).double()
    tensors = (query, key.expand(2, -1, -1), torch.eye(size).double().expand(2, -1, -1))
    _, weights = attention(*tensors, make(kind), return_weights=True)
    dropped, returned = attention(*tensors, make(kind), None, rate, return_weights=explicit)
    kept = dropped != 0
    # Rates are multiples of 2^-16.
    torch.testing.assert_close(dropped[kept], weights[kept] / (1 - rate), rtol=2e-5, atol=0)
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(float((~kept).double().mean()) - rate) < 4 * deviation
    if explicit:
        torch.testing.assert_close(returned, weights)


@KINDS
@pytest.mark.parametrize("explicit", [True, False])
def test_bf16_autocast(kind, explicit):
    similarity = build_similarity(kind, D)
    tensors = [tensor.float().requires_grad_() for tensor in inputs(2, 1)]
    mask = MASKS["some_without_key"]
    exact, _ = attention(*tensors, similarity, mask, return_weights=explicit)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attention(*(t * 1.0 for t in tensors), similarity, mask, return_weights=explicit)
        low = [tensor.bfloat16() for tensor in tensors]
        lowest, _ = attention(*low, similarity, mask, return_weights=explicit)
    for result in (out, lowest):
        torch.testing.assert_close(result.float(), exact, atol=0.05, rtol=0.05)
    (out.sum() + lowest.sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@KINDS
@pytest.mark.parametrize("explicit", [True, False])
def test_gradients(kind, explicit):
    similarity, mask = make(kind), MASKS["some_without_key"]

    def run(*tensors: Tensor) -> Tensor:
        return attention(*tensors[:3], similarity, mask, return_weights=explicit)[0]

    tensors = (*inputs(requires_grad=True), *similarity.parameters())
    assert torch.autograd.gradcheck(run, tensors)


def test_large_scores_do_not_overflow():
    scores = torch.tensor([[1e4, -1e4, 3e38], [3e38, 3e38, 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(masked_softmax(scores, mask), expected)
    half = masked_softmax(scores.clamp(max=6e4).half(), mask)
    torch.testing.assert_close(half, expected.half())


def test_unknown_similarity():
    with pytest.raises(ValueError, match="'cosine' is not one of dot, scaled_dot, general"):
        build_similarity("cosine", D)
