"""Small image stores to read back and to damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mcan.preparation.store_writer import ImageRows, StoreWriter


def make_images(ids: list[Any], dim: int = 5, seed: int = 0, uniform: bool = False) -> list[Any]:
    """Images with everything a store can hold; 1 to 16 rows, or 6 if `uniform`."""
    random = np.random.default_rng(seed)
    images = []
    for image_id in ids:
        rows, columns = (2, 3) if uniform else random.integers(1, 5, 2).tolist()
        count = rows * columns
        corners = np.sort(random.random((count, 2, 2)), axis=1).reshape(count, 4)
        features = random.standard_normal((count, dim)).astype(np.float16)
        size = int(random.integers(1, 700)), int(random.integers(1, 500))
        images.append(
            ImageRows(image_id, features, corners.astype(np.float32), size, (rows, columns))
        )
    return images


def write_store(
    path: Path,
    images: list[Any],
    dtype: Any = "float16",
    provenance: Any = {"by": "test"},  # noqa: B006
    **flags: bool,
) -> Path:
    """A store with everything but the `boxes`, `size` and `grid_shape` that are False."""
    without: Any = {name: None for name, given in flags.items() if not given}
    with StoreWriter(path, dtype, provenance=provenance) as writer:
        for image in images:
            writer.add(image._replace(**without))
    return path


def write_pixels(path: Path, pixels: dict[Any, np.ndarray]) -> Path:
    with StoreWriter(path) as writer:
        for image_id, image in pixels.items():
            writer.add(ImageRows(image_id, image))
    return path
