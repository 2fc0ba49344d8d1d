"""Both layouts of rows against loops over samples and rows."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcan import rows
from mcan.rows import Packed, Padded, filler_rows, gather_rows, scatter_rows

HEADS, WIDTH = 2, 3
lengths = st.lists(st.integers(0, 6), max_size=5)
fillers = st.integers(0, 3)
ANY = settings(deadline=None)


def packed(lengths: list[int], filler: int = 0) -> Packed:
    return Packed(torch.tensor(lengths, dtype=torch.int64), filler)


def numbered(of: Packed, width: int = 2, start: int = 1) -> Tensor:
    """Rows (T, width) of distinct numbers other than zero."""
    count = of.total * width
    return torch.arange(start, start + count, dtype=torch.float64).view(of.total, width)


def split(x: Tensor, of: Packed) -> list[Tensor]:
    return list(torch.split(x[: of.valid], of.lengths.tolist()))


def padded_twin(x: Tensor, of: Packed) -> tuple[Tensor, Padded]:
    """The same rows in the padded layout."""
    out = x.new_zeros(len(of.lengths), of.longest, *x.shape[1:])
    for sample, own in enumerate(split(x, of)):
        out[sample, : len(own)] = own
    return out, Padded(torch.arange(of.longest) < of.lengths[:, None])


def equal_samples(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@ANY
@given(lengths, fillers)
def test_indices_and_padding(lengths, filler):
    of = packed(lengths, filler)
    places = [i for length in lengths for i in range(length)]
    assert (of.longest, of.valid) == (max(lengths, default=0), sum(lengths))
    assert of.total == sum(lengths) + filler
    assert of.position.tolist() == places + [0] * filler
    assert of.mask.tolist() == [[i < length for i in range(of.longest)] for length in lengths]
    assert of.some_empty == (0 in lengths)
    x = numbered(of)
    assert torch.equal(of.pad(x), padded_twin(x, of)[0])
    back = of.unpad(of.pad(x))
    assert torch.equal(back[: of.valid], x[: of.valid])
    assert back.shape == x.shape
    assert not back[of.valid :].any()


def test_filler_that_makes_up_for_a_missing_row_is_no_row():
    """T = 4 x 8, but not four samples of eight."""
    of = packed([8, 6, 8, 8], filler=2)
    assert not of.pad(numbered(of))[1, 6:].any()


@ANY
@given(lengths, fillers, lengths, fillers, st.sampled_from([1, 60, 10**6]))
def test_heads_of_groups(lengths, filler, others, other_filler, scores):
    """Queries and the keys of the same samples, in groups of one, of some, and of all samples."""
    others = (others + [1] * len(lengths))[: len(lengths)]
    queries, keys = packed(lengths, filler), packed(others, other_filler)
    old, rows.GROUP_SCORES = rows.GROUP_SCORES, scores
    try:
        groups = queries.groups(HEADS)
        assert sorted(torch.cat(groups).tolist()) == list(range(len(lengths)))
        for of in (queries, keys):
            x = numbered(of, HEADS * WIDTH)
            samples = [own.view(-1, HEADS, WIDTH).transpose(0, 1) for own in split(x, of)]
            parts, masks = of.split_heads(x, HEADS, queries), of.key_masks(HEADS, queries)
            for group, part, mask in zip(groups, parts, masks, strict=True):
                for row, sample in enumerate(group.tolist()):
                    count = samples[sample].shape[1]
                    assert torch.equal(part[row, :, :count], samples[sample])
                    assert not part[row, :, count:].any()
                    valid = torch.arange(part.shape[2]) < count
                    assert torch.equal(valid, valid | True if mask is None else mask[row, 0, 0])
        x = numbered(queries, HEADS * WIDTH)
        joined = queries.join_heads(queries.split_heads(x, HEADS, queries))
        assert torch.equal(joined[: queries.valid], x[: queries.valid])
        assert not joined[queries.valid :].any()
    finally:
        rows.GROUP_SCORES = old


def test_groups_have_samples_of_similar_length(monkeypatch):
    monkeypatch.setattr(rows, "GROUP_SCORES", HEADS * 9**2 * 2)
    of = packed([9, 1, 8, 2, 9])
    groups = [of.lengths[samples].tolist() for samples in of.groups(HEADS)]
    assert groups == [[1, 2], [8, 9], [9]]
    assert len(packed([9, 9, 9]).groups(HEADS)) == 1
    assert len(Packed(of.lengths, device="meta").groups(HEADS)) == 1


@ANY
@given(lengths.filter(bool), fillers, st.lists(st.integers(0, 4), max_size=7))
def test_taking_samples(lengths, filler, chosen):
    of, index = packed(lengths, filler), torch.tensor([i % len(lengths) for i in chosen]).long()
    x = numbered(of)
    taken, taken_rows = of.take(x, index)
    assert len(taken) == taken_rows.total
    assert equal_samples(split(taken, taken_rows), [split(x, of)[i] for i in index.tolist()])
    as_padded, padded_rows = padded_twin(x, of)
    found, found_rows = padded_rows.take(as_padded, index)
    assert equal_samples(list(found), list(as_padded[index]))
    assert found_rows.mask.sum(1).tolist() == taken_rows.lengths.tolist()


@ANY
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5), fillers, fillers)
def test_appending(pairs, filler, other_filler):
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    ours, theirs = packed(first, filler), packed(second, other_filler)
    x, y = numbered(ours), numbered(theirs, start=1000)
    expected = [torch.cat(own) for own in zip(split(x, ours), split(y, theirs), strict=True)]
    joined, joined_rows = ours.append(x, y, theirs)
    assert joined_rows.total == len(joined) == ours.total + theirs.total
    assert equal_samples(split(joined, joined_rows), expected)
    (a, a_rows), (b, b_rows) = padded_twin(x, ours), padded_twin(y, theirs)
    found, found_rows = a_rows.append(a, b, b_rows)
    assert equal_samples([f[m] for f, m in zip(found, found_rows.mask, strict=True)], expected)


def test_rows_that_are_all_valid_take_the_layout_of_others():
    x = torch.randn(2, 3, 4)
    flat, flat_rows = packed([1, 5]).equal(x)
    assert torch.equal(flat, x.flatten(0, 1))
    assert (flat_rows.lengths.tolist(), flat_rows.some_empty) == ([3, 3], False)
    same, same_rows = Padded(torch.ones(2, 1, dtype=torch.bool)).equal(x)
    assert same is x
    assert same_rows.mask.all()
    assert not same_rows.some_empty


def test_a_packed_layout_reads_nothing_from_its_device():
    """The meta device fails if a value is read."""
    of = Packed(torch.tensor([3, 1, 0]), 2, device="meta")
    x = torch.zeros(of.total, 4, device="meta")
    assert of.pad(x).shape == (3, 3, 4)
    taken, taken_rows = of.take(x, torch.tensor([1, 1]))
    joined, joined_rows = taken_rows.append(taken, taken, taken_rows)
    assert joined_rows.join_heads(joined_rows.split_heads(joined, 2, joined_rows)).shape == (4, 4)
    assert of.mask.device.type == of.position.device.type == "meta"


@ANY
@given(st.lists(st.integers(0, 140), max_size=5))
def test_filler_rows(lengths):
    filler, longest = filler_rows(torch.tensor(lengths).long()), max(lengths, default=0)
    multiple = max([1] + [2**power for power in range(8) if 2**power <= longest])
    assert 0 <= filler < multiple
    if len(set(lengths)) > 1:
        assert (sum(lengths) + filler) % multiple == 0
    else:
        assert filler == 0


def test_gradients_of_first_and_second_order():
    slots = torch.tensor([5, 0, 3, 1])
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    for function, tensor in (
        (lambda x: scatter_rows(x, slots, 7) ** 2, x),
        (lambda y: gather_rows(y, slots, 4) ** 2, y),
        (lambda y: gather_rows(y, slots, 6) ** 2, y),
    ):
        assert torch.autograd.gradcheck(function, tensor)
        assert torch.autograd.gradgradcheck(function, tensor)
