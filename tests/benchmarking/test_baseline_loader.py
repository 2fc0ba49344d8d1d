"""Samples of the slow loader against the dataset's own batches."""

import torch

from mcan.benchmarking.baseline import padded
from mcan.benchmarking.baseline_loader import PerSampleFiles, write
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import open_store


def test_same_samples_as_the_dataset(folder, tmp_path):
    prepared = Prepared.open(folder / "prepared")
    store = open_store(folder / "images.h5")
    dataset = VQADataset([prepared.split("train")], [store], max_tokens=7)
    write(tmp_path / "npz", dataset)
    files = PerSampleFiles(tmp_path / "npz", dataset, prepared.vocabulary, regions=6, words=7)
    assert len(files) == len(dataset) == 23

    batch = dataset[range(23)]
    features, tokens = padded(batch, regions=6, words=7)
    found = [torch.stack(part) for part in zip(*map(files.__getitem__, range(23)), strict=True)]
    torch.testing.assert_close(found[0], features)
    assert torch.equal(found[1], tokens)
    torch.testing.assert_close(found[2], batch.targets.dense(23, len(prepared.vocabulary.answers)))
    shapes = [tuple(part.shape) for part in next(iter(files.loader(4)))]
    assert shapes == [(4, 6, 8), (4, 7), (4, 20)]
