"""Loading as the authors' code does it: one file and one tokenisation per sample, every time.

n regions of an image, D width of a region feature, A answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcan.data.dataset import VQADataset
from mcan.text.answers import soft_targets
from mcan.text.tokens import tokenise
from mcan.text.vocabulary import Vocabulary

Sample = tuple[Tensor, Tensor, Tensor]


class PerSampleFiles(Dataset[Sample]):
    """Features (`regions`, D) and token ids (`words`,), padded with zeros, and targets (A,).

    `write` makes the files: one .npz per image with `x` (D, n) float32, not compressed.
    """

    def __init__(
        self,
        folder: str | Path,
        dataset: VQADataset,
        vocabulary: Vocabulary,
        regions: int,
        words: int,
    ) -> None:
        rows = range(len(dataset))
        self._files = [_file(Path(folder), image) for image in dataset.image_rows.tolist()]
        self._questions = dataset.questions(rows)
        self._answers = dataset.human_answers(rows)
        self._vocabulary = vocabulary
        self._regions = regions
        self._words = words

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Sample:
        with np.load(self._files[row]) as file:
            found = file["x"].T
        features = np.zeros((self._regions, found.shape[1]), np.float32)
        features[: len(found)] = found
        tokens = np.zeros(self._words, np.int64)
        ids = self._vocabulary.encode(tokenise(self._questions[row]))[: self._words]
        tokens[: len(ids)] = ids
        targets = np.zeros(len(self._vocabulary.answers), np.float32)
        for answer, score in soft_targets(self._answers[row], self._vocabulary.answer_index):
            targets[answer] = score
        return torch.from_numpy(features), torch.from_numpy(tokens), torch.from_numpy(targets)

    def loader(self, batch_size: int) -> DataLoader[Sample]:
        """Batches of one shuffled epoch, made in this process."""
        order = torch.Generator().manual_seed(0)
        return DataLoader(self, batch_size, shuffle=True, drop_last=True, generator=order)


def write(folder: Path, dataset: VQADataset) -> None:
    """The files of all images of a dataset with one store."""
    folder.mkdir(parents=True)
    (store,) = dataset.images.stores
    rows = np.asarray(store.rows)
    for image, (first, end) in enumerate(zip(store.offsets, store.offsets[1:], strict=False)):
        np.savez(_file(folder, image), x=rows[first:end].T.astype(np.float32))


def _file(folder: Path, image: int) -> Path:
    return folder / f"image_{image:012d}.npz"
