"""Predictions of one or several models over all processes, and their scores while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mcan.batch import Batch
from mcan.config import Config
from mcan.data.dataset import VQADataset
from mcan.engine.distributed import Ranks
from mcan.engine.signals import ignore_in_worker
from mcan.errors import DataError
from mcan.evaluation.metrics import Metric
from mcan.evaluation.predict import Predictions, Score, predict
from mcan.evaluation.report import Scorer
from mcan.text.vocabulary import Vocabulary


def rounding(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bf16 where the config evaluates in it."""
    half = config.evaluation.precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def default_batch_size(device: torch.device) -> int:
    """Questions per forward pass: what fits a processor's caches, or fills a GPU."""
    return 64 if device.type == "cpu" else 256


def belief(
    models: Sequence[nn.Module],
    config: Config,
    device: torch.device,
    average: str = "probabilities",
) -> Score:
    """What models trained with the config's loss believe: probabilities (B, A) of a batch.

    Several are an ensemble: the mean of their `probabilities`, or the probabilities of their mean
    `logits`.
    """
    exclusive = config.train.loss == "cross_entropy"

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        with rounding(config, device):
            out: Tensor = model(batch.question, batch.image)
        # In single precision the sigmoids of 17 and 20 are both 1, and their order is lost.
        return out.double()

    def probabilities(logits: Tensor) -> Tensor:
        return logits.softmax(-1) if exclusive else logits.sigmoid()

    def score(batch: Batch) -> Tensor:
        each = torch.stack([logits(model, batch) for model in models])
        if average == "logits":
            return probabilities(each.mean(0))
        return probabilities(each).mean(0)

    return score


class Evaluator:
    """Scores a model on a dataset while it trains: call it with the model on every process."""

    def __init__(
        self,
        dataset: VQADataset,
        metric: Metric,
        vocabulary: Vocabulary,
        config: Config,
        ranks: Ranks,
    ) -> None:
        self._dataset = dataset
        self._scorer = Scorer(dataset, metric, vocabulary.answers)
        self._config = config
        self._ranks = ranks
        if not self._scorer.possible:
            raise DataError(
                f"{dataset.splits[0].path}: some questions have no human answers, so the split "
                "cannot be scored; choose another data.evaluate"
            )

    def __call__(self, model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        model.eval()
        try:
            predictions = predict_over_ranks(
                belief([model], self._config, self._ranks.device),
                self._dataset,
                self._config,
                self._ranks,
                should_stop=should_stop,
            )
        finally:
            model.train()
        if predictions is None and should_stop():
            return None
        metrics = self._scorer.metrics(predictions) if predictions is not None else None
        shared: dict[str, Any] = self._ranks.share(metrics)
        return shared


def predict_over_ranks(
    score: Score,
    dataset: VQADataset,
    config: Config,
    ranks: Ranks,
    top: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Predictions | None:
    """All predictions on the first process; None elsewhere, and where it stopped early."""
    # Around all batches, so that autocast rounds the weights once and not for each of them.
    with rounding(config, ranks.device):
        part = predict(
            score,
            dataset,
            config.evaluation.batch_size or default_batch_size(ranks.device),
            ranks.device,
            top,
            config.data.workers,
            ranks.rank,
            ranks.world,
            should_stop,
            ignore_in_worker,
        )
    if part is None:
        return None
    parts = ranks.gather(part)
    return None if parts is None else Predictions.merge(parts)
