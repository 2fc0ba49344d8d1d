"""Batches in the order of a sampler, prepared by worker processes that may fail."""

from __future__ import annotations

import multiprocessing.connection
import multiprocessing.queues
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mcan.batch import Batch
from mcan.data.dataset import VQADataset
from mcan.errors import TrainingError, UserError

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))
"""Signals that end a run after the step in progress; workers leave that to the main process.
Windows has only the first two.
"""


@contextmanager
def load_batches(
    dataset: VQADataset, rows: Iterable[list[int]], workers: int, pin_memory: bool
) -> Iterator[Iterator[Batch]]:
    """The batch of each list in `rows`, prepared by `workers` processes (0: by this one).

    A worker that dies or cannot be started, or a read that fails, ends the block with a
    `TrainingError` within seconds; a `UserError` in a worker is raised here. No worker outlives the
    block.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,  # type: ignore[arg-type]  # a map from lists of rows to batches
        batch_size=None,
        sampler=rows,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    iterator: Any = _start(loader) if workers else iter(loader)
    try:
        yield _read(iterator)
    except RuntimeError as error:
        # torch notices a dead worker by a signal, so that this comes from anywhere in the block.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _worker_died(iterator._workers, error) from error
    finally:
        if workers:
            _shut_down(iterator)


def _start(loader: DataLoader[Any]) -> Any:
    """The iterator of `loader` with its processes."""
    iterator: Any = _MultiProcessingDataLoaderIter.__new__(_MultiProcessingDataLoaderIter)
    try:
        iterator.__init__(loader)
    except OSError as error:
        iterator._shutdown = True  # or else its destructor fails on what it has not made
        for worker in getattr(iterator, "_workers", ()):
            worker.kill()
        raise _failed(str(error)) from error
    return iterator


def _read(iterator: Any) -> Iterator[Batch]:
    try:
        yield from iterator
    except (ConnectionError, EOFError) as error:
        # It died while it handed over a batch, before torch noticed.
        raise _worker_died(iterator._workers, error) from error
    except (UserError, OSError) as error:
        # The error of a worker contains its traceback, which ends in `module.Class: message`.
        text = str(error.args[0]) if isinstance(error, UserError) else str(error)
        lines = text.strip().splitlines()
        reason = lines[-1].partition(": ")[2] if len(lines) > 1 else text
        if isinstance(error, UserError):
            raise type(error)(reason) from error
        raise TrainingError(f"a batch could not be read: {reason}") from error


def _worker_died(workers: Sequence[Any], error: Exception) -> TrainingError:
    """By the exit status of the first that did: a signal, or an `errno` (see `_start_worker`)."""
    dead = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=5)
    for worker in workers:
        if worker.sentinel in dead:
            worker.join(5)  # a process closes its sentinel before its exit status can be read
    status = next((worker.exitcode for worker in workers if worker.exitcode), 0)
    cause = signal.Signals(-status).name if status < 0 else os.strerror(status)
    return _failed(cause if status not in (0, 1) else str(error))


def _failed(cause: str) -> TrainingError:
    return TrainingError(
        f"a process that prepares batches failed ({cause}); use data.workers=0, or provide more "
        "memory, shared memory (docker run --shm-size=8g) or open files (ulimit -n); what was "
        "written before is intact"
    )


def _shut_down(iterator: Any) -> None:
    """End the workers at once.

    torch's way may wait forever for a lock that a killed worker held, and Python, at exit, for a
    worker that hangs.
    """
    complete, iterator._shutdown = iterator._shutdown, True
    if not complete:  # torch has shut down if all batches were read
        # Otherwise its handler of SIGCHLD takes their end for a failure.
        _remove_worker_pids(id(iterator))
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join(5)
    if not complete:
        if hasattr(iterator, "_pin_memory_thread"):
            iterator._pin_memory_thread_done_event.set()
        for queue in iterator._index_queues:
            queue.cancel_join_thread()
            queue.close()


def _start_worker(_: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # By default a batch that cannot be handed over is an error on standard error, and the main
    # process waits for it forever. Now it ends the worker, whose exit status is the `errno`.
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(lambda error, batch: _end_worker(error))
    # The thread that hands over descriptors reports its errors here.
    sys.excepthook = lambda _, error, __: _end_worker(error)


def _end_worker(error: BaseException) -> None:
    # torch's own errors name the `errno` at their end: "... No space left on device (28)".
    found = re.search(r"\((\d+)\)\s*$", str(error))
    os._exit(getattr(error, "errno", None) or (int(found[1]) if found else 1))
