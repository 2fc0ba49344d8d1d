"""Predictions: every row once over all processes, best answers first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.data.synthetic import make_synthetic
from mcan.evaluation.predict import Predictions, predict

CPU = torch.device("cpu")
QUESTIONS, ANSWERS = 23, 5
TABLE = torch.rand(QUESTIONS, ANSWERS, generator=torch.Generator().manual_seed(0))


def score(batch: Batch) -> Tensor:
    """A table instead of a model: row i is the scores of question i."""
    return TABLE[batch.index]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VQADataset:
    folder = tmp_path_factory.mktemp("data")
    paths = make_synthetic(folder, questions=QUESTIONS, images=4, answers=ANSWERS)
    return VQADataset([Prepared.open(paths.prepared).split("train")], [open_store(paths.images)])


def check(predictions: Predictions | None, top: int) -> None:
    assert predictions is not None
    order = np.argsort(-TABLE.numpy(), axis=1)[:, :top]
    np.testing.assert_array_equal(predictions.rows, np.arange(QUESTIONS))
    np.testing.assert_array_equal(predictions.answers, order)
    expected = np.take_along_axis(TABLE.numpy(), order, axis=1)
    np.testing.assert_array_equal(predictions.probabilities, expected)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("top", [1, 3, ANSWERS])
def test_against_numpy(dataset, batch_size, top):
    check(predict(score, dataset, batch_size, CPU, top), top)


def test_workers(dataset):
    check(predict(score, dataset, 4, CPU, 2, workers=2), 2)


@pytest.mark.parametrize("world", [1, 2, 3, 22, 23, 24, 40])
def test_parts_are_the_whole(dataset, world):
    parts = [predict(score, dataset, 4, CPU, 2, rank=r, world=world) for r in range(world)]
    found = [part for part in parts if part is not None]
    assert len(found) == world
    sizes = [len(part.rows) for part in found]
    assert sum(sizes) == QUESTIONS
    assert max(sizes) - min(sizes) <= 4  # a batch
    check(Predictions.merge(found), 2)
    check(Predictions.merge(found[::-1]), 2)


def test_empty_part_has_the_shape_of_others(dataset):
    part = predict(score, dataset, 4, CPU, 3, rank=23, world=24)
    assert part is not None
    assert part.rows.shape == (0,)
    assert part.answers.shape == part.probabilities.shape == (0, 3)


def test_stop(dataset):
    asked = iter([False, False, True])
    seen: list[int] = []

    def counted(batch: Batch) -> Tensor:
        seen.extend(batch.index.tolist())
        return score(batch)

    assert predict(counted, dataset, 4, CPU, should_stop=lambda: next(asked)) is None
    assert seen == dataset.evaluation_order()[:8].tolist()


def test_neighbours_share_images_and_lengths(dataset):
    """Images with the most regions first; a batch has each of its images once."""
    regions = np.diff(dataset.images.stores[0].offsets)
    images = np.array([dataset.images.stores[0].image_ids.tolist().index(i) for i in ids(dataset)])
    seen: list[int] = []

    def noted(batch: Batch) -> Tensor:
        rows = batch.index.numpy()
        seen.extend(rows.tolist())
        lengths = batch.image.regions.layout.lengths
        assert len(lengths) == len(set(images[rows]))
        if batch.image.of_question is not None:
            lengths = lengths[batch.image.of_question]
        assert lengths.tolist() == regions[images[rows]].tolist()
        return score(batch)

    predict(noted, dataset, 4, CPU)
    assert (np.diff(regions[images[seen]]) <= 0).all()
    changes = (np.diff(images[seen]) != 0).sum()
    assert changes == len(set(images)) - 1


def ids(dataset: VQADataset) -> list[Any]:
    return dataset.image_ids(range(len(dataset)))


def test_order_where_single_precision_has_none(dataset):
    """The sigmoids of 18, 25 and 30 are all 1 in float32."""

    def sure(batch: Batch) -> Tensor:
        return torch.tensor([18.0, 25.0, 30.0]).double().sigmoid().expand(batch.size, -1)

    predictions = predict(sure, dataset, 8, CPU, top=3)
    assert predictions is not None
    assert (predictions.answers == [2, 1, 0]).all()


def test_weights_are_rounded_once(dataset):
    """Of an evaluation under autocast, not in each of its batches."""
    linear, kept = torch.nn.Linear(3, 2), []

    def score(batch: Batch) -> Tensor:
        out: Tensor = linear(torch.ones(batch.size, 3))
        kept.append(out)
        return out

    with profile(record_shapes=True) as profiler, torch.autocast("cpu", torch.bfloat16):
        predict(score, dataset, 4, CPU)
    rounded = [
        event
        for event in profiler.key_averages(group_by_input_shape=True)
        if event.key == "aten::_to_copy" and event.input_shapes[:1] == [[2, 3]]
    ]
    assert len(kept) == 6
    assert sum(event.count for event in rounded) == 1


def test_no_gradient_and_half_precision(dataset):
    def half(batch: Batch) -> Tensor:
        assert not torch.is_grad_enabled()
        return score(batch).bfloat16()

    predictions = predict(half, dataset, 8, CPU)
    assert predictions is not None
    assert predictions.probabilities.dtype == np.float32
    assert predictions.answers.dtype == np.int64
