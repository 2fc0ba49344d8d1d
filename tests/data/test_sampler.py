"""Orders: every question once, the same for the same (seed, epoch), resumable anywhere."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcan.data.sampler import BatchSampler, evaluation_batches
from mcan.errors import DataError

CASE = {
    "size": st.integers(1, 60),
    "batch_size": st.integers(1, 20),
    "world": st.integers(1, 4),
    "accumulation": st.integers(1, 3),
    "drop_last": st.booleans(),
    "epoch": st.integers(0, 3),
}


def batches(world: int, accumulation: int, **options: Any) -> list[list[list[int]]]:
    """Per batch the pieces of all ranks, in order."""
    ranks = [
        BatchSampler(seed=5, rank=rank, world=world, accumulation=accumulation, **options)
        for rank in range(world)
    ]
    per_rank = [list(sampler) for sampler in ranks]
    assert all(len(p) == len(s) for p, s in zip(per_rank, ranks, strict=True))
    return [
        [piece for pieces in per_rank for piece in pieces[first : first + accumulation]]
        for first in range(0, len(per_rank[0]), accumulation)
    ]


@given(st.fixed_dictionaries(CASE))
def test_batches_partition_the_dataset(case: dict[str, Any]) -> None:
    size, batch_size = case["size"], case["batch_size"]
    if case["drop_last"] and size < batch_size:
        with pytest.raises(DataError, match=f"{size} questions make no whole batch"):
            batches(**case)
        return
    found = batches(**case)
    whole = batches(**{**case, "world": 1, "accumulation": 1})
    joined = [[row for piece in pieces for row in piece] for pieces in found]
    assert joined == [pieces[0] for pieces in whole]  # cutting changes nothing
    rows = [row for batch in joined for row in batch]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(size))
    assert len(rows) == (size - size % batch_size if case["drop_last"] else size)
    assert all(len(batch) == batch_size for batch in joined[:-1])
    for pieces in found:
        lengths = [len(piece) for piece in pieces]
        assert max(lengths) - min(lengths) <= 1


@given(st.fixed_dictionaries(CASE), st.data())
def test_resuming_yields_the_tail(case: dict[str, Any], data: st.DataObject) -> None:
    case["drop_last"] = False
    rank = data.draw(st.integers(0, case["world"] - 1))
    whole = BatchSampler(seed=1, rank=rank, **case)
    start = data.draw(st.integers(0, whole.batches))
    tail = BatchSampler(seed=1, rank=rank, start=start, **case)
    assert list(tail) == list(whole)[start * case["accumulation"] :]
    assert len(tail) == len(list(tail))
    assert tail.batches == whole.batches


def test_order_follows_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(row for rows in BatchSampler(50, 7, seed, epoch) for row in rows)

    first, state = order(0, 0), torch.get_rng_state()
    torch.manual_seed(123)
    assert order(0, 0) == first
    torch.set_rng_state(state)
    pairs = [(seed, epoch) for seed in (0, 1, 2, 2**32 - 1) for epoch in range(4)]
    assert len({order(*pair) for pair in pairs}) == len(pairs)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_sees_every_row_once(size: int, batch_size: int, world: int) -> None:
    order = np.random.default_rng(size).permutation(size)
    dealt = [evaluation_batches(order, batch_size, rank, world) for rank in range(world)]
    turns = [rows for turn in itertools.zip_longest(*dealt, fillvalue=[]) for rows in turn]
    assert [row for rows in turns for row in rows] == order.tolist()
    assert all(1 <= len(rows) <= batch_size for batches in dealt for rows in batches)
    equal = [evaluation_batches(order, batch_size, rank, world, True) for rank in range(world)]
    assert {len(rows) for batches in equal for rows in batches} <= {batch_size}
    assert {row for batches in equal for rows in batches for row in rows} == set(range(size))
