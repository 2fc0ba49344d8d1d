"""Trained models from Python: `model = mcan.load(RUN)`, then ask, explain, predict and save.

docs/api.md shows a session. Nothing but a checkpoint is needed: the training data does not have to
be on this machine, except for the features of an image that is given by its id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mcan.build import (
    Stores,
    answer_probabilities,
    check_images,
    model_sizes,
    open_dataset,
    open_stores,
    predict_over_processes,
    restore_network,
    run_metadata,
    stored_config,
)
from mcan.config import Config
from mcan.data.arrays import Id, array_to_ids
from mcan.data.dataset import VQADataset
from mcan.data.prepared import Prepared, Split
from mcan.data.store import ImageStore
from mcan.engine.checkpoint import Checkpoint, open_checkpoint
from mcan.engine.losses import LOSSES
from mcan.engine.processes import Processes, choose_device
from mcan.engine.transfer import inherit
from mcan.errors import DataError, RunError, shorten
from mcan.evaluation.predict import Predictions
from mcan.explain.explanation import Answer, Answers, Explanation, Facts, Words
from mcan.explain.weights import METHODS, Observation, observe
from mcan.preparation.images import open_rgb, resize_image, to_rgb
from mcan.preparation.questions import Example, RawSplit
from mcan.preparation.recipe import encode_split
from mcan.preparation.store_writer import ImageRows
from mcan.text.vocabulary import Vocabulary, tokenise

ImageLike = str | Path | int | Image.Image | NDArray[Any] | tuple[Any, ...]
"""An image (path, PIL image or array), the id of an image in the stores, or features: (features,)
or (features, boxes). Features are (n, D), or (rows, columns, D) for a grid. Boxes are (n, 4):
normalised x1 y1 x2 y2."""


def load(
    target: str | Path,
    *,
    device: str = "auto",
    precision: Literal["float32", "bf16"] | None = None,
    checkpoint: Literal["last", "best"] = "last",
    overrides: Sequence[str] = (),
    weights: str | Path | None = None,
) -> Model:
    """Load a model from a run folder, an exported folder or a .pt file, in evaluation mode.

    `device` is auto, cpu, cuda or cuda:1; an override of train.device takes precedence. `precision`
    defaults to that of the config. `checkpoint` selects one of a run. `overrides` are those of
    eval.py, such as `data.images=[features.h5]`. `weights` is the file with the weights of the
    feature extractor; it is needed to ask about new images if the weights are not published ones.
    Raises `RunError`, `ConfigError`.
    """
    found = open_checkpoint(Path(target), checkpoint)
    chosen = [f"evaluation.precision={precision}"] if precision else []
    # Starting processes for one question takes longer than preparing it.
    config = stored_config(found, ["data.workers=0", *overrides, *chosen])
    if weights is not None and config.model.image.input == "pixels":
        raise RunError(f"{target}: starts from pixels, so it takes no weights of an extractor")
    option = "device"
    if any(text.startswith("train.device=") for text in overrides):
        device, option = config.train.device, "train.device"
    chosen_device = choose_device(device, option=option)
    return Model(found, config, chosen_device, None if weights is None else Path(weights))


class Model:
    """A trained network with its vocabulary and config.

    `network` is a plain `nn.Module` (`mcan.nn.mcan.MCAN`), to hook, adapt or train.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Config,
        device: torch.device,
        extractor_weights: Path | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.device = device
        self.vocabulary = Vocabulary.from_json(checkpoint.vocabulary, str(checkpoint.source))
        self.network = restore_network(checkpoint, config).to(device)
        self._extractor_weights = extractor_weights
        self._lock = Lock()  # nothing else may run while attention is recorded

    def answer(self, image: ImageLike, question: str, top: int = 5) -> Answers:
        """Return the `top` answers to a question, the most probable first.

        `answers.words.note` says what the network cannot see of the question. Raises `DataError` or
        `RunError` for an image that cannot be read or that the network does not accept.
        """
        return self.answer_all([(image, question)], top)[0]

    def answer_all(self, questions: Iterable[tuple[ImageLike, str]], top: int = 5) -> list[Answers]:
        """Answer many (image, question) pairs, as fast as eval.py."""
        pairs = list(questions)
        _, answers, probabilities = self.predict(self.dataset(pairs), top)
        columns = zip(pairs, probabilities.tolist(), answers.tolist(), strict=True)
        return [self._answers(question, *best) for (_, question), *best in columns]

    def explain(self, image: ImageLike, question: str, top: int = 5) -> Explanation:
        """Return answers and the attention of every unit. Raises the same errors as `answer`."""
        (seen,) = self.explain_all(self.dataset([(image, question)]), [0], top)
        if not (_is_id(image) or isinstance(image, tuple)):
            seen = replace(seen, picture=open_picture(image))  # larger than what the network sees
        return replace(seen, facts=None)

    def explain_all(
        self,
        dataset: VQADataset,
        rows: Sequence[int],
        top: int = 5,
        scores: Sequence[float] | None = None,
    ) -> Iterator[Explanation]:
        """Yield the explanations of some `rows` of a dataset, in this order.

        Only one question's weights are in memory at a time, unless explanations are kept.
        `scores`, from 0 to 1 for all rows, are copied into the facts of each explanation.
        """
        for row in rows:
            seen = self.observe(dataset, [row], gradients=True)
            n, m = int(seen.words), int(seen.regions)
            chances = LOSSES[self.config.train.loss].probabilities(seen.logits[0].double())
            best = chances.topk(min(top, len(chances)))
            methods = {name: method(seen) for name, method in METHODS.items()}
            split, place = dataset.find(row)
            question, types = split.questions[place], (split.answer_types, split.question_types)
            yield Explanation(
                question=question,
                answers=self._answers(question, *(values.tolist() for values in best)),
                weights=_without_padding(seen, n, m),
                guided=frozenset(name for name, guided in seen.guided.items() if guided),
                methods={
                    name: (words[0, :n].numpy(), regions[0, :m].numpy())
                    for name, (words, regions) in methods.items()
                },
                **self._image_of(dataset, row),
                facts=Facts(
                    array_to_ids(split.question_ids[[place]])[0],
                    array_to_ids(split.image_ids[split.image_index[[place]]])[0],
                    tuple(split.human_answers[place]),
                    None if scores is None else float(scores[row]),
                    *(str(of.names[of.codes[place]]) for of in types),
                ),
            )

    def observe(
        self, dataset: VQADataset, rows: Sequence[int], gradients: bool = False
    ) -> Observation:
        """Return all attention weights for some `rows` of a dataset, as one batch."""
        precision = self.config.evaluation.precision
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        batch = dataset[rows].enter(self.device, "packed", dtype)
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        with self._lock, bf16:
            return observe(self.network, batch, gradients)

    def predict(self, dataset: VQADataset, top: int = 1) -> Predictions:
        """Return the `top` answers to all questions of a dataset, as eval.py predicts them."""
        with self._lock:
            found = predict_over_processes(
                answer_probabilities([self.network.eval()], self.config.train.loss),
                dataset,
                self.config,
                Processes(self.device),
                min(top, len(self.vocabulary.answers)),
            )
        assert found is not None  # nobody asked it to stop
        return found

    def split(self, name: str | None = None) -> VQADataset:
        """Open a split of the prepared data that the config names; default: `data.evaluate`.

        `data.limit` shortens it. Questions prepared with another vocabulary are re-encoded.
        """
        name = name or self.config.data.evaluate
        if name is None:
            raise RunError(
                f"{self.checkpoint.source}: the config has no data.evaluate; name a split"
            )
        prepared = Prepared.open(self.config.data.prepared)
        dataset = open_dataset(self.config, prepared, [name], self._stores, self.vocabulary)
        check_images(self.checkpoint, self.config, dataset)
        return dataset

    def dataset(self, questions: Iterable[tuple[ImageLike, str]]) -> VQADataset:
        """Make a dataset without answers from (image, question) pairs; each image is read once.

        Raises `DataError` if only some of the images are given by their ids.
        """
        pairs = list(questions)
        if not pairs:
            raise DataError("there are no questions")
        by_id = {_is_id(image) for image, _ in pairs}
        if len(by_id) > 1:
            raise DataError("image ids cannot be mixed with images or features in one call")
        images, stores = (self._ids if by_id.pop() else self._given)([image for image, _ in pairs])
        split = _asked([question for _, question in pairs], images, self.vocabulary)
        dataset = VQADataset([split], *stores, self.config.data.max_tokens)
        check_images(self.checkpoint, self.config, dataset)
        return dataset

    def _ids(self, images: Sequence[Any]) -> tuple[Sequence[Id], Stores]:
        """The ids, converted to the type of the ids in the stores."""
        try:
            stores = self._stores
        except DataError as error:
            raise DataError(
                f"{images[0]!r} is not a file, and the image stores cannot be opened: {error}"
            ) from error
        known = {i for store in stores[0] for i in array_to_ids(store.image_ids)}
        given = [i.item() if isinstance(i, np.generic) else i for i in images]
        ids = [int(i) if i not in known and _is_number(i) else i for i in given]
        if unknown := [i for i in ids if i not in known]:
            paths = shorten(store.path for store in stores[0])
            raise DataError(f"{unknown[0]!r}: no such file, and no image with this id in {paths}")
        return ids, stores

    def _given(self, images: Sequence[ImageLike]) -> tuple[Sequence[Id], Stores]:
        """Images and features as stores in memory, and the index of each image in them."""
        keys = [image if isinstance(image, str | Path) else id(image) for image in images]
        distinct: dict[Any, ImageLike] = dict(zip(keys, images, strict=True))
        numbers = {key: number for number, key in enumerate(distinct)}
        found = [self._rows(image) for image in distinct.values()]
        grids = [grid for _, grid in found if grid is not None]
        stores = [_store([rows for rows, _ in found])], [_store(grids)] if grids else []
        return [numbers[key] for key in keys], stores

    def _rows(self, image: ImageLike) -> tuple[ImageRows, ImageRows | None]:
        """The network's input for an image or given features, and the grid if there is one."""
        if isinstance(image, tuple):
            return _features(*image)
        picture = open_picture(image)
        if self.config.model.image.input == "pixels":
            height, width = self.pixel_size
            pixels = resize_image(picture, (width, height))
            return ImageRows(0, pixels[None], size=picture.size), None
        return self._extract(picture), None

    @cached_property
    def _stores(self) -> Stores:
        return open_stores(self.config, Processes(self.device))

    @property
    def _trained(self) -> dict[str, Any]:
        """What is known of the first training split, whose images are like those of all."""
        return next(iter(self.checkpoint.trained_on), {})

    @cached_property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width of the images that the network was trained on."""
        shape = self._trained.get("image_shape") or self._stores[0][0].rows.shape
        height, width = shape[-2:]
        return height, width

    @cached_property
    def _extract(self) -> Callable[[Image.Image], ImageRows]:
        from mcan.preparation.extraction import extractor_of  # needs torchvision

        if self.config.data.grid:
            raise DataError("a network with a grid beside the regions accepts image ids only")
        made_by = next(iter(self._trained.get("made_by", {}).values()), "unknown")
        return extractor_of(made_by, self._extractor_weights, self.device)

    def _answers(
        self, question: str, probabilities: Sequence[float], answers: Sequence[int]
    ) -> Answers:
        words = tokenise(question)
        most = self.config.data.max_tokens or len(words)
        unknown = dict.fromkeys(w for w in words[:most] if w not in self.vocabulary.word_index)
        read = Words(tuple(words[:most]), tuple(unknown), tuple(words[most:]))
        pairs = zip(answers, probabilities, strict=True)
        return Answers((Answer(self.vocabulary.answers[a], p) for a, p in pairs), read)

    def _image_of(self, dataset: VQADataset, row: int) -> dict[str, Any]:
        """`boxes` of the rows of a question's image, `picture` and `size`; None if unknown."""
        store, index = dataset.images.find(int(dataset.image_rows[row]))
        rows, boxes, shape = store.image(index)
        size = None if store.sizes is None else tuple(store.sizes[index].tolist())
        if store.kind == "pixels":
            pixels = rows.cpu() if isinstance(rows, Tensor) else rows
            picture = Image.fromarray(np.asarray(pixels)[0].transpose(1, 2, 0))
            strides = math.prod(self.config.model.image.stem.strides)
            cells = -(-picture.height // strides), -(-picture.width // strides)
            return {"boxes": cell_boxes(cells), "picture": picture, "size": size or picture.size}
        found = [(boxes, shape)]
        if dataset.grid is not None:
            store, index = dataset.grid.find(int(dataset.grid_rows[row]))
            found.append(store.image(index)[1:])
        parts = [
            cell_boxes(shape) if boxes is None and shape is not None else boxes
            for boxes, shape in found
        ]
        known = None if any(part is None for part in parts) else np.concatenate(parts)
        return {"boxes": known, "picture": None, "size": size}

    def save(self, path: str | Path, trained_on: Iterable[VQADataset] = ()) -> None:
        """Write a checkpoint of the current network, which eval.py and `load` can read.

        `trained_on` are the datasets of `split` on which it was trained since it was loaded. The
        checkpoint adds them to those of the original training, and evaluations then warn about
        their questions. Raises `RunError` if the file exists, or if the network's parameters differ
        from those of its config: adapters must be merged first.
        """
        path = Path(path)
        if path.exists():
            raise RunError(f"{path}: exists; choose another name")
        state = {name: value.cpu() for name, value in self.network.state_dict().items()}
        shapes = ({(n, x.shape) for n, x in of.items()} for of in (state, self.checkpoint.model))
        if other := sorted({name for name, _ in set.symmetric_difference(*shapes)}):
            raise RunError(
                f"{path}: not written: the network's parameters differ from those of its config "
                f"({shorten(other, 4)}); merge adapters first"
            )
        config = self.config.model_dump(mode="json")
        saved = replace(self.checkpoint, config=config, model=state, optimizer={})
        for dataset in trained_on:
            prepared = Prepared.open(dataset.splits[0].path.parent)
            sizes = model_sizes(self.vocabulary, dataset)
            latest = run_metadata(self.config, prepared, dataset, sizes)
            inherit(latest, saved, resumed=False)
            saved.trained_on, saved.question_keys = latest.trained_on, latest.question_keys
        saved.save(path)


def open_picture(image: ImageLike) -> Image.Image:
    """Read an image as 8-bit RGB, by the rules of data/FEATURES.md; `DataError` if impossible."""
    try:
        if isinstance(image, str | Path):
            return open_rgb(Path(image))
        if isinstance(image, Image.Image):
            return to_rgb(ImageOps.exif_transpose(image))
        return to_rgb(Image.fromarray(image))  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError, OSError, SyntaxError) as error:
        what = image if isinstance(image, str | Path) else "the image"
        raise DataError(f"{what}: {error}") from error


