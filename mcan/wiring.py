"""Wires config, data, network and metric together for the entry points."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcan.config import Config
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared
from mcan.data.split import reencode
from mcan.data.store import ImageStore, open_store
from mcan.data.store_digest import store_digest
from mcan.engine.checkpoint import Checkpoint
from mcan.engine.distributed import Ranks
from mcan.errors import ConfigError, DataError, RunError
from mcan.evaluation.metrics import METRICS, Metric
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
    config: Config,
    prepared: Prepared,
    names: Sequence[str],
    stores: Stores,
    vocabulary: Vocabulary | None = None,
) -> VQADataset:
    """The splits `names` of `prepared` as one dataset for a model with `vocabulary`.

    Without one, or where it is that of `prepared`, the splits are as they were prepared; else their
    questions are encoded anew, and they have no targets. Raises `DataError` where a file is not as
    documented or an image is missing.
    """
    splits = [prepared.split(name) for name in names]
    if vocabulary is not None and vocabulary.digest != prepared.vocabulary.digest:
        splits = [reencode(split, vocabulary) for split in splits]
    return VQADataset(splits, stores.images, stores.grid, config.data.max_tokens)


def check_fits(config: Config, dataset: VQADataset) -> None:
    """Raise `ConfigError` where the model section asks for what the stores do not have."""
    image, images, grid = config.model.image, dataset.images, dataset.grid
    where = ", ".join(config.data.images)
    if images.kind != image.input:
        raise ConfigError(
            f"model.image.input is {image.input}, but data.images ({where}) holds {images.kind}"
        )
    if image.boxes and not images.has_boxes:
        raise ConfigError(f"model.image.boxes is true, but data.images ({where}) has no boxes")
    cells = images.has_cells or (grid is not None and grid.has_cells)
    if image.position_encoding and image.input == "regions" and not cells:
        raise ConfigError(
            "model.image.position_encoding is true, but no store of data.images or data.grid has "
            "grid shapes"
        )


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
    return ModelSizes(len(vocabulary.tokens), len(vocabulary.answers), *image_sizes(dataset))


def image_sizes(dataset: VQADataset) -> tuple[int | None, int | None]:
    """Width of region rows and of grid rows, None where there are none."""
    regions = dataset.images.kind == "regions"
    return (
        dataset.images.row_shape[0] if regions else None,
        dataset.grid.row_shape[0] if dataset.grid else None,
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
    groups = [group for group in (dataset.images, dataset.grid) if group is not None]
    stores = {str(store.path): store_digest(store) for group in groups for store in group.stores}
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
                "content": split.content_digest,
                "stores": stores,
            }
            for split in dataset.splits
        ],
        model={},
    )


def restore_model(checkpoint: Checkpoint, config: Config, dataset: VQADataset) -> MCAN:
    """The network of a checkpoint, in evaluation mode, for the images of `dataset`.

    Raises `ConfigError` or `RunError` where these are not what it was trained on.
    """
    check_fits(config, dataset)
    sizes = ModelSizes(**checkpoint.sizes)  # type: ignore[arg-type]
    features, grid = image_sizes(dataset)
    if (sizes.feature_size, sizes.grid_size) != (features, grid):
        raise RunError(
            f"{checkpoint.source}: takes image features of width {sizes.feature_size} and grid "
            f"features of width {sizes.grid_size}, but those of data.images and data.grid are "
            f"{features} and {grid}"
        )
    model = build_model(config.model, sizes)
    checkpoint.restore(model)
    return model.eval()


def say(ranks: Ranks, text: str) -> None:
    """Progress on standard error, once over all processes."""
    if ranks.first:
        sys.stderr.write(text + "\n")
