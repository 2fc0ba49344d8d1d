"""From a config to dataset, network, evaluator and what checkpoints say of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcan.batch import MAX_SHAPES, Batch, PaddedLengths
from mcan.config import Config, config_from_dict, flatten
from mcan.config.schema import ModelConfig
from mcan.data.arrays import Index, first_duplicate
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared, Split, encode_questions
from mcan.data.store import ImageStore, open_store, plain
from mcan.engine.checkpoint import Checkpoint
from mcan.engine.losses import LOSSES
from mcan.engine.processes import Processes
from mcan.engine.run_folder import resolve_rows
from mcan.engine.trainer import Evaluate
from mcan.errors import ConfigError, DataError, RunError, plural, shorten
from mcan.evaluation.predict import Predictions, Score, predict
from mcan.evaluation.results import Scorer
from mcan.limits import free_memory, processes_here
from mcan.nn.cascade import MCA_LAYERS, Cascade, UnitSizes
from mcan.nn.encoders import ConvStem, ImageEncoder, QuestionEncoder
from mcan.nn.mcan import MCAN, AttentionalReduction, ModelSizes
from mcan.section import show
from mcan.text.vocabulary import UNK, Vocabulary, unknown_words_warning
from mcan.text.word_vectors import embedding_matrix, read_word_vectors

Stores = tuple[list[ImageStore], list[ImageStore]]
"""The stores of `data.images` and of `data.grid`."""


def open_stores(config: Config, processes: Processes) -> Stores:
    """The stores, held where `data.residency` says, for every dataset of a run to use."""

    def opened(paths: Sequence[str]) -> list[ImageStore]:
        return [open_store(path).load(config.data.residency, processes.device) for path in paths]

    images, grid = opened(config.data.images), opened(config.data.grid)
    for stores in (images, grid):
        ways = {json.dumps(store.provenance.get("extractor")): store for store in stores}
        if len(ways) > 1:
            each = " and ".join(f"{s.path} by {plain(s.made_by)}" for s in ways.values())
            processes.print_once(f"warning: stores were extracted in different ways: {each}")
    return images, grid


def open_dataset(
    config: Config,
    prepared: Prepared,
    names: Sequence[str],
    stores: Stores,
    vocabulary: Vocabulary | None = None,
) -> VQADataset:
    """The splits `names` of `prepared` as one dataset.

    `data.limit` cuts every split. With another vocabulary than that of `prepared`, the questions
    are re-encoded and there are no targets.
    """
    splits = [prepared.split(name) for name in names]
    if (limit := config.data.limit) is not None:
        splits = [split.first(limit) for split in splits]
    if vocabulary is not None and vocabulary.digest != prepared.vocabulary.digest:
        splits = [reencode(split, vocabulary) for split in splits]
    return VQADataset(splits, *stores, config.data.max_tokens)


def reencode(split: Split, vocabulary: Vocabulary) -> Split:
    """The split with its questions in the tokens of another vocabulary, and without targets."""
    tokens = encode_questions(split.questions, vocabulary)
    changed = {
        "tokens": tokens.values,
        "token_offsets": tokens.offsets,
        "target_index": np.zeros(0, np.int32),
        "target_score": np.zeros(0, np.float32),
        "target_offsets": np.zeros_like(tokens.offsets),
    }
    return Split(split.path, split.digest, {**split.changed, **changed})


def check_fits(config: Config, dataset: VQADataset) -> None:
    """Raise `ConfigError` if the model section asks for what the stores do not have."""
    image, images, grid = config.model.image, dataset.images, dataset.grid
    where = ", ".join(config.data.images)
    if images.kind != image.input:
        raise ConfigError(
            f"model.image.input is {image.input}, but data.images ({where}) holds "
            f"{images.kind}; use model.image.input={images.kind}"
        )
    if image.boxes and not images.has_boxes:
        raise ConfigError(f"model.image.boxes is true, but data.images ({where}) has no boxes")
    cells = images.has_cells or (grid is not None and grid.has_cells)
    if image.position_encoding and image.input == "regions" and not cells:
        raise ConfigError(
            "model.image.position_encoding is true, but no store of data.images or data.grid has "
            "grid shapes"
        )


def preflight(dataset: VQADataset) -> tuple[str, list[str]]:
    """Counts and warnings before training: many unknown words, or over a fifth without a target."""
    names = ", ".join(str(split.path) for split in dataset.splits)
    duplicate = first_duplicate(np.concatenate([split.question_ids for split in dataset.splits]))
    if duplicate is not None:
        raise DataError(f"{names}: question id {duplicate!r} occurs more than once")
    questions, words = len(dataset), dataset.tokens.values
    without = int((np.diff(dataset.targets.offsets) == 0).sum())
    if without == questions:
        raise DataError(f"{names}: none of the {without} questions has an answer of the vocabulary")
    images, unknown = len(np.unique(dataset.image_rows)), np.mean(words == UNK)
    counts = f"{plural(questions, 'question')} on {plural(images, 'image')}"
    counts += f", {unknown:.1%} unknown words"
    share = f"{without} of {questions} questions ({without / questions:.0%})"
    warning = f"{names}: {share} have no answer of the vocabulary and teach only what is wrong"
    warnings = [warning] if without > 0.2 * questions else []
    return counts, [*warnings, *unknown_word_warnings(dataset)]


def memory_warnings(
    model: nn.Module, dataset: VQADataset, config: Config, job: Processes
) -> Iterator[str]:
    """A sentence if a step may not fit into the memory that is free.

    The network runs once on two questions, in float32. What it keeps for the backward pass grows
    with the questions (bf16 keeps half); gradients and two moments of the parameters that learn are
    added. The whole step needs about 30 % more.
    """
    if (free := free_memory(job.device)) is None:
        return
    enter = entry(config, job.device, "float32", padded_lengths(config, dataset))
    batch = enter(dataset[[0, len(dataset) - 1]])
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch.question, batch.image)
    options, here = config.train, processes_here(job.device)
    questions = math.ceil(options.batch_size / job.world / options.accumulation)
    activations = sum(kept.values()) * questions // batch.size
    needed = activations // 2 if options.precision == "bf16" else activations
    needed += 3 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    if here * needed > free:
        need, have = (f"{size / 2**30:.1f} GiB" for size in (here * needed, free))
        yield (
            f"a step needs at least {need} of memory, but {have} are free on {job.device}; raise "
            "train.accumulation or lower train.batch_size"
        )


def unknown_word_warnings(dataset: VQADataset) -> list[str]:
    """A warning for each split of which more than a tenth of the words are unknown."""
    counts = [((split.tokens.values == UNK).sum(), split) for split in dataset.splits]
    texts = [unknown_words_warning(s.path, int(n), len(s.tokens.values)) for n, s in counts]
    return [text for text in texts if text]


def build_model(config: ModelConfig, sizes: ModelSizes, vectors: Tensor | None = None) -> MCAN:
    """The network of a model section; `vectors` (tokens, E) initialise the embedding."""
    width, image, question = config.hidden_size, config.image, config.question
    stem, feature_size = None, sizes.feature_size
    if image.input == "pixels":
        stem = ConvStem(image.stem.channels, image.stem.strides, image.stem.coordinates)
        feature_size = image.stem.channels[-1]
    assert feature_size is not None
    units = UnitSizes(
        width, config.heads, config.feed_forward_factor * width, config.dropout, config.similarity
    )
    question_layer, image_layer = MCA_LAYERS[config.mca_layer]

    def reduction() -> AttentionalReduction:
        return AttentionalReduction(
            width, config.reduction_size, config.glimpses, config.dropout, config.fusion_size
        )

    frozen = question.word_vectors is not None and question.word_vectors.frozen
    box_size = image.box_embedding_size if image.boxes else None
    question_layers = [question_layer] * (config.question_depth or config.depth)
    image_layers = [image_layer] * config.depth
    return MCAN(
        QuestionEncoder(
            sizes.tokens, question.embedding_size, width, question.encoder, vectors, frozen
        ),
        ImageEncoder(feature_size, width, box_size, sizes.grid_size, image.position_encoding, stem),
        Cascade(config.cascade, question_layers, image_layers, units),
        reduction(),
        reduction(),
        config.fusion_size,
        sizes.answers,
    )


def model_sizes(vocabulary: Vocabulary, dataset: VQADataset) -> ModelSizes:
    """The sizes that the data decides."""
    return ModelSizes(len(vocabulary.tokens), len(vocabulary.answers), *_row_widths(dataset))


def _row_widths(dataset: VQADataset) -> tuple[int | None, int | None]:
    """Width of region rows and of grid rows, None if there are none."""
    images, grid = dataset.images, dataset.grid
    features = images.row_shape[0] if images.kind == "regions" else None
    return features, grid.row_shape[0] if grid else None


def word_vectors(config: Config, vocabulary: Vocabulary) -> tuple[Tensor | None, str | None]:
    """The embedding's first state (V, E) and a line on its coverage; (None, None) for random."""
    chosen = config.model.question.word_vectors
    if chosen is None:
        return None, None
    vectors = read_word_vectors(Path(chosen.path), vocabulary.words)
    matrix, coverage = embedding_matrix(vocabulary, vectors, chosen.unknown, config.seed)
    expected = config.model.question.embedding_size
    if matrix.shape[1] != expected:
        raise ConfigError(
            f"model.question.embedding_size is {expected}, but the vectors of {chosen.path} have "
            f"{matrix.shape[1]} dimensions"
        )
    return torch.from_numpy(matrix), f"{chosen.path}: {coverage}"


