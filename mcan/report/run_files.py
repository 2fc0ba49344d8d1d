"""What a run's folder says about its training: metrics.jsonl and environment.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcan.errors import RunError

Point = tuple[int, float]
"""(step, value)."""


@dataclass(frozen=True)
class Curves:
    """What a run logged, step by step."""

    loss: list[Point]
    """Mean training loss per question since the point before."""
    accuracy: list[Point]
    """Accuracy in percent on `data.evaluate`."""


def read_curves(run: Path) -> Curves:
    """The curves of a run folder, empty where it was not started.

    A last line without its end is left out: the run may be writing it. Raises `RunError` where
    another line is not as train.py writes them.
    """
    path = run / "metrics.jsonl"
    curves = Curves([], [])
    for number, line in enumerate(_text(path).split("\n")[:-1], 1):
        try:
            entry = json.loads(line)
            if entry["kind"] == "train":
                curves.loss.append((entry["step"], float(entry["loss"])))
            elif entry["kind"] == "evaluation":
                curves.accuracy.append((entry["step"], float(entry["overall"])))
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}, line {number}: not a line that train.py wrote") from None
    return curves


def read_environment(run: Path) -> dict[str, Any]:
    """Versions and hardware of a run's last start, empty where it was not started.

    Raises `RunError` where the file is not the JSON that train.py writes.
    """
    path = run / "environment.json"
    text = _text(path)
    try:
        return dict(json.loads(text)["starts"][-1]) if text else {}
    except (ValueError, KeyError, IndexError, TypeError):
        raise RunError(f"{path}: not the JSON that train.py wrote") from None


def _text(path: Path) -> str:
    """Content of a file, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
