"""What runs cost: training arithmetic from the sizes of model and data, time from finished runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from mcan.config import Config, load_config
from mcan.config.schema import DataConfig
from mcan.data.prepared import Prepared
from mcan.data.store import ImageStore, open_store
from mcan.engine.run_folder import RunFolder
from mcan.errors import DataError, UserError
from mcan.nn.cost import forward_macs
from mcan.nn.mcan import ModelSizes
from mcan.tables.spec import Assumed

_FLOPS_PER_MAC = 6
"""Of a training step per multiply-add of a forward pass: two, and twice that backwards."""


@dataclass(frozen=True)
class DataSizes:
    """Sizes of training data; words, regions and grid rows are means."""

    questions: int
    words: float
    regions: float
    grid_rows: float
    model: ModelSizes
    assumed: bool


def data_sizes(config: Config, assumed: Assumed | None) -> DataSizes | None:
    """The sizes of a config's training data: measured where it is prepared, else assumed.

    None where neither can tell.
    """
    try:
        return _measured(config.data, config.model.image.stem.strides)
    except DataError:
        pass
    if assumed is None or any(split not in assumed.questions for split in config.data.train):
        return None
    return DataSizes(
        questions=sum(assumed.questions[split] for split in config.data.train),
        words=assumed.words,
        regions=assumed.regions,
        grid_rows=0.0,
        model=ModelSizes(assumed.tokens, assumed.answers, assumed.feature_size),
        assumed=True,
    )


@cache
def _measured(data: DataConfig, strides: tuple[int, ...]) -> DataSizes:
    prepared = Prepared.open(data.prepared)
    lengths = np.concatenate([np.diff(prepared.split(name).tokens.offsets) for name in data.train])
    stores, grid = [open_store(path) for path in data.images], [open_store(p) for p in data.grid]
    width = None if stores[0].kind == "pixels" else stores[0].row_shape[0]
    vocabulary = prepared.vocabulary
    return DataSizes(
        questions=len(lengths),
        words=float(np.minimum(lengths, data.max_tokens or lengths.max()).mean()),
        regions=_cells(stores[0], strides) if width is None else _rows(stores),
        grid_rows=_rows(grid) if grid else 0.0,
        model=ModelSizes(
            len(vocabulary.tokens),
            len(vocabulary.answers),
            width,
            grid[0].row_shape[0] if grid else None,
        ),
        assumed=False,
    )


def _rows(stores: Sequence[ImageStore]) -> float:
    return sum(len(store.rows) for store in stores) / sum(len(store) for store in stores)


def _cells(store: ImageStore, strides: tuple[int, ...]) -> float:
    """Of the stem's last map; each layer rounds up."""
    _, *sides = store.row_shape
    rows, columns = ([*accumulate(strides, lambda n, s: -(-n // s), initial=n)][-1] for n in sides)
    return rows * columns


def training_flops(config: Config, sizes: DataSizes) -> float:
    """Floating-point operations of all matrix products of training, on valid rows."""
    macs = forward_macs(config.model, sizes.model, sizes.words, sizes.regions, sizes.grid_rows)
    return float(_FLOPS_PER_MAC) * macs * sizes.questions * config.train.epochs


@dataclass(frozen=True)
class Pace:
    """How fast runs were: the median of `finished` runs, which is that of `run`."""

    seconds_per_flop: float
    run: Path
    finished: int


def pace(runs_folder: Path, assumed: Assumed | None) -> Pace | None:
    """Of the finished runs of a folder that were never interrupted; None without."""
    found = []
    for path in sorted(runs_folder.glob("*/outcome_*.json")):
        run = RunFolder(path.parent)
        try:
            config = load_config(run.config)
            starts = json.loads(run.environment.read_text(encoding="utf-8"))["starts"]
            seconds = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
            once = len(starts) == 1
        # an estimate does without it
        except (OSError, ValueError, KeyError, TypeError, UserError):
            continue
        sizes = data_sizes(config, assumed)
        if sizes is not None and once:
            found.append((seconds / training_flops(config, sizes), run.path))
    if not found:
        return None
    middle, run_path = sorted(found)[(len(found) - 1) // 2]
    return Pace(middle, run_path, len(found))
