"""Batches in the order of a sampler, prepared by worker processes that may fail."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.errors import TrainingError, UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a run after the step in progress; workers leave that to the main process."""


@contextmanager
def load_batches(
    dataset: VQADataset, rows: Iterable[list[int]], workers: int, pin_memory: bool
) -> Iterator[Iterator[Batch]]:
    """The batch of each list in `rows`, prepared by `workers` processes (0: by this one).

    A worker that dies, or a read that fails, ends the block with a `TrainingError` within seconds;
    a `UserError` in a worker is raised here. No worker outlives the block.
    """
    iterator: Any = iter(
        DataLoader(
            dataset,  # type: ignore[arg-type]  # a map from lists of rows to batches
            batch_size=None,
            sampler=rows,
            num_workers=workers,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
        )
    )
    complete = False
    try:
        yield _read(iterator)
        complete = True
    except RuntimeError as error:
        # torch notices a dead worker by a signal, so that this comes from anywhere in the block.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _worker_died(str(error)) from error
    finally:
        if workers:
            _shut_down(iterator, at_once=not complete)


def _read(iterator: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from iterator
    except (ConnectionError, EOFError) as error:
        # It died while it handed over a batch, before torch noticed.
        raise _worker_died(f"DataLoader worker exited unexpectedly: {error}") from error
    except (UserError, OSError) as error:
        # The error of a worker contains its traceback, which ends in `module.Class: message`.
        lines = str(error).strip().splitlines()
        reason = lines[-1].partition(": ")[2] if len(lines) > 1 else str(error)
        if isinstance(error, UserError):
            raise type(error)(reason) from error
        raise TrainingError(f"a batch could not be read: {reason}") from error


def _worker_died(message: str) -> TrainingError:
    return TrainingError(
        message.partition("\n")[0].rstrip(". :")
        + "; if memory or /dev/shm ran out, lower data.workers; what was written before is intact"
    )


def _shut_down(iterator: Any, at_once: bool) -> None:
    """End the workers; at exit Python would wait forever for one that hangs."""
    # Otherwise torch's handler takes their end for a failure.
    watch = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for worker in iterator._workers if at_once else ():
            worker.kill()
        iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()
    finally:
        signal.signal(signal.SIGCHLD, watch or signal.SIG_DFL)


def _start_worker(_: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # By default a batch that cannot be handed over is an error on standard error, and the main
    # process waits for it forever. Now it ends the worker.
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(lambda error, batch: os._exit(1))
