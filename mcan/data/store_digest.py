"""What tells an image store from another one under the same path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcan.data.hdf5 import ids_digest
from mcan.data.store import ImageStore

_BLOCKS = 128
_BLOCK_VALUES = 2048


def store_digest(store: ImageStore) -> str:
    """SHA-256 of what training sees of a store: ids, shapes and a sample of its rows and boxes.

    The sample is spread over the store and takes milliseconds, however large that is. Features made
    anew in another way are told; those of single images may pass.
    """
    parts = {"rows": store.rows, "boxes": store.boxes, "grid": store.grid_shapes}
    known = {name: values for name, values in parts.items() if values is not None}
    shapes = {name: (_dtype(values), list(values.shape)) for name, values in known.items()}
    digest = hashlib.sha256(json.dumps([store.kind, shapes]).encode())
    digest.update(ids_digest(store.image_ids).encode())
    digest.update(store.offsets.tobytes())
    for values in known.values():
        for block in _sample(values):
            digest.update(block.tobytes())
    return digest.hexdigest()


def _dtype(values: NDArray[Any] | Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _sample(values: NDArray[Any] | Tensor) -> Iterator[NDArray[Any]]:
    """Blocks from the first value to the last; together all values where these are few."""
    flat = values.reshape(-1)
    last = max(0, len(flat) - _BLOCK_VALUES)
    for first in sorted({last * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
        block = flat[first : first + _BLOCK_VALUES]
        yield block.cpu().numpy() if isinstance(block, Tensor) else np.asarray(block)
