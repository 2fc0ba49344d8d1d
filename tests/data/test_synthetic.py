"""Made-up datasets have the shape asked for, are the same for the same seed, and can be learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.data.preflight import preflight
from mcan.data.prepared import Prepared
from mcan.data.store import open_store
from mcan.data.synthetic import SyntheticPaths, make_synthetic


def open_all(paths: SyntheticPaths, split: str = "train") -> VQADataset:
    return VQADataset(
        [Prepared.open(paths.prepared).split(split)],
        [open_store(paths.images)],
        [open_store(paths.grid)] if paths.grid else [],
    )


def test_shapes(tmp_path: Path) -> None:
    paths = make_synthetic(
        tmp_path, questions=80, images=30, regions=(2, 9), words=(1, 4), boxes=True, grid=True
    )
    dataset = open_all(paths)
    assert len(dataset) == 80
    assert len(open_all(paths, "val")) == 20
    batch = dataset[list(range(80))]
    words, regions = batch.question.layout.lengths, batch.image.regions
    assert regions is not None
    assert set(words.tolist()) == {1, 2, 3, 4}
    assert 2 <= int(regions.layout.lengths.min()) < int(regions.layout.lengths.max()) <= 9
    assert batch.image.boxes is not None
    assert batch.image.grid is not None
    assert batch.image.grid_cells is not None
    report = preflight(dataset)
    assert report.without_target == report.unknown_words == 0


@pytest.mark.parametrize("kind", ["regions", "pixels"])
def test_same_seed_same_data(tmp_path: Path, kind: Any) -> None:
    made = [
        open_all(make_synthetic(tmp_path / str(n), questions=20, kind=kind, seed=seed))
        for n, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (dataset[list(range(20))] for dataset in made)

    def equal(left: Batch, right: Batch) -> bool:
        values = [
            b.image.pixels if b.image.regions is None else b.image.regions.values
            for b in (left, right)
        ]
        assert values[0] is not None
        assert values[1] is not None
        return torch.equal(left.question.values, right.question.values) and torch.equal(*values)

    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("kind", ["regions", "pixels"])
def test_answer_follows_from_both_inputs(tmp_path: Path, kind: Any) -> None:
    """Given class and number, read from the data by hand, every answer is determined."""
    paths = make_synthetic(
        tmp_path, questions=300, images=20, answers=4, kind=kind, metric="exact", seed=3
    )
    dataset = open_all(paths)
    batch = dataset[list(range(300))]
    if batch.image.regions is not None:
        means = torch.stack([rows.float().mean(0) for rows in batch.image.regions.split()])
    else:
        assert batch.image.pixels is not None
        means = batch.image.pixels.float().mean((2, 3)) / 20
    numbers = [
        next(word for word in text.lower().strip("?").split() if word.startswith("plus"))
        for text in dataset.questions(range(300))
    ]
    number = torch.tensor([int(word.removeprefix("plus")) for word in numbers])
    classes = (batch.targets.dense(300, 4).argmax(1) - number) % 4
    centres = torch.stack([means[classes == label].mean(0) for label in range(4)])
    nearest = torch.cdist(means, centres).argmin(1)
    assert torch.equal(nearest, classes)
    counts = np.bincount(classes.numpy(), minlength=4)
    assert counts.min() > 0
