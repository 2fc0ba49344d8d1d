"""Checkpoints: self-sufficient, safe to load, written atomically, verified when they are read.

A checkpoint is a dictionary of tensors and plain values (`Checkpoint`), written by `torch.save` and
loaded with `weights_only=True`. A line `sha256 <digest of what comes before it>` ends the file. It
is checked before anything is loaded, which takes 0.4 s for 700 MB. Random numbers need no state:
they are a function of (seed, step, rank).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from torch import nn
from typing_extensions import TypedDict  # which pydantic needs before Python 3.12

from mcan import __version__
from mcan.errors import DataError, RunError, TrainingError, shorten
from mcan.files import for_library, write_atomically
from mcan.nn.official import map_old_names

FORMAT = 2
BEST = "best.pt"
EXPORTED = "model.safetensors"
"""The weights in a folder of `mcan.engine.exported`."""
_TRAILER = b"\nsha256 %b\n"
_TRAILER_BYTES = len(_TRAILER % (64 * b"0"))
_BLOCK_BYTES = 1 << 20


class DamagedCheckpointError(RunError):
    """Not what `Checkpoint.save` wrote."""


@dataclass
class Position:
    """Where training stands: `batch` updates done in `epoch` (both from 0), `step` in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


class _TrainedOn(BaseModel):
    """A training split of a checkpoint; imported and older ones do not have all fields."""

    dataset: str
    split: str
    questions: NonNegativeInt
    content: str = ""
    digest: str = ""
    stores: dict[str, str] = {}
    made_by: dict[str, str] = {}
    image_shape: list[PositiveInt] = []


class _Sizes(TypedDict):
    tokens: PositiveInt
    answers: PositiveInt
    feature_size: PositiveInt | None
    grid_size: PositiveInt | None


class _Position(TypedDict):
    epoch: NonNegativeInt
    batch: NonNegativeInt
    step: NonNegativeInt


