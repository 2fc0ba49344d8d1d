"""A run is a folder: config, environment, metrics, TensorBoard events, checkpoints, predictions.

Starting into an existing run is an error unless it is resumed. Nothing is ever deleted except
checkpoints beyond `keep_last`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from mcan import __version__
from mcan.batch import RowLayout
from mcan.config import Config, flatten, free_keys, load_config
from mcan.console import message
from mcan.engine.checkpoint import (
    BEST,
    FORMAT,
    Checkpoint,
    drop_old,
    newest_intact,
    save_step,
)
from mcan.errors import BusyError, RunError
from mcan.files import lock_file, parse_json, save_text, saving
from mcan.section import show

ROOT = Path(__file__).resolve().parents[2]
_WITHOUT_EFFECT = ("benchmarking", "benchmarking.py", "preparation", "tables")
"""Parts of mcan/ that no trained or evaluated number depends on: data has digests of its own."""


class RunFolder:
    """Paths of a run, and the lock that keeps a second process out while one trains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self._lock: FileLock | None = None

    @property
    def exists(self) -> bool:
        return self.config.exists()

    @property
    def saved(self) -> bool:
        """Whether the run has a checkpoint, or had one: it is written after an evaluation."""
        empty = self.checkpoints.is_dir() and not any(self.checkpoints.glob("[!.]*"))
        return not empty or (self.metrics.exists() and b'"evaluation"' in self.metrics.read_bytes())

    @property
    def last_code(self) -> str:
        """The digest of the code that started or resumed the run last; empty if not recorded."""
        with suppress(AttributeError, OSError, ValueError, IndexError):
            lines = self.environment.read_text(encoding="utf-8").splitlines()
            return str(parse_json(lines[-1]).get("code", ""))
        return ""

    def lock(self) -> None:
        """Hold the run until this process ends, however it ends; clear what a killed one left."""
        self._lock = lock_file(self.path / ".lock")
        if self._lock is None:
            raise BusyError(f"{self.path}: another process is training this run")
        for folder in (self.path, self.checkpoints):
            for temporary in folder.glob(".*.tmp*"):
                temporary.unlink()

    def start(self, config_text: str, checkpoint: Checkpoint | None, keep_last: int) -> None:
        """Make the folder of a new run and lock it, or go on in that of a locked one.

        Without a `checkpoint`, it starts from the beginning.
        """
        if self._lock is None:
            # A run killed while it was created has left hidden files and empty folders only.
            if not self.exists and any(path.is_file() for path in self.path.rglob("[!.]*")):
                raise RunError(
                    f"{self.path}: exists and is not a run folder; choose another name= or runs="
                )
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock()
            if self.exists:
                raise BusyError(f"{self.path}: another process has made this run in the meantime")
        if checkpoint is not None:
            written = self.metrics.stat().st_size if self.metrics.exists() else 0
            if checkpoint.metrics_bytes > written:
                raise RunError(f"{self.metrics}: shorter than when the checkpoint was written")
            self.tidy(checkpoint, keep_last)
        save_text(self.config, config_text)  # on resume too: free keys may have changed
        kept = checkpoint is not None and self.environment.exists()
        launches = self.environment.read_text("utf-8") if kept else ""
        save_text(self.environment, launches + json.dumps(describe_environment()) + "\n")

    def tidy(self, checkpoint: Checkpoint, keep_last: int) -> None:
        """Write and delete the files that a process still had to when it was killed."""
        if checkpoint.source == self.checkpoints / BEST:
            save_step(checkpoint, self.checkpoints)
        drop_old(self.checkpoints, keep_last)


def checkpoint_to_resume(
    run: RunFolder, config: Config, resume: bool, device: torch.device
) -> tuple[Checkpoint | None, Config]:
    """The checkpoint to resume from, and the config with `train.rows: auto` resolved.

    None for a new run, or one stopped before its first checkpoint, whose name is free. Keys that
    the schema marks as free may differ from those of the run, and so may `train.epochs`, if the
    schedule allows it (`Trainer`); `auto` keeps its meaning. An existing run is locked. Damaged
    checkpoints are renamed, and reported like a change of the code.
    """
    checkpoint, rows = None, config.train.rows
    if run.exists and not run.saved:
        run.lock()
        message(f"{run.path}: stopped before its first checkpoint; it starts from the beginning")
    elif run.exists:
        if not resume:
            raise RunError(
                f"{run.path}: this run exists; continue it with --resume, or choose another name="
            )
        earlier = load_config(run.config)
        before, now = flatten(earlier.model_dump()), flatten(config.model_dump())
        free = free_keys() | {"train.epochs"}
        for key in now | before:  # in the order of the schema: a name before what follows from it
            if key not in free and before.get(key) != now.get(key):
                raise RunError(
                    f"{run.config}: the run was started with {key} = {show(before.get(key))}, not "
                    f"{show(now.get(key))}; resume with the same config, or choose another name="
                )
        if not run.checkpoints.is_dir():
            raise RunError(f"{run.checkpoints}: is missing, so there is nothing to resume from")
        run.lock()
        checkpoint, errors = newest_intact(run.checkpoints)
        for damaged, error in errors.items():
            if checkpoint is None:
                raise RunError(f"{error}; no checkpoint is intact, so train under another name=")
            kept, source = damaged.replace(f"{damaged}.damaged"), checkpoint.source
            message(f"warning: {error}; it is kept as {kept.name}; continuing from {source}")
        planned = checkpoint.config["train"]["epochs"] if checkpoint else 1
        if config.train.epochs < planned:
            raise RunError(
                f"{run.path}: was begun with train.epochs={planned}; it can be resumed with more, "
                f"but not with {config.train.epochs}"
            )
        if run.last_code not in ("", code_digest()):
            message(
                f"warning: {run.path}: trained so far by other code ({run.last_code}; now "
                f"{code_digest()}), so the result may not be that of an uninterrupted run"
            )
        rows = earlier.train.rows if rows == "auto" else rows
    layout = resolve_rows(rows, device, config.train.compile)
    options = config.train.model_copy(update={"rows": layout})
    return checkpoint, config.model_copy(update={"train": options})