def run_metadata(
    config: Config, prepared: Prepared, dataset: VQADataset, sizes: ModelSizes
) -> Checkpoint:
    """What every checkpoint of a run says about it; the states are still empty."""
    groups = [group for group in (dataset.images, dataset.grid) if group is not None]
    stores = [store for group in groups for store in group.stores]
    keys = np.sort(np.concatenate([split.question_keys for split in dataset.splits]))
    distinct = keys[np.diff(keys, prepend=keys[0] - 1) != 0]  # np.unique takes 0.2 s for VQA v2
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
                "content": split.digest,
                "stores": {str(store.path): store.digest for store in stores},
                "made_by": {str(store.path): store.made_by for store in stores},
                "image_shape": list(dataset.images.row_shape),
            }
            for split in dataset.splits
        ],
        model={},
        question_keys=torch.from_numpy(distinct),
    )


def count_trained_on(checkpoint: Checkpoint, prepared: Prepared, split: Split) -> int:
    """How many questions of `split`, by image id and text, the checkpoint was trained on.

    An older checkpoint has only digests of its training splits: all questions count (with
    `data.limit`, those within it) if `split` is the same file or has the same questions. The names
    decide only for an imported checkpoint, which does not know its questions.
    """
    here, name = {split.digest, split.questions_digest}, (prepared.dataset, split.name)
    counts = [0]
    if checkpoint.question_keys is not None:
        counts.append(_count_keys(split, checkpoint.question_keys.numpy()))
    for trained in checkpoint.trained_on:
        digest = trained.get("digest")
        if {trained.get("content"), digest} & here:
            counts.append(min(trained["questions"], len(split)))
        elif digest == "" and (trained["dataset"], trained["split"]) == name:
            counts.append(len(split))
    return max(counts)


