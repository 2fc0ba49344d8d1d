"""Pickles from elsewhere, of which nothing is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from mcan.errors import DataError


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, numbers and strings need no global name; whatever does is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_plain_pickle(path: Path) -> dict[Any, Any]:
    """The dictionary in `path`. Raises `DataError` where it holds more than plain values."""
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file).load()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # The unpickler raises nearly anything for damaged files.
        raise DataError(
            f"{path}: not a pickled dictionary of plain numbers and strings ({error}); nothing in "
            "it was executed; a .json file can be given instead"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    return content