def resolve_rows(
    rows: Literal["auto", "padded", "packed"], device: torch.device, compiled: bool
) -> RowLayout:
    """The layout that `train.rows` means: `auto` is packed on a CPU without compilation."""
    if rows != "auto":
        return rows
    return "packed" if device.type == "cpu" and not compiled else "padded"


def check_resumable(checkpoint: Checkpoint, now: Checkpoint, where: Path) -> None:
    """Raise `RunError` if `checkpoint` is of another format or data than `now`."""
    if checkpoint.format != FORMAT:
        raise RunError(
            f"{checkpoint.source}: written by an earlier version of this project: it can be "
            "evaluated, but training cannot be resumed from it"
        )
    # The stores without their paths: they may have moved.
    data, earlier = (
        [
            (split["content"], *split["stores"].values())
            for split in described.trained_on
            if not split.get("before")
        ]
        for described in (now, checkpoint)
    )
    same_vocabulary = now.vocabulary_digest == checkpoint.vocabulary_digest
    if data != earlier or not same_vocabulary or now.sizes != checkpoint.sizes:
        raise RunError(
            f"{where}: the run was trained on another vocabulary, other questions or image stores, "
            "or on these in another order; restore them, or start another run with name=..."
        )


def describe_environment() -> dict[str, Any]:
    """Versions, hardware, command line and source revision of this process.

    The git revision has `+changes` if the source was edited, and is empty outside git.
    """
    describe, revision = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes"], ""
    with suppress(OSError):  # no git
        revision = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "mcan": __version__,
        "revision": revision,
        "code": code_digest(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


@cache
def code_digest() -> str:
    """12 digits of SHA-256 over train.py, eval.py and the parts of mcan/ that can change a result.

    A git revision would change with every commit to the documentation, and miss local edits.
    """
    package, digest = ROOT / "mcan", hashlib.sha256()
    parts = [
        path
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] not in _WITHOUT_EFFECT
    ]
    for path in (ROOT / "train.py", ROOT / "eval.py", *parts):
        content = path.read_bytes() if path.is_file() else b""  # an installed package has no script
        digest.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


class _Board:
    """Writes numbers for TensorBoard. (torch's `SummaryWriter` writes in a thread of its own, which
    prints a traceback if the disk is full.)"""

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported after the first line of the log, not at the start: it takes 0.3 s.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        # TensorBoard reads files in the order of their names. Those of torch are numbered by time.
        numbers = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        number = max([int(each) for each in numbers if each.isdecimal()], default=-1) + 1
        self._file = (folder / f"events.out.tfevents.{number:010d}").open("xb")
        self._event, self._summary, self._records = Event, Summary, RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        # What was shown for later steps is withdrawn: these steps are repeated.
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def add(self, step: int, values: dict[str, float]) -> None:
        shown = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        self._write(step=step, summary=self._summary(value=shown))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class RunLog:
    """Appends one JSON object per line to metrics.jsonl and the same numbers to TensorBoard.

    On resume, lines written after the checkpoint are cut off (`keep_bytes`), so that the file of a
    resumed run equals an uninterrupted one's except for `samples_per_s`.
    """

    def __init__(self, run: RunFolder, keep_bytes: int, step: int) -> None:
        self._run = run
        self._step = step
        self._board: _Board | None = None
        with saving(run.metrics):
            self._file = run.metrics.open("ab")
            self._file.truncate(keep_bytes)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {"kind", "step", ...values}; TensorBoard gets numbers as `kind/name`."""
        line = json.dumps({"kind": kind, "step": step, **values})
        shown = {name: value for name, value in values.items() if isinstance(value, float)}
        for name, value in values.get("per_answer_type", {}).items():
            shown[f"per_answer_type/{name}"] = value
        with saving(self._run.metrics):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        with saving(self._run.tensorboard):
            self._board = self._board or _Board(self._run.tensorboard, self._step + 1)
            self._board.add(step, {f"{kind}/{name}": value for name, value in shown.items()})

    def sync(self) -> int:
        """Bring all lines to the disk; returns the bytes of metrics.jsonl."""
        with saving(self._run.metrics):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        # Every line was flushed; one that could not be written has been reported.
        with suppress(OSError):
            self._file.close()
            if self._board is not None:
                self._board.close()