def cell_boxes(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the boxes (rows · columns, 4) of grid cells, row by row: normalised x1 y1 x2 y2.

    So do the cells of a stem, also if the image's sides are not multiples of its strides: each sees
    its whole box and more, mainly to the left and above.
    """
    rows, columns = shape
    y, x = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    edges = [x / columns, y / rows, (x + 1) / columns, (y + 1) / rows]
    return np.stack(edges, 1).astype(np.float32)


def _is_id(image: ImageLike) -> bool:
    if isinstance(image, str):
        with suppress(OSError):  # longer than names of files may be
            return not Path(image).is_file()
    return isinstance(image, str | int | np.integer)


def _is_number(image: Any) -> bool:
    return len(text := str(image)) < 20 and text.isdecimal()


def _features(
    features: Any, boxes: Any = None, grid: Any = None
) -> tuple[ImageRows, ImageRows | None]:
    """Given features, with their boxes or the shape of their grid."""

    def rows(values: Any, boxes: Any = None) -> ImageRows:
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"the features are not numbers: {error}") from error
        shape = array.shape[:2] if array.ndim == 3 else None
        if array.ndim not in (2, 3) or not array.size or not np.isfinite(array).all():
            raise DataError(
                f"features of shape {array.shape}: expected finite numbers (n, D) or, for a grid, "
                "(rows, columns, D)"
            )
        array = array.reshape(-1, array.shape[-1])
        if boxes is not None:
            boxes = np.asarray(boxes, np.float32)
            if boxes.shape != (len(array), 4) or not ((boxes >= 0) & (boxes <= 1)).all():
                raise DataError(f"boxes of {len(array)} features: expected (n, 4) from 0 to 1")
        return ImageRows(0, array, boxes, grid_shape=shape)

    return rows(features, boxes), None if grid is None else rows(grid)


def _store(images: Sequence[ImageRows]) -> ImageStore:
    """Images of one kind as a store in memory, with the ids 0, 1, ..."""
    rows = [np.asarray(image.rows) for image in images]
    boxes = [image.boxes for image in images]
    shapes = [image.grid_shape for image in images]
    sizes = [image.size for image in images]
    widths = {image.shape[1:] for image in rows}
    if len(widths) > 1:
        raise DataError(f"the features have different widths: {shorten(sorted(widths))}")
    return ImageStore(
        Path("(given)"),
        digest="",
        provenance={},
        rows=np.concatenate(rows),
        image_ids=np.arange(len(images)),
        offsets=np.cumsum([0, *map(len, rows)]),
        checksums=np.zeros(0, np.uint32),
        boxes=None
        if any(box is None for box in boxes)
        else np.concatenate(list(map(np.asarray, boxes))),
        sizes=None if None in sizes else np.array(sizes),
        grid_shapes=None if None in shapes else np.array(shapes),
    )


def _asked(questions: Sequence[str], images: Sequence[Id], vocabulary: Vocabulary) -> Split:
    """Questions about images, without answers, as a split."""
    pairs = enumerate(zip(questions, images, strict=True))
    examples = (Example(number, image, text) for number, (text, image) in pairs)
    split = RawSplit.collect(examples, Path("(asked)"))
    return Split(Path("(asked)"), "", encode_split(split, vocabulary, "exact")[0])


def _without_padding(seen: Observation, n: int, m: int) -> dict[str, NDArray[np.float32]]:
    """The weights of the one question of a batch."""
    weights = {}
    for name, values in seen.weights.items():
        queries, others = (n, m) if name.startswith("question.") else (m, n)
        keys = others if seen.guided.get(name, False) else queries
        own = values[0, ..., :keys]
        weights[name] = (own[:, :queries] if values.dim() == 4 else own).numpy()
    return weights
