"""Batches: every tensor moves; sparse targets against a loop over entries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcan.batch import Batch, ImageInput, Targets
from mcan.ragged import Ragged

ROWS, ANSWERS = 4, 5
entries = st.dictionaries(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, ANSWERS - 1)),
    st.sampled_from([0.3, 0.6, 0.9, 1.0]),
)


def targets(scores: dict[tuple[int, int], float]) -> Targets:
    rows, answers = (torch.tensor([e[i] for e in scores], dtype=torch.int64) for i in (0, 1))
    return Targets(rows, answers, torch.tensor(list(scores.values()), dtype=torch.float32))


@settings(deadline=None)
@given(entries)
def test_dense_targets(scores):
    dense = targets(scores).dense(ROWS, ANSWERS)
    expected = torch.zeros(ROWS, ANSWERS)
    for (row, answer), score in scores.items():
        expected[row, answer] = score
    assert dense.dtype == torch.float32
    assert torch.equal(dense, expected)


def test_dense_targets_of_no_questions():
    assert targets({}).dense(0, ANSWERS).shape == (0, ANSWERS)


def batch() -> Batch:
    image = ImageInput(
        regions=Ragged.of([torch.rand(2, 3), torch.rand(1, 3)]),
        boxes=torch.rand(3, 4),
        grid=Ragged.of([torch.rand(4, 2), torch.rand(4, 2)]),
        grid_cells=torch.zeros(8, 2, dtype=torch.int64),
    )
    question = Ragged.of([torch.tensor([1, 2]), torch.tensor([3])])
    return Batch(question, image, targets({(0, 1): 1.0}), torch.tensor([7, 8]))


def tensors(part: object, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        yield name, part
    elif isinstance(part, Ragged):
        yield from ((f"{name}.values", part.values), (f"{name}.lengths", part.layout.lengths))
    elif is_dataclass(part):
        for field in fields(part):
            yield from tensors(getattr(part, field.name), f"{name}.{field.name}")


def test_every_tensor_moves():
    ours, moved = dict(tensors(batch())), dict(tensors(batch().to("meta")))
    assert ours.keys() == moved.keys()
    assert len(ours) == 12
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    for name, tensor in moved.items():
        assert (tensor.shape, tensor.dtype) == (ours[name].shape, ours[name].dtype)


def test_what_is_absent_stays_absent():
    moved = batch().to("meta").image
    assert moved.pixels is None
    assert moved.cells is None


def test_size_and_immutability():
    ours = batch()
    assert ours.size == 2
    with pytest.raises(FrozenInstanceError):
        ours.index = torch.zeros(2)