class _Fields(BaseModel):
    """The types of what commands read in a checkpoint without checking it themselves."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    config: dict[str, Any]
    vocabulary: str
    vocabulary_digest: str
    sizes: _Sizes
    trained_on: list[_TrainedOn]
    model: dict[str, torch.Tensor]
    question_keys: torch.Tensor | None = None
    position: _Position


@dataclass
class Checkpoint:
    """Everything that evaluating or resuming needs.

    `config` the resolved config; `vocabulary` its JSON text and `vocabulary_digest`; `sizes` the
    arguments of `ModelSizes`; `trained_on` gives for each training split its dataset, split,
    questions, content (its digest), stores {path: digest}, made_by {path: text}, image_shape, (D,)
    of features or (3, H, W) of pixels, and `before` if it was an earlier run, whose weights were
    the start; `question_keys` (Q,) int64, sorted, of all questions trained on, which older
    checkpoints lack; `model` and `optimizer` state dictionaries; `loss_since_last_log` [sum,
    questions] of each process; `best` the best evaluation so far {score, step}; `metrics_bytes` the
    length of metrics.jsonl; `source` the file that it was read from, which is not written.
    """

    config: dict[str, Any]
    vocabulary: str
    vocabulary_digest: str
    sizes: dict[str, int | None]
    trained_on: list[dict[str, Any]]
    model: dict[str, Any]
    question_keys: torch.Tensor | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    position: dict[str, int] = field(default_factory=lambda: vars(Position()))
    loss_since_last_log: list[list[float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    metrics_bytes: int = 0
    versions: dict[str, str] = field(
        default_factory=lambda: {"mcan": __version__, "torch": str(torch.__version__)}
    )
    format: int = FORMAT
    source: Path | None = None

    def save(self, path: Path) -> None:
        """Write to `path`; `TrainingError`, with nothing lost, if the disk does not take it."""
        content = {name: value for name, value in vars(self).items() if name != "source"}

        def write(file: BinaryIO) -> None:
            with for_library(file) as output:
                torch.save(content, output)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
            file.write(_TRAILER % digest.hexdigest().encode())

        try:
            write_atomically(path, write)
        except DataError as error:
            cause = error.__cause__
            reason = cause.strerror if isinstance(cause, OSError) else error
            raise TrainingError(
                f"{path}: the checkpoint could not be written ({reason}); everything written "
                "before is intact: free some space and continue with --resume"
            ) from error

    def __reduce__(self) -> Any:
        """Between processes, a checkpoint that was read travels as its path."""
        return load_checkpoint, (self.source,)

    def check_shapes(self, model: nn.Module) -> None:
        """Raise `RunError` unless `model` has the parameters of the checkpoint."""
        given, own = (
            {name: tuple(getattr(value, "shape", ("none",))) for name, value in state.items()}
            for state in (self.model, model.state_dict())
        )
        different = {
            "missing": own.keys() - given,
            "unexpected": given.keys() - own,
            "of another shape": {
                f"{name} {given[name]} instead of {own[name]}"
                for name in given.keys() & own
                if given[name] != own[name]
            },
        }
        found = [f"{how}: {shorten(sorted(n), 3)}" for how, n in different.items() if n]
        if found:
            raise RunError(f"{self.source}: does not fit the config: {'; '.join(found)}")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the states into `model` and `optimizer`; `RunError` if they do not fit."""
        self.check_shapes(model)
        model.load_state_dict(self.model)
        if optimizer is not None:
            try:
                optimizer.load_state_dict(self.optimizer)
            except (KeyError, ValueError) as error:
                raise RunError(f"{self.source}: does not fit the optimizer: {error}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without executing anything in it.

    Those of format 1 (before checksums) can be evaluated.
    """
    try:
        verified = _verify(path)
        content = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        version = content["format"]
        if version == 1:
            content["model"] = map_old_names(content["model"])
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RunError(f"{path}: no such checkpoint") from error
    except (MemoryError, RunError):
        raise
    except Exception as error:  # damaged bytes fail in any way; foreign pickles are not executed
        raise DamagedCheckpointError(f"{path}: not a checkpoint of train.py, or damaged") from error
    if version == FORMAT and not verified:
        raise DamagedCheckpointError(f"{path}: damaged: the checksum at its end is missing")
    return from_fields(content, path)


def from_fields(content: dict[str, Any], path: Path) -> Checkpoint:
    """The checkpoint of the fields that the file `path` states; others are left out."""
    if (version := content.get("format")) not in (1, FORMAT):
        raise RunError(f"{path}: checkpoint format {version!r}; this version reads {FORMAT}")
    known = {item.name for item in fields(Checkpoint)} - {"source"}
    try:
        found = Checkpoint(**{k: v for k, v in content.items() if k in known}, source=path)
        _Fields.model_validate(vars(found))
    except (TypeError, ValidationError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            problem = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        raise DamagedCheckpointError(f"{path}: the checkpoint is not complete: {reason}") from error
    return found


def _verify(path: Path) -> bool:
    """True if the file ends in its digest, False if it ends in none; else `RunError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size - _TRAILER_BYTES
        for start in range(0, size, _BLOCK_BYTES):
            digest.update(file.read(min(_BLOCK_BYTES, size - start)))
        trailer = file.read()
    if trailer == _TRAILER % digest.hexdigest().encode():
        return True
    if trailer.startswith(_TRAILER.partition(b"%")[0]):
        raise DamagedCheckpointError(f"{path}: damaged: its bytes do not match its checksum")
    return False


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step_*[0-9].pt"), key=lambda path: (len(path.name), path.name))


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints; the last is `best.pt`, which a run may have written before one of a step."""
    return [*reversed(list_checkpoints(folder)), *folder.glob(BEST)]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, damaged or not."""
    return next(iter(newest_first(folder)), None)


def newest_intact(folder: Path) -> tuple[Checkpoint | None, dict[Path, DamagedCheckpointError]]:
    """The newest checkpoint that is not damaged, and what is wrong with each of the newer ones."""
    errors: dict[Path, DamagedCheckpointError] = {}
    for path in newest_first(folder):
        try:
            return load_checkpoint(path), errors
        except DamagedCheckpointError as error:
            errors[path] = error
    return None, errors


def open_checkpoint(target: Path, which: Literal["last", "best"] = "last") -> Checkpoint:
    """Load the file `target`, the `last` or `best` checkpoint of a run folder, or an exported
    folder.

    The error for a damaged one names an intact one.
    """
    if which == "best" and (target.is_file() or (target / EXPORTED).is_file()):
        raise RunError(f"{target}: a single checkpoint; {which} needs a run folder")
    if (target / EXPORTED).is_file():
        from mcan.engine.exported import read_exported  # which imports this module

        return read_exported(target)
    folder = target / "checkpoints"
    path = folder / BEST if which == "best" else last_checkpoint(folder)
    path = target if target.is_file() else path
    if path is None or not path.is_file():
        there = "" if target.exists() else "; there is no such file or folder"
        raise RunError(
            f"{target}: neither a checkpoint nor a run folder with a {which} checkpoint{there}"
        )
    try:
        return load_checkpoint(path)
    except DamagedCheckpointError as error:
        intact = newest_intact(path.parent)[0]
        way_out = f"; the newest intact one is {intact.source}; give its path" if intact else ""
        raise RunError(f"{error}{way_out}") from error
    except RunError:
        if path == target or path.exists():
            raise
        return open_checkpoint(target, which)  # training has replaced it in the meantime


def save_step(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint of its step."""
    checkpoint.save(folder / f"step_{checkpoint.position['step']:08d}.pt")


def save_newest(checkpoint: Checkpoint, folder: Path, best: bool, keep_last: int) -> None:
    """Make `checkpoint` the newest in `folder`, and its best if it is; keep the newest `keep_last`.

    The best one is written first: a process killed in between resumes before the evaluation and
    makes the same file again, or, if there is no earlier checkpoint, resumes from the best one.
    """
    if best:
        checkpoint.save(folder / BEST)
    save_step(checkpoint, folder)
    drop_old(folder, keep_last)


def drop_old(folder: Path, keep_last: int) -> None:
    """Delete all step checkpoints but the newest `keep_last`."""
    for old in list_checkpoints(folder)[:-keep_last]:
        old.unlink()
