"""Predictions: every row once over all processes, best answers first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from mcan.batch import Batch
from mcan.data.arrays import array_to_ids
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.evaluation.predict import Predictions, predict
from mcan.preparation.synthetic import make_synthetic

QUESTIONS, ANSWERS = 23, 5
TABLE = torch.rand(QUESTIONS, ANSWERS, generator=torch.Generator().manual_seed(0))


def packed(batch: Batch) -> Batch:
    return batch.enter("cpu", "packed")


def score(batch: Batch) -> Tensor:
    """A table instead of a model: row i is the scores of question i."""
    return TABLE[batch.index]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VQADataset:
    folder = tmp_path_factory.mktemp("data")
    paths = make_synthetic(folder, questions=QUESTIONS, images=4, answers=ANSWERS)
    return VQADataset([Prepared.open(paths.prepared).split("train")], [open_store(paths.images)])


@pytest.mark.parametrize(
    ("batch_size", "top", "world", "workers"),
    [(1, 1, 1, 0), (4, 2, 1, 2), (100, ANSWERS, 1, 0), (4, 2, 3, 0), (4, 2, 40, 0)],
)
def test_against_numpy_over_all_processes(dataset, batch_size, top, world, workers):
    parts = [
        predict(score, dataset, batch_size, packed, top, workers, rank, world)
        for rank in range(world)
    ]
    found = [part for part in parts if part is not None]
    sizes = [len(part.rows) for part in found]
    assert len(found) == world
    assert sum(sizes) == QUESTIONS
    assert max(sizes) - min(sizes) <= batch_size
    assert all(part.answers.shape == part.probabilities.shape for part in found)
    merged = Predictions.merge(found[::-1])
    order = np.argsort(-TABLE.numpy(), axis=1)[:, :top]
    np.testing.assert_array_equal(merged.rows, np.arange(QUESTIONS))
    np.testing.assert_array_equal(merged.answers, order)
    expected = np.take_along_axis(TABLE.numpy(), order, axis=1)
    np.testing.assert_array_equal(merged.probabilities, expected)


def test_stop(dataset):
    asked = iter([False, False, True])
    seen: list[int] = []

    def counted(batch: Batch) -> Tensor:
        seen.extend(batch.index.tolist())
        return score(batch)

    assert predict(counted, dataset, 4, packed, should_stop=lambda: next(asked)) is None
    assert seen == dataset.evaluation_order()[:8].tolist()


def test_neighbours_share_images_and_lengths(dataset):
    """Images with the most regions first; a batch has each of its images once."""
    store, split = dataset.images.stores[0], dataset.splits[0]
    ids = array_to_ids(split.image_ids[split.image_index])
    images = np.array([store.image_ids.tolist().index(image_id) for image_id in ids])
    lengths = np.diff(store.offsets)[images]
    seen: list[int] = []

    def noted(batch: Batch) -> Tensor:
        seen.extend(batch.index.tolist())
        assert len(batch.image.rows.lengths) == len(set(images[batch.index.numpy()]))
        return score(batch)

    predict(noted, dataset, 4, packed)
    assert (np.diff(lengths[seen]) <= 0).all()
    assert (np.diff(images[seen]) != 0).sum() == len(set(images)) - 1


def test_order_where_single_precision_has_none(dataset):
    """The sigmoids of 18, 25 and 30 are all 1 in float32."""

    def sure(batch: Batch) -> Tensor:
        return torch.tensor([18.0, 25.0, 30.0]).double().sigmoid().expand(batch.size, -1)

    predictions = predict(sure, dataset, 8, packed, top=3)
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
        predict(score, dataset, 4, packed)
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

    predictions = predict(half, dataset, 8, packed)
    assert predictions is not None
    assert predictions.probabilities.dtype == np.float32
