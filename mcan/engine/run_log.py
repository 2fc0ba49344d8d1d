"""The log of a run: metrics.jsonl, TensorBoard, and the progress bar's text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcan.errors import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends one JSON object per line to metrics.jsonl and the same numbers to TensorBoard.

    On resume, lines written after the checkpoint are cut off (`keep_bytes`), so that the file of a
    resumed run equals an uninterrupted one's but for `samples_per_s`.

    Methods raise `TrainingError` where the disk does not take a line.
    """

    def __init__(self, metrics: Path, tensorboard: Path, keep_bytes: int, step: int) -> None:
        self._path = metrics
        self._tensorboard = tensorboard
        self._step = step
        self._writer: SummaryWriter | None = None
        with self._writing():
            self._file = metrics.open("ab")
            self._file.truncate(keep_bytes)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {"kind", "step", ...values}; numbers also go to TensorBoard as `kind/name`."""
        line = json.dumps({"kind": kind, "step": step, **values})
        with self._writing():
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._board().add_scalar(f"{kind}/{name}", value, step)

    def _board(self) -> SummaryWriter:
        # Imported at the first line, not at start-up: TensorBoard takes a second to load.
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What was shown for later steps is withdrawn: these steps are repeated.
            self._writer = SummaryWriter(str(self._tensorboard), purge_step=self._step + 1)
        return self._writer

    def sync(self) -> int:
        """Bring all lines to the disk; returns the bytes of metrics.jsonl."""
        with self._writing():
            os.fsync(self._file.fileno())
            if self._writer is not None:
                self._writer.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        # Every line was flushed: only one that could not be written, and was told of, is left.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self._path}: the log could not be written ({error.strerror}); the checkpoints "
                "are intact: free some space and continue with --resume"
            ) from error


class SilentLog:
    """What the other processes of a distributed run write."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def sync(self) -> int:
        return 0

    def close(self) -> None:
        pass
