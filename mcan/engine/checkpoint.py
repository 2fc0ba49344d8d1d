"""Checkpoints: self-sufficient, safe to load, written atomically.

A checkpoint is a dictionary of tensors and plain values (`Checkpoint`), loaded with
`weights_only=True`. Random numbers need no state: they are a function of (seed, step, rank).
"""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from mcan import __version__
from mcan.errors import RunError, TrainingError
from mcan.files import sync_folder, write_atomically

FORMAT = 1
_NAME = "step_{:08d}.pt"
_PATTERN = "step_" + "[0-9]" * 8 + "*.pt"
BEST = "best.pt"


@dataclass
class Position:
    """Where training stands: `batch` updates done in `epoch` (both from 0), `step` in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Checkpoint:
    """Everything that evaluating or resuming needs.

    `config` the resolved config; `vocabulary` its JSON text and `vocabulary_digest`; `sizes` the
    arguments of `ModelSizes`; `trained_on` one {split, questions, digest} per training split;
    `model` and `optimizer` state dictionaries; `window` the running sums of the log, per process;
    `best` the best evaluation so far {score, step}; `metrics_bytes` the length of metrics.jsonl.
    """

    config: dict[str, Any]
    vocabulary: str
    vocabulary_digest: str
    sizes: dict[str, int | None]
    trained_on: list[dict[str, Any]]
    model: dict[str, Any]
    optimizer: dict[str, Any] = field(default_factory=dict)
    position: dict[str, int] = field(default_factory=lambda: vars(Position()))
    window: list[list[float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    metrics_bytes: int = 0
    versions: dict[str, str] = field(
        default_factory=lambda: {"mcan": __version__, "torch": str(torch.__version__)}
    )
    format: int = FORMAT

    def check_same_data(self, other: Checkpoint, where: Path) -> None:
        """Raise `RunError` where `other` was trained on other data than this describes."""
        if self.vocabulary_digest != other.vocabulary_digest:
            raise RunError(
                f"{where}: the vocabulary of the prepared data has changed since the run"
            )
        if self.trained_on != other.trained_on or self.sizes != other.sizes:
            raise RunError(f"{where}: the training data has changed since the run")

    def save(self, path: Path) -> None:
        """Write to `path`; raises `TrainingError`, with nothing lost, where the disk does not take
        it.
        """
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        try:
            write_atomically(path, lambda file: torch.save(content, file))
        except (OSError, RuntimeError) as error:  # torch wraps some write errors in RuntimeError
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
            raise TrainingError(
                f"{path}: the checkpoint could not be written ({reason}); everything written "
                "before is intact: free some space and continue with --resume"
            ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without executing anything in it; `RunError` where it is not one."""
    if not path.is_file():
        raise RunError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path}: not loaded, because it holds more than tensors and plain values "
            "(only checkpoints written by train.py are accepted)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise RunError(f"{path}: not a checkpoint, or truncated") from error
    if not isinstance(content, dict) or "format" not in content:
        raise RunError(f"{path}: a torch file, but not a checkpoint written by train.py")
    if content["format"] != FORMAT:
        raise RunError(
            f"{path}: checkpoint format {content['format']!r}; this version reads {FORMAT}"
        )
    names = {item.name for item in fields(Checkpoint)}
    if missing := sorted(names - set(content)):
        raise RunError(f"{path}: the checkpoint lacks {', '.join(missing)}")
    return Checkpoint(**{name: content[name] for name in names})


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / _NAME.format(step)


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints in `folder`, oldest first."""
    return sorted(folder.glob(_PATTERN), key=lambda path: int(path.stem.split("_")[1]))


def last_checkpoint(folder: Path) -> Path | None:
    paths = list_checkpoints(folder)
    return paths[-1] if paths else None


def find_checkpoint(target: Path, which: str) -> Path:
    """`target` itself if it is a file, or the run folder's `last` or `best` checkpoint."""
    if target.is_file():
        return target
    if not target.is_dir():
        raise RunError(f"{target}: no such run folder or checkpoint")
    folder = target / "checkpoints"
    path = folder / BEST if which == "best" else last_checkpoint(folder)
    if path is None or not path.is_file():
        raise RunError(f"{target}: holds no {which} checkpoint in checkpoints/")
    return path


def mark_best(path: Path) -> None:
    """Make `path` the folder's best checkpoint: a second name for the same file where possible."""
    temporary = path.with_name(f".{BEST}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    temporary.replace(path.with_name(BEST))
    sync_folder(path.parent)


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` step checkpoints."""
    for path in list_checkpoints(folder)[:-keep_last]:
        path.unlink()
