"""Blocks of attention against loops over samples, rows and heads."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SIMILARITIES, regions, rows, small_config, small_model, tokens

from mcan.nn import blocks
from mcan.nn.blocks import HeadBlocks, blocks_of
from mcan.nn.multihead import MultiHeadAttention
from mcan.ragged import Layout

HEADS, WIDTH = 2, 3

lengths = st.lists(st.integers(0, 20), max_size=7)


def layout_of(lengths: list[int]) -> Layout:
    return Layout.of(torch.tensor(lengths, dtype=torch.int64))


@pytest.fixture
def small_blocks(monkeypatch):
    """Two or three samples each."""
    monkeypatch.setattr(blocks, "BLOCK_SCORES", HEADS * 6**2 * 3)


def own(layout: Layout, exact: bool = False) -> HeadBlocks:
    return blocks_of(layout, layout, HEADS, exact)[0]


@settings(deadline=None)
@given(lengths, st.integers(1, 3), st.booleans(), st.integers(1, 4), st.booleans())
def test_every_row_stands_in_its_block_and_nothing_else(lengths, parts, exact, samples, bf16):
    layout = layout_of(lengths)
    groups = torch.randperm(len(lengths)).split(samples) if lengths else None
    values = torch.arange(1.0, 1 + layout.total * parts * HEADS * WIDTH)
    values = values.view(layout.total, parts * HEADS * WIDTH)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        view = HeadBlocks(layout, HEADS, groups, exact)
        multiple = 8 if layout.rounded else 1
    per_sample = values.view(layout.total, parts, HEADS, WIDTH).split(lengths)
    for group, padded, mask in zip(
        groups or [range(len(lengths))], view.split(values, parts), view.masks, strict=True
    ):
        longest = max((lengths[sample] for sample in group), default=0)
        assert len(padded) == parts
        for part, tensor in enumerate(padded):
            assert tensor.shape[:2] == (len(group), HEADS)
            rounded = max(16, -(-longest // multiple) * multiple)
            assert tensor.shape[2] == (longest if exact or mask is None else rounded)
            for row, sample in enumerate(group):
                count = lengths[sample]
                assert torch.equal(
                    tensor[row, :, :count], per_sample[sample][:, part].transpose(0, 1)
                )
                assert not tensor[row, :, count:].any()
                if mask is None:
                    assert tensor.shape[2] == count
                else:
                    assert mask[row, 0, 0].tolist() == [i < count for i in range(tensor.shape[2])]
    merged = view.merge([padded[-1] for padded in view.split(values, parts)])
    assert torch.equal(merged, values.view(layout.total, parts, HEADS * WIDTH)[:, -1])


@pytest.mark.parametrize("lengths", [[3, 1, 0, 5], [2, 2], [20, 1]])
@pytest.mark.parametrize("groups", [None, (torch.tensor([1]), torch.tensor([0, 2, 3]))])
def test_gradients(lengths, groups):
    if groups is not None and len(lengths) < 4:
        groups = tuple(torch.arange(len(lengths)).split(1))
    view = HeadBlocks(layout_of(lengths), HEADS, groups)
    values = torch.randn(sum(lengths), 2 * HEADS * WIDTH, dtype=torch.float64, requires_grad=True)

    def there(values):
        return [first * second for first, second in view.split(values, 2)]

    assert torch.autograd.gradcheck(lambda v: tuple(there(v)), values)
    assert torch.autograd.gradcheck(lambda v: view.merge(there(v)) ** 2, values)


def test_blocks_hold_similar_lengths_and_each_sample_once(small_blocks):
    layout = layout_of([6, 1, 4, 2, 5, 3])
    groups = own(layout).groups
    assert sorted(torch.cat(groups).tolist()) == list(range(6))
    assert [sorted(layout.lengths[group].tolist()) for group in groups] == [[1, 2, 3], [4, 5, 6]]


def test_one_block_where_scores_are_few_or_samples_equally_long_or_weights_are_recorded():
    assert own(layout_of([6, 1, 4])).groups is None
    assert own(layout_of([300] * 64)).groups is None
    uneven = layout_of([300, 10] * 32)
    assert own(uneven).groups is not None
    assert own(uneven, exact=True).groups is None


def test_the_longest_images_are_alone():
    assert len(own(layout_of([3000, 2999, 2998])).groups) == 3


def test_layers_share_what_follows_from_a_pair_of_layouts():
    x, y, other = layout_of([4, 2]), layout_of([1, 3]), layout_of([2, 2])
    assert blocks_of(x, y, HEADS)[1] is blocks_of(x, y, HEADS)[1]
    assert blocks_of(x, y, HEADS)[0] is blocks_of(x, other, HEADS)[0] is own(x)
    assert blocks_of(x, y, HEADS)[1] is not blocks_of(x, other, HEADS)[1]
    assert blocks_of(x, y, 1)[1] is not blocks_of(x, y, HEADS)[1]


@pytest.mark.parametrize("kind", SIMILARITIES)
@pytest.mark.parametrize("self_attention", [True, False])
def test_attention_in_blocks_equals_one_block(kind, self_attention, monkeypatch):
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, HEADS, similarity=kind).double()
    query, results = rows([3, 17, 1, 0, 4, 2], 8), []
    source = rows([2, 1, 0, 5, 3, 18], 8, seed=1)
    values = query.values.requires_grad_()
    for scores in (2**20, HEADS * 17**2 * 2, 1):
        monkeypatch.setattr(blocks, "BLOCK_SCORES", scores)
        x = query.replace(values)
        x.layout._known.clear()
        out, _ = attention(x, x if self_attention else source)
        total = (out * torch.arange(out.numel()).view_as(out)).sum()
        wanted = (values, *attention.parameters())
        results.append((out, *torch.autograd.grad(total, wanted)))
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_logits_in_blocks_equal_those_of_one_block(monkeypatch):
    model = small_model(small_config())
    logits = model(tokens([14, 1, 6, 3]), regions([10, 40, 100, 25]))
    monkeypatch.setattr(blocks, "BLOCK_SCORES", HEADS * 100**2)
    in_blocks = model(tokens([14, 1, 6, 3]), regions([10, 40, 100, 25]))
    torch.testing.assert_close(in_blocks, logits)


@pytest.mark.parametrize("lengths", [[2, 2], [3, 1]])
def test_a_layout_is_given_back_with_its_batch(lengths):
    """Without waiting for the collector of cycles: on a GPU it would hold memory there."""
    gc.disable()
    try:
        layout = Layout.of(torch.tensor(lengths))
        blocks_of(layout, layout, heads=2)
        gone = weakref.ref(layout)
        del layout
        assert gone() is None
    finally:
        gc.enable()
