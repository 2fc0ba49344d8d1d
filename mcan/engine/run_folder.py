"""A run is a folder: config, environment, metrics, TensorBoard events, checkpoints, predictions.

Starting into an existing run is an error unless it is resumed; nothing is ever deleted but
checkpoints past `keep_last`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mcan import __version__
from mcan.errors import RunError
from mcan.files import write_text

# What file systems without locks answer.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class RunFolder:
    """Paths of a run, and the lock that keeps a second process out while one trains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        return self.config.exists()

    def lock(self) -> None:
        """Hold the run until this process ends, however it ends, and clear what a killed one left.

        Raises `RunError` where another process holds it.
        """
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # Not flock: its locks would live on in the loader's workers after a kill.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise RunError(f"{self.path}: another process is training this run") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warning = "this file system has no locks; do not train this run twice at once"
                sys.stderr.write(f"warning: {self.path}: {warning}\n")
            self._lock = descriptor
            for folder in (self.path, self.checkpoints):
                for temporary in folder.glob(".*.tmp*"):
                    temporary.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def start(self, config_text: str, metrics_bytes: int = 0) -> None:
        """Make the folder of a new run and lock it, or go on in that of a locked one.

        Raises `RunError` where the path holds anything else, cannot be written, or has less than
        `metrics_bytes` of metrics.jsonl.
        """
        try:
            if self._lock is None:
                self._create(config_text)
            if metrics_bytes > (self.metrics.stat().st_size if self.metrics.exists() else 0):
                raise RunError(f"{self.metrics}: shorter than when the checkpoint was written")
            self._note_environment()
        except OSError as error:
            raise self._unwritable(error) from error

    def _create(self, config_text: str) -> None:
        if not self.exists and self.path.exists() and self._foreign():
            raise RunError(
                f"{self.path}: exists and is not a run folder; choose another name= or runs="
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.lock()
        if self.exists:
            raise RunError(f"{self.path}: another process has made this run in the meantime")
        write_text(self.config, config_text)

    def _foreign(self) -> bool:
        """Holds what a run killed while it was being created cannot have left."""
        if not self.path.is_dir():
            return True
        own = {self.checkpoints.name, ".lock"}
        return any(
            item.name not in own and not item.name.startswith(f".{self.config.name}.tmp")
            for item in self.path.iterdir()
        ) or any(self.checkpoints.glob("*"))

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"{self.path}: cannot be written ({error.strerror})")

    def _note_environment(self) -> None:
        """Append what this process runs on to environment.json: one entry per start or resume."""
        starts: list[dict[str, Any]] = []
        if self.environment.exists():
            try:
                starts = [*json.loads(self.environment.read_text(encoding="utf-8"))["starts"]]
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{self.environment}: not the JSON that train.py wrote") from error
        starts.append(describe_environment())
        write_text(self.environment, json.dumps({"starts": starts}, indent=2) + "\n")


def describe_environment() -> dict[str, Any]:
    """Versions, hardware, command line and source revision of this process."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "mcan": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _revision() -> str | None:
    """The git revision of the source, with `+changes` where it was edited; None outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
