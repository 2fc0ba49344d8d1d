"""Progress bars of long work: a moving line in a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(*args: Any, **options: Any) -> tqdm[Any]:
    """`tqdm.tqdm` with intervals that suit where it writes."""
    options.setdefault("mininterval", 0.1 if sys.stderr.isatty() else 30.0)
    options.setdefault("dynamic_ncols", True)
    return tqdm(*args, **options)