def unknown_stores(checkpoint: Checkpoint, stores: Iterable[ImageStore]) -> list[str]:
    """A sentence for each image store that the checkpoint was not trained on.

    None for another part of what the same extractor made, such as a test set's features.
    """
    trained = next(iter(checkpoint.trained_on), {})  # every split with the same stores
    digests, made_by = trained.get("stores", {}), trained.get("made_by", {})
    known = ", ".join(f"{path} (made by {plain(made_by.get(path, 'unknown'))})" for path in digests)
    return [
        f"{store.path} (made by {plain(store.made_by)}) is not what {checkpoint.source} was "
        f"trained on: {known}; with features of another extractor, the accuracy means nothing"
        for store in stores
        if digests and store.digest not in digests.values()
        if "extractor" not in store.provenance or store.made_by not in made_by.values()
    ]


def _count_keys(split: Split, keys: Index) -> int:
    """How many questions of `split` have one of the sorted `keys`; np.isin is ten times slower."""
    ours = np.sort(split.question_keys)
    return int((np.searchsorted(keys, ours, "right") > np.searchsorted(keys, ours)).sum())


def _describe(feature_size: int | None, grid_size: int | None) -> str:
    images = f"features of width {feature_size}" if feature_size else "pixels"
    return f"{images} and {f'a grid of width {grid_size}' if grid_size else 'no grid'}"


def stored_config(checkpoint: Checkpoint, overrides: Sequence[str] = ()) -> Config:
    """The config of a checkpoint; how the run was trained says nothing about the device that it is
    evaluated on."""
    settings = ["train.rows=auto", "train.compile=false", *overrides]
    return config_from_dict(checkpoint.config, str(checkpoint.source), settings)


def restore_network(checkpoint: Checkpoint, config: Config) -> MCAN:
    """The network of a checkpoint, in evaluation mode."""
    sizes = ModelSizes(**checkpoint.sizes)  # type: ignore[arg-type]
    deepest = max(config.model.depth, config.model.question_depth or 0)
    if deepest > len(checkpoint.model):
        raise RunError(f"{checkpoint.source}: does not fit the config: depth {deepest}")
    with torch.device("meta"):  # another size than the config's may not fit into memory
        checkpoint.check_shapes(build_model(config.model, sizes))
    model = build_model(config.model, sizes)
    checkpoint.restore(model)
    return model.eval()


def check_images(checkpoint: Checkpoint, config: Config, dataset: VQADataset) -> None:
    """Raise `RunError` or `ConfigError` if the network does not take the images of `dataset`."""
    check_fits(config, dataset)
    expected = checkpoint.sizes["feature_size"], checkpoint.sizes["grid_size"]
    if expected != (found := _row_widths(dataset)):
        raise RunError(
            f"{checkpoint.source}: takes {_describe(*expected)}, but data.images and data.grid "
            f"hold {_describe(*found)}"
        )


