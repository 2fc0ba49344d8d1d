"""Packed rows against loops over samples and rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcan.ragged import Layout, Ragged

lengths = st.lists(st.integers(0, 5), max_size=5)
pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5)
shapes = st.sampled_from([(), (3,), (2, 2)])


def layout_of(lengths: list[int]) -> Layout:
    return Layout.of(torch.tensor(lengths, dtype=torch.int64))


def numbered(count: int, shape: tuple[int, ...] = (), start: int = 1) -> Tensor:
    """Values (count, *shape) without a zero, all different."""
    size = count * torch.Size(shape).numel()
    return torch.arange(start, start + size, dtype=torch.float64).view(count, *shape)


def ragged(lengths: list[int], shape: tuple[int, ...] = (), start: int = 1) -> Ragged:
    return Ragged(numbered(sum(lengths), shape, start), layout_of(lengths))


@settings(deadline=None)
@given(lengths)
def test_indices(lengths):
    layout = layout_of(lengths)
    longest = max(lengths, default=0)
    places = [(b, i) for b, length in enumerate(lengths) for i in range(length)]
    assert (layout.batch, layout.longest, layout.total) == (len(lengths), longest, sum(lengths))
    assert layout.sample.tolist() == [b for b, _ in places]
    assert layout.position.tolist() == [i for _, i in places]
    assert layout.slots.tolist() == [b * longest + i for b, i in places]
    assert layout.starts.tolist() == [sum(lengths[:b]) for b in range(len(lengths))]
    assert layout.mask.tolist() == [[i < length for i in range(longest)] for length in lengths]
    assert layout.dense == (len(set(lengths)) <= 1)


@settings(deadline=None)
@given(lengths, shapes)
def test_padding_puts_every_row_in_its_place_and_zeros_elsewhere(lengths, shape):
    rows = ragged(lengths, shape)
    padded = rows.padded()
    assert padded.shape == (len(lengths), max(lengths, default=0), *shape)
    expected = torch.zeros_like(padded)
    for b, sample in enumerate(rows.split()):
        for i, row in enumerate(sample):
            expected[b, i] = row
    assert torch.equal(padded, expected)
    assert torch.equal(rows.layout.unpad(padded), rows.values)


@settings(deadline=None)
@given(lengths)
def test_unpadding_is_the_adjoint_of_padding(lengths):
    layout = layout_of(lengths)
    torch.manual_seed(0)
    x = torch.randn(layout.total, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(layout.batch, layout.longest, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close((layout.pad(x) * y).sum(), (x * layout.unpad(y)).sum())
    (back,) = torch.autograd.grad((layout.pad(x) * y).sum(), x)
    torch.testing.assert_close(back, layout.unpad(y))
    (back,) = torch.autograd.grad((x * layout.unpad(y)).sum(), y)
    torch.testing.assert_close(back, layout.pad(x))


def test_gradients_of_first_and_second_order():
    layout, other = layout_of([2, 0, 3]), ragged([1, 2, 0], (2,))
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    functions = (
        (lambda values: layout.pad(values) ** 2, x),
        (lambda padded: layout.unpad(padded) ** 2, y),
        (lambda values: Ragged(values, layout).append(other).values ** 2, x),
    )
    for function, tensor in functions:
        assert torch.autograd.gradcheck(function, tensor)
        assert torch.autograd.gradgradcheck(function, tensor)


def test_equally_long_samples_are_not_copied():
    rows = ragged([3, 3], (4,))
    padded = rows.padded()
    assert padded.data_ptr() == rows.values.data_ptr()
    assert rows.layout.unpad(padded).data_ptr() == padded.data_ptr()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bool])
def test_padding_keeps_the_type(dtype):
    values = torch.tensor([1, 1, 1]).to(dtype)
    padded = Ragged(values, layout_of([1, 2])).padded()
    assert padded.dtype == dtype
    assert padded.tolist() == [[1, 0], [1, 1]]


@settings(deadline=None)
@given(lengths.filter(bool), st.lists(st.integers(0, 4), max_size=7), shapes)
def test_taking_samples(lengths, samples, shape):
    samples = [sample % len(lengths) for sample in samples]
    whole = ragged(lengths, shape)
    taken = whole.take(torch.tensor(samples, dtype=torch.int64))
    assert taken.layout.total == sum(lengths[sample] for sample in samples)
    assert taken.layout.batch == len(samples)
    for found, sample in zip(taken.split(), samples, strict=True):
        assert torch.equal(found, whole.split()[sample])
    assert taken.padded().shape[:2] == (len(samples), max(lengths))


@settings(deadline=None)
@given(pairs, shapes)
def test_appending(pairs, shape):
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    ours, theirs = ragged(first, shape), ragged(second, shape, start=1000)
    joined = ours.append(theirs)
    expected = [torch.cat(samples) for samples in zip(ours.split(), theirs.split(), strict=True)]
    assert joined.layout.total == sum(first) + sum(second)
    for sample, wanted in zip(joined.split(), expected, strict=True):
        assert torch.equal(sample, wanted)
    padded = joined.padded()
    assert padded.shape[1] == max((len(sample) for sample in expected), default=0)
    for row, wanted in zip(padded, expected, strict=True):
        assert torch.equal(row[: len(wanted)], wanted)
        assert not row[len(wanted) :].any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 140), max_size=5), shapes)
def test_filling_up_adds_a_sample_of_zeros(lengths, shape):
    rows, longest, total = ragged(lengths, shape), max(lengths, default=0), sum(lengths)
    with torch.autocast("cpu", torch.bfloat16):
        filled = rows.filled_up()
    multiple = max([1] + [2**power for power in range(8) if 2**power <= longest])
    if len(set(lengths)) > 1:
        total = -(-total // multiple) * multiple
    assert filled.layout.total == len(filled.values) == total
    assert (filled.layout.batch, filled.layout.longest) == (len(lengths) + 1, longest)
    *samples, added = filled.split()
    assert all(torch.equal(*pair) for pair in zip(samples, rows.split(), strict=True))
    assert not added.any()


def test_rows_are_missing_for_products_in_bf16_on_cpu_alone():
    layout = layout_of([100, 200])
    assert layout.missing == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert layout.missing == 84
        assert layout.to("meta").missing == 0


def test_appending_reads_no_device():
    """There, the longest sample has an upper bound."""
    joined = ragged([3, 1], (2,)).to("meta").append(ragged([1, 2], (2,)).to("meta"))
    assert (joined.layout.longest, joined.layout.total) == (5, 7)


def test_what_follows_from_a_layout_is_found_once():
    layout, found = layout_of([2, 1]), []
    for key in ("a", "a", "b"):
        layout.once(key, lambda: found.append(1))
    assert len(found) == 2
    assert layout.slots is layout.slots


def test_appending_dense_samples_stays_dense():
    assert ragged([2, 2], (3,)).append(ragged([4, 4], (3,))).layout.dense


@settings(deadline=None)
@given(lengths.filter(bool), shapes)
def test_packing_and_splitting_are_inverse(lengths, shape):
    samples = [numbered(length, shape, 10 * b + 1) for b, length in enumerate(lengths)]
    packed = Ragged.of(samples)
    assert packed.layout.lengths.tolist() == lengths
    assert all(torch.equal(*pair) for pair in zip(packed.split(), samples, strict=True))


def test_no_samples():
    nothing = ragged([], (3,))
    assert nothing.layout.dense
    assert nothing.padded().shape == (0, 0, 3)
    assert nothing.append(nothing).values.shape == (0, 3)
    assert nothing.split() == []


def test_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="7 rows do not fit 2 samples of 3"):
        Layout(torch.tensor([3, 4]), 3, 7)


def test_moving():
    rows = ragged([2, 1], (3,))
    assert rows.to("cpu").layout is rows.layout
    moved = rows.to("meta")
    assert (moved.values.device.type, moved.layout.lengths.device.type) == ("meta", "meta")
    assert (moved.layout.longest, moved.layout.total) == (2, 3)
    assert moved.padded().shape == (2, 2, 3)
    assert moved.layout.mask.device.type == "meta"


def test_replacing_keeps_the_layout():
    rows = ragged([2, 1], (3,))
    assert rows.replace(rows.values[:, 0]).layout is rows.layout
