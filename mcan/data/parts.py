"""Parts of a large input, read by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from mcan.errors import DataError

_Part = TypeVar("_Part")


def read_parts(parts: Dataset[_Part], workers: int) -> Iterator[_Part]:
    """The items of `parts` in their order, made by `workers` processes (0: by this one).

    Raises `DataError` where a process dies, as for lack of memory.
    """
    loader = DataLoader(parts, batch_size=None, num_workers=workers, collate_fn=_same)
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            "a worker process died, maybe for lack of memory; continue with --resume and fewer "
            f"--workers ({' '.join(str(error).split())})"
        ) from error


def _same(item: Any) -> Any:
    """Arrays stay arrays: tensors go through shared memory, of which containers have little."""
    return item
