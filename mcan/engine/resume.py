"""Whether, where and on which data a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcan.config import Config, load_config
from mcan.engine.checkpoint import BEST, Checkpoint, last_checkpoint
from mcan.engine.run_folder import RunFolder
from mcan.errors import RunError

# Keys that change how a run is executed, but not a bit of its weights. Data may have moved: what
# the checkpoint says of it is compared.
_FREE_KEYS = (
    "runs",
    "data.prepared",
    "data.images",
    "data.grid",
    "model.question.word_vectors.path",
    "data.workers",
    "data.residency",
    "train.checkpoint_every",
    "train.keep_last",
    "evaluation.batch_size",
)


def checkpoint_to_resume(run: RunFolder, config: Config, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a new run, or one stopped before its first checkpoint.

    An existing run is locked. Raises `RunError` where it is not to be resumed, was started with
    another config, or is locked by another process.
    """
    if not run.exists:
        return None
    if not resume:
        raise RunError(
            f"{run.path}: this run exists; continue it with --resume, or choose another name=..."
        )
    before, now = _flat(load_config(run.config).model_dump()), _flat(config.model_dump())
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in _FREE_KEYS:
            raise RunError(
                f"{run.config}: the run was started with {key} = {before.get(key)!r}, not "
                f"{now.get(key)!r}; resume with the same config, or choose another name=..."
            )
    if not run.checkpoints.is_dir():
        raise RunError(f"{run.checkpoints}: is missing, so there is nothing to resume from")
    run.lock()
    best = run.checkpoints / BEST  # alone where the run was killed right after its first evaluation
    return last_checkpoint(run.checkpoints) or (best if best.is_file() else None)


def check_same_data(now: Checkpoint, before: Checkpoint, where: Path) -> None:
    """Raise `RunError` where `before` was trained on other data than `now` describes.

    Checkpoints of versions that did not note their image stores pass with any.
    """
    if now.vocabulary_digest != before.vocabulary_digest:
        raise RunError(f"{where}: the vocabulary of the prepared data has changed since the run")
    for entry, earlier in zip(now.trained_on, before.trained_on, strict=False):
        here, there = entry["stores"], earlier.get("stores", entry["stores"])
        # Not their paths: stores may have moved.
        if list(here.values()) != list(there.values()):
            changed = [path for path, digest in here.items() if digest not in there.values()]
            reason = (
                "the image store does not hold what the run was trained on; make it as it was"
                if changed
                else "the run was trained on these image stores in another order; name them so"
            )
            raise RunError(
                f"{where}: {', '.join(changed or here)}: {reason}, or start another run with "
                "name=..."
            )
    if _questions(now) != _questions(before) or now.sizes != before.sizes:
        raise RunError(f"{where}: the training data has changed since the run")


def _questions(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if name != "stores"}
        for entry in checkpoint.trained_on
    ]


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
