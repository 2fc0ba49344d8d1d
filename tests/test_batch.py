"""Batches: what enters a device, in which layout and type; sparse targets against a loop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcan.batch import MAX_SHAPES, Batch, PaddedLengths
from mcan.build import choose_lengths
from mcan.engine.run_folder import resolve_rows
from mcan.rows import Packed, Padded

sys.path.insert(0, str(Path(__file__).parent / "nn"))
from small import LAYOUTS, make_batch, split


def batch(filled: bool = False) -> Batch:
    return make_batch([2, 1, 3], [3, 1], grid=[2, 4], of_question=[0, 1, 1], filled=filled)


def tensors(part: object, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    if isinstance(part, Tensor):
        yield name, part
    elif is_dataclass(part):
        for field in fields(part):
            yield from tensors(getattr(part, field.name), f"{name}.{field.name}")


def parts(of: Batch) -> Iterator[tuple[Tensor, Padded | Packed]]:
    """Each tensor of rows, with its rows."""
    yield of.question.tokens, of.question.rows
    for name in ("regions", "boxes"):
        yield getattr(of.image, name), of.image.rows
    for name in ("grid", "grid_cells"):
        yield getattr(of.image, name), of.image.grid_rows


@pytest.mark.parametrize("filled", [False, True])
def test_padded_rows_are_those_of_the_loader(filled):
    made = batch(filled)
    entered = made.enter("cpu", "padded", torch.float64)
    for (values, rows), (packed, old) in zip(parts(entered), parts(made), strict=True):
        assert rows.mask.sum(1).tolist() == old.lengths.tolist()
        assert not rows.some_empty
        for row, own in zip(values, split(packed, old), strict=True):
            assert torch.equal(row[: len(own)], own)
            assert not row[len(own) :].any()


@pytest.mark.parametrize(
    ("dtype", "filler"), [(torch.float32, False), (torch.bfloat16, True), (torch.float64, False)]
)
def test_filler_rows_enter_for_bf16_on_a_cpu_alone(dtype, filler):
    made = batch(filled=True)
    entered = made.enter("cpu", "packed", dtype)
    for (values, rows), (source, old) in zip(parts(entered), parts(made), strict=True):
        assert rows.filler == (old.filler if filler else 0)
        assert torch.equal(values, source[: rows.total].to(values.dtype))
    assert entered.image.grid.dtype == dtype
    # Corners of boxes are not rounded to bf16.
    assert entered.image.boxes.dtype == torch.promote_types(dtype, torch.float32)
    assert made.image.grid_rows.filler
    assert made.enter("meta", "packed", torch.bfloat16).image.grid_rows.filler == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_enters_the_device_without_a_read(layout):
    """The meta device fails if a value is read."""
    moved = dict(tensors(batch().enter("meta", layout)))
    assert moved.keys() >= dict(tensors(batch())).keys()
    on_cpu = {name for name, tensor in moved.items() if tensor.device.type == "cpu"}
    # Packed rows take samples on the CPU, where their lengths are.
    assert on_cpu == {"batch.image.of_question"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_enters(layout):
    entered = make_batch([], []).enter("cpu", layout)
    assert entered.size == len(entered.question.tokens) == len(entered.image.regions) == 0


def test_padded_lengths_are_the_smallest_that_fit():
    lengths = PaddedLengths((4, 2), (3,))
    for words, regions, shape in (([2, 1], [1, 1], (2, 3)), ([3, 1], [4, 1], (4, 4))):
        entered = make_batch(words, regions).enter("cpu", "padded", lengths=lengths)
        assert (entered.question.tokens.shape[1], entered.image.regions.shape[1]) == shape


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=30),
    st.lists(st.integers(0, 100), min_size=1, max_size=30),
)
def test_few_lengths_are_chosen_from_the_data(words, regions):
    chosen = choose_lengths(np.array(words), np.array(regions), np.array(regions))
    assert len(chosen.words) * len(chosen.regions) <= MAX_SHAPES
    assert (max(chosen.words), max(chosen.regions)) == (max(words), max(regions))
    assert chosen.grid == (max(regions),)
    assert set(chosen.words) <= set(words)
    assert set(chosen.regions) <= set(regions)


def test_equal_lengths_leave_one():
    chosen = choose_lengths(np.array([3, 9, 14, 5]), np.array([36] * 4))
    assert (chosen.words, chosen.regions, chosen.grid) == ((5, 9, 14), (36,), ())


@pytest.mark.parametrize(
    ("rows", "device", "compiled", "layout"),
    [
        ("auto", "cpu", False, "packed"),
        ("auto", "cpu", True, "padded"),
        ("auto", "cuda", False, "padded"),
        ("packed", "cuda", False, "packed"),
        ("padded", "cpu", False, "padded"),
    ],
)
def test_layout_of_a_device(rows, device, compiled, layout):
    assert resolve_rows(rows, torch.device(device), compiled) == layout
