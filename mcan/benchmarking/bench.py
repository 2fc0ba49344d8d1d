"""What measuring processes share: config, data, and the work that each question is.

Q questions of the dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from mcan.benchmarking.turns import Spec
from mcan.config import Config, load_config
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.engine.distributed import Ranks
from mcan.engine.feed import Feed
from mcan.nn.cost import forward_macs
from mcan.nn.mcan import ModelSizes
from mcan.wiring import model_sizes, open_dataset, open_stores


@dataclass(frozen=True)
class Bench:
    """The parts of a benchmark, opened as `train.py` opens them."""

    config: Config
    prepared: Prepared
    dataset: VQADataset
    sizes: ModelSizes
    ranks: Ranks

    @classmethod
    def open(cls, spec: Spec, ranks: Ranks) -> Bench:
        config = load_config(spec.config, spec.overrides)
        prepared = Prepared.open(config.data.prepared)
        dataset = open_dataset(
            config, prepared, config.data.train, open_stores(config, ranks.device)
        )
        torch.manual_seed(config.seed)
        return cls(config, prepared, dataset, model_sizes(prepared.vocabulary, dataset), ranks)

    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(Q,) words and regions of each question."""
        words = np.diff(self.dataset.tokens.offsets)
        (store,) = self.dataset.images.stores
        regions = np.diff(store.offsets)[self.dataset.image_rows]
        return np.minimum(words, self.config.data.max_tokens or words.max()), regions

    def macs(self) -> NDArray[np.int64]:
        """(Q,) multiply-adds of a forward pass on each question's valid rows."""

        @cache
        def one(words: int, regions: int) -> int:
            return forward_macs(self.config.model, self.sizes, words, regions)

        lengths = zip(*(side.tolist() for side in self.lengths()), strict=True)
        return np.array([one(*pair) for pair in lengths])

    def padded_to(self) -> tuple[int, int]:
        """Regions and words that the baseline pads to."""
        words, regions = self.lengths()
        return int(regions.max()), self.config.data.max_tokens or int(words.max())

    def feed(self) -> Feed:
        train = self.config.train
        return Feed(
            self.dataset,
            train.batch_size,
            train.accumulation,
            train.drop_last,
            self.config.seed,
            self.config.data.workers,
            self.ranks,
        )
