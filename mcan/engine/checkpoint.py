"""Checkpoints: self-sufficient, safe to load, written atomically.

A checkpoint is a dictionary of tensors and plain values (`Checkpoint`), loaded with
`weights_only=True`. Random numbers need no state: they are a function of (seed, step, rank).
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcan import __version__
from mcan.errors import RunError, TrainingError
from mcan.files import sync, write_atomically

FORMAT = 1
_NAME = "step_{:08d}.pt"
_PATTERN = re.compile(r"step_(\d{8,})\.pt")
BEST = "best.pt"
_ZIP_WRITER = re.compile(r"PytorchStreamWriter|unexpected pos")


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
    arguments of `ModelSizes`; `trained_on` says of each training split its dataset, split,
    questions, digest, content and, where known, stores {path: digest}; `model` and `optimizer`
    state dictionaries; `window` the running sums of the log, per process; `best` the best
    evaluation so far {score, step}; `metrics_bytes` the length of metrics.jsonl; `source` the file
    that it was read from, which is not written.
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
    source: Path | None = None

    def save(self, path: Path) -> None:
        """Write to `path`; raises `TrainingError`, with nothing lost, where the disk does not take
        it.
        """
        content = {name: getattr(self, name) for name in _WRITTEN}
        with _writing(path):
            write_atomically(path, lambda file: torch.save(content, file))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the states into `model` and `optimizer`; raises `RunError` where they do not fit."""
        here, there = _shapes(model.state_dict()), _shapes(self.model)
        names = [*here, *(name for name in there if name not in here)]
        wrong = [name for name in names if here.get(name) != there.get(name)]
        if wrong:
            name, more = wrong[0], len(wrong) - 1
            raise RunError(
                f"{self.source}: does not fit the network that the config describes: {name} is "
                f"{there.get(name, 'absent')} in the checkpoint and {here.get(name, 'absent')} in "
                "the network" + (f" (and {more} more)" if more else "")
            )
        model.load_state_dict(self.model)
        if optimizer is None:
            return
        try:
            optimizer.load_state_dict(self.optimizer)
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{self.source}: holds no state of the optimiser that the config describes, so "
                "training cannot go on from it"
            ) from error


_WRITTEN = tuple(item.name for item in fields(Checkpoint) if item.name != "source")


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch reports a write that failed inside its zip writer as a RuntimeError.
        if isinstance(error, RuntimeError) and not _ZIP_WRITER.search(str(error)):
            raise
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
    except Exception as error:  # damaged bytes fail in any way
        raise RunError(f"{path}: not a checkpoint, or truncated") from error
    if not isinstance(content, dict) or "format" not in content:
        raise RunError(f"{path}: a torch file, but not a checkpoint written by train.py")
    if content["format"] != FORMAT:
        raise RunError(
            f"{path}: checkpoint format {content['format']!r}; this version reads {FORMAT}"
        )
    if missing := [name for name in _WRITTEN if name not in content]:
        raise RunError(f"{path}: the checkpoint lacks {', '.join(missing)}")
    if wrong := _wrong_field(content):
        raise RunError(f"{path}: the checkpoint's {wrong} is not as train.py writes it")
    return Checkpoint(**{name: content[name] for name in _WRITTEN}, source=path)


def _wrong_field(content: dict[str, Any]) -> str | None:
    """The first field whose value is not of the form that `Checkpoint` describes."""

    def numbers(value: Any, keys: Collection[str]) -> bool:
        return (
            isinstance(value, dict)
            and set(value) == set(keys)
            and all(isinstance(v, int) and v >= 0 for v in value.values() if v is not None)
        )

    def digests(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(text, str) for item in value.items() for text in item
        )

    trained_on = content["trained_on"]
    described = {"dataset": str, "split": str, "questions": int, "digest": str, "content": str}
    right = {
        "config": isinstance(content["config"], dict),
        "vocabulary": isinstance(content["vocabulary"], str),
        "vocabulary_digest": isinstance(content["vocabulary_digest"], str),
        "sizes": numbers(content["sizes"], ("tokens", "answers", "feature_size", "grid_size")),
        "position": numbers(content["position"], vars(Position())),
        "trained_on": isinstance(trained_on, list)
        and all(
            isinstance(entry, dict)
            and all(isinstance(entry.get(name), kind) for name, kind in described.items())
            and digests(entry.get("stores", {}))
            for entry in trained_on
        ),
        "model": isinstance(content["model"], dict)
        and all(isinstance(value, torch.Tensor) for value in content["model"].values()),
        "optimizer": isinstance(content["optimizer"], dict),
        "window": isinstance(content["window"], list),
        "metrics_bytes": isinstance(content["metrics_bytes"], int),
    }
    return next((name for name, holds in right.items() if not holds), None)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / _NAME.format(step)


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints in `folder`, oldest first."""
    steps = [
        (match, path) for path in folder.glob("*.pt") if (match := _PATTERN.fullmatch(path.name))
    ]
    return [path for _, path in sorted((int(match[1]), path) for match, path in steps)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest step checkpoint."""
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
        raise RunError(f"{target}: holds no {which} checkpoint in checkpoints/; see --checkpoint")
    return path


def store(checkpoint: Checkpoint, folder: Path, best: bool, keep_last: int) -> None:
    """Make `checkpoint` the newest in `folder`, and its best where it is; keep the newest
    `keep_last`.

    The best one appears first: a process killed in between goes on before the evaluation and makes
    the same file again. Raises `TrainingError` as `Checkpoint.save` does.
    """
    path = checkpoint_path(folder, checkpoint.position["step"])
    if best:
        checkpoint.save(folder / BEST)
        _add_name(folder / BEST, path)
    else:
        checkpoint.save(path)
    with _writing(folder):
        for old in list_checkpoints(folder)[:-keep_last]:
            old.unlink()


def _add_name(path: Path, name: Path) -> None:
    """Give the file at `path` a second name, in place of what is there."""
    temporary = name.with_name(f".{name.name}.tmp{os.getpid()}")
    with _writing(name):
        try:
            temporary.hardlink_to(path)
        except OSError:  # a file system without hard links
            with path.open("rb") as source:
                write_atomically(name, lambda file: shutil.copyfileobj(source, file))
        else:
            temporary.replace(name)
            sync(name.parent)