def restore_model(checkpoint: Checkpoint, config: Config, dataset: VQADataset) -> MCAN:
    """The network of a checkpoint, if it takes the images of `dataset`."""
    check_images(checkpoint, config, dataset)
    return restore_network(checkpoint, config)


def entry(
    config: Config, device: torch.device, precision: str, lengths: PaddedLengths | None = None
) -> Callable[[Batch], Batch]:
    """How batches enter the network: on `device`, in the layout of `train.rows`."""
    layout = resolve_rows(config.train.rows, device, config.train.compile)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return lambda batch: batch.enter(device, layout, dtype, lengths)


def padded_lengths(config: Config, *datasets: VQADataset) -> PaddedLengths | None:
    """The few lengths to which a compiled network pads the samples of these datasets."""
    if not config.train.compile:
        return None
    words, regions, grid = zip(*(dataset.lengths() for dataset in datasets), strict=True)
    return choose_lengths(
        np.concatenate(words),
        np.concatenate(regions),
        np.concatenate(grid) if datasets[0].grid is not None else None,
    )


def choose_lengths(words: Index, regions: Index, grid: Index | None = None) -> PaddedLengths:
    """At most 8 combinations for samples of these lengths, so that few shapes are compiled."""

    def quantiles(lengths: Index, count: int) -> tuple[int, ...]:
        shares = np.arange(1, count + 1) / count
        return tuple(np.unique(np.quantile(lengths, shares, method="higher")).tolist())

    of_regions = quantiles(regions, MAX_SHAPES // 2)
    of_words = quantiles(words, MAX_SHAPES // len(of_regions))
    return PaddedLengths(of_words, of_regions, () if grid is None else quantiles(grid, 1))


def answer_probabilities(models: Sequence[nn.Module], loss: str) -> Score:
    """From a batch to probabilities (B, A), by the loss that the models trained with.

    Several models are an ensemble: the mean of their probabilities.
    """

    def score(batch: Batch) -> Tensor:
        # In single precision the sigmoids of 17 and 20 are both 1, and their order is lost.
        each = torch.stack([model(batch.question, batch.image).double() for model in models])
        return LOSSES[loss].probabilities(each).mean(0)

    return score


def predict_over_processes(
    score: Score,
    dataset: VQADataset,
    config: Config,
    processes: Processes,
    top: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    lengths: PaddedLengths | None = None,
) -> Predictions | None:
    """All predictions on the first process; None elsewhere, and if it stopped early."""
    device, options = processes.device, config.evaluation
    batch_size = options.batch_size or (64 if device.type == "cpu" else 256)
    # Around all batches, so that autocast rounds the weights once and not for each of them.
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        part = predict(
            score,
            dataset,
            batch_size,
            entry(config, device, options.precision, lengths),
            top,
            config.data.workers,
            processes.rank,
            processes.world,
            should_stop,
            pin_memory=device.type == "cuda",
            equal_sizes=lengths is not None,
        )
    parts = processes.gather(part) if part is not None else []
    return Predictions.merge(parts) if parts else None


def build_evaluator(
    dataset: VQADataset,
    metric: str,
    vocabulary: Vocabulary,
    config: Config,
    processes: Processes,
    lengths: PaddedLengths | None = None,
    trained_on: int = 0,
) -> Evaluate:
    """A function from a model to its metrics on `dataset`, which leaves it in evaluation mode.

    The metrics say on how many of the questions the model is trained (`trained_on`).
    """
    scorer = Scorer(dataset, metric, vocabulary.answers)
    if not scorer.possible:
        raise DataError(
            f"{dataset.splits[0].path}: some questions have no human answers, so the split cannot "
            "be scored; choose another data.evaluate"
        )
    numbers, best_by = flatten(scorer.summarise(np.zeros(len(dataset)))), config.evaluation.best_by
    if best_by not in numbers:
        allowed = f"for {dataset.splits[0].path} it can be {shorten(numbers)}"
        raise ConfigError(f"evaluation.best_by is {show(best_by)}; {allowed}")

    def evaluate(model: nn.Module, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        score = answer_probabilities([model.eval()], config.train.loss)
        predictions = predict_over_processes(
            score, dataset, config, processes, should_stop=should_stop, lengths=lengths
        )
        metrics = None
        if predictions is not None:
            metrics = scorer.summarise(scorer.scores(predictions))
            metrics["trained_on_questions"] = trained_on
        shared: dict[str, Any] | None = processes.broadcast(metrics)
        return shared

    return evaluate
