"""The log of a run: metrics.jsonl, TensorBoard, and the progress bar's text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcan.errors import RunError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Appends one JSON object per line to metrics.jsonl and the same numbers to TensorBoard.

    On resume, lines written after the checkpoint are cut off (`keep_bytes`), so that the file of a
    resumed run equals an uninterrupted one's but for `samples_per_s`.
    """

    def __init__(self, metrics: Path, tensorboard: Path, keep_bytes: int, step: int) -> None:
        if keep_bytes > (metrics.stat().st_size if metrics.exists() else 0):
            raise RunError(f"{metrics}: shorter than when the checkpoint was written")
        self._file = metrics.open("ab")
        self._file.truncate(keep_bytes)
        self._tensorboard = tensorboard
        self._step = step
        self._writer: SummaryWriter | None = None

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line {"kind", "step", ...values}; numbers also go to TensorBoard as `kind/name`."""
        line = json.dumps({"kind": kind, "step": step, **values})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._board().add_scalar(f"{kind}/{name}", value, step)

    def _board(self) -> SummaryWriter:
        # Imported at the first line, not at start-up: TensorBoard takes a second to load.
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self._tensorboard), purge_step=self._step, flush_secs=30
            )
        return self._writer

    @property
    def size(self) -> int:
        """Bytes of metrics.jsonl, on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


class SilentLog:
    """What the other processes of a distributed run write."""

    size = 0

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass
