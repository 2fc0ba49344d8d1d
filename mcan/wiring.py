"""Wires config, data, network and metric together for the entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcan.batch import Batch
from mcan.config import Config
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.store import ImageStore, open_store
from mcan.engine.checkpoint import Checkpoint
from mcan.engine.distributed import Ranks
from mcan.errors import ConfigError, DataError
from mcan.evaluation.metrics import METRICS, Metric
from mcan.evaluation.predict import Predictions, predict
from mcan.evaluation.report import Scorer
from mcan.nn.mcan import MCAN, ModelSizes, build_model
from mcan.text.vocabulary import Vocabulary
from mcan.text.word_vector_files import read_word_vectors
from mcan.text.word_vectors import embedding_matrix


@dataclass(frozen=True)
class Stores:
    """The config's image stores, opened once and used by every dataset."""

    images: Sequence[ImageStore]
    grid: Sequence[ImageStore]


def open_stores(config: Config, device: torch.device) -> Stores:
    """The stores, held where `data.residency` says; `DataError` where one is not as documented."""
    data = config.data
    if data.residency == "device" and data.workers:
        raise ConfigError(
            f"data.residency is device while data.workers is {data.workers}; features that live on "
            "the device are gathered in the training process, so data.workers must be 0"
        )
    return Stores(
        [open_store(path).load(data.residency, device) for path in data.images],
        [open_store(path).load(data.residency, device) for path in data.grid],
    )


def open_dataset(
    config: Config, prepared: Prepared, splits: Sequence[str], stores: Stores
) -> VQADataset:
    """The `splits` of `prepared` as one dataset.

    Raises `DataError` where a file is not as documented, `ConfigError` where the model section asks
    for what the stores do not have.
    """
    data, image = config.data, config.model.image
    dataset = VQADataset(
        [prepared.split(name) for name in splits], stores.images, stores.grid, data.max_tokens
    )
    images, where = dataset.images, ", ".join(data.images)
    if images.kind != image.input:
        raise ConfigError(
            f"model.image.input is {image.input}, but data.images ({where}) holds {images.kind}"
        )
    if image.boxes and not images.has_boxes:
        raise ConfigError(f"model.image.boxes is true, but data.images ({where}) has no boxes")
    cells = images.has_cells or (dataset.grid is not None and dataset.grid.has_cells)
    if image.position_encoding and image.input == "regions" and not cells:
        raise ConfigError(
            "model.image.position_encoding is true, but no store of data.images or data.grid has "
            "grid shapes"
        )
    return dataset


def choose_metric(config: Config, prepared: Prepared) -> Metric:
    """The config's metric, or else the one that the prepared dataset names."""
    name = config.evaluation.metric or prepared.metric
    if name not in METRICS:
        raise DataError(
            f"{prepared.folder / 'meta.json'}: metric is {name!r}, expected one of "
            f"{', '.join(METRICS)}; or set evaluation.metric"
        )
    return name


def model_sizes(vocabulary: Vocabulary, dataset: VQADataset) -> ModelSizes:
    """The sizes that the data decides."""
    regions = dataset.images.kind == "regions"
    return ModelSizes(
        tokens=len(vocabulary.tokens),
        answers=len(vocabulary.answers),
        feature_size=dataset.images.row_shape[0] if regions else None,
        grid_size=dataset.grid.row_shape[0] if dataset.grid else None,
    )


def word_vectors(config: Config, vocabulary: Vocabulary) -> tuple[Tensor | None, str | None]:
    """The embedding's first state (V, E) and a sentence on its coverage; (None, None) at random."""
    chosen = config.model.question.word_vectors
    if chosen is None:
        return None, None
    vectors = read_word_vectors(Path(chosen.path), vocabulary.words)
    expected = config.model.question.embedding_size
    if vectors.dimension != expected:
        raise ConfigError(
            f"model.question.embedding_size is {expected}, but the vectors of {chosen.path} have "
            f"{vectors.dimension} dimensions"
        )
    matrix, coverage = embedding_matrix(vocabulary, vectors, chosen.unknown, config.seed)
    return torch.from_numpy(matrix), f"{chosen.path}: {coverage}"


def describe_run(
    config: Config, prepared: Prepared, dataset: VQADataset, sizes: ModelSizes
) -> Checkpoint:
    """What every checkpoint of a run says about it; the states are still empty."""
    return Checkpoint(
        config=config.model_dump(mode="json"),
        vocabulary=prepared.vocabulary.to_json(),
        vocabulary_digest=prepared.vocabulary.digest,
        sizes=asdict(sizes),
        trained_on=[
            {
                "dataset": prepared.dataset,
                "split": split.name,
                "questions": len(split),
                "digest": split.digest,
            }
            for split in dataset.splits
        ],
        model={},
    )


def restore_model(checkpoint: Checkpoint, config: Config) -> MCAN:
    """The network of a checkpoint, in evaluation mode."""
    model = build_model(config.model, ModelSizes(**checkpoint.sizes))  # type: ignore[arg-type]
    model.load_state_dict(checkpoint.model)
    return model.eval()


def probabilities(
    model: nn.Module, config: Config, device: torch.device
) -> Callable[[Batch], Tensor]:
    """What a model trained with the config's loss believes: (B, A) of a batch."""
    half = config.evaluation.precision == "bf16"

    def score(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            logits: Tensor = model(batch.question, batch.image)
        logits = logits.float()
        return logits.softmax(1) if config.train.loss == "cross_entropy" else logits.sigmoid()

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
                probabilities(model, self._config, self._ranks.device),
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
    score: Callable[[Batch], Tensor],
    dataset: VQADataset,
    config: Config,
    ranks: Ranks,
    top: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Predictions | None:
    """All predictions on the first process; None elsewhere, and where it stopped early."""
    part = predict(
        score,
        dataset,
        config.evaluation.batch_size,
        ranks.device,
        top,
        config.data.workers,
        ranks.rank,
        ranks.world,
        should_stop,
    )
    if part is None:
        return None
    parts = ranks.gather(part)
    return None if parts is None else Predictions.merge(parts)


def say(ranks: Ranks, text: str) -> None:
    """Progress on standard error, once over all processes."""
    if ranks.first:
        sys.stderr.write(text + "\n")
