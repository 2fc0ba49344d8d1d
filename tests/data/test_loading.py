"""Loader processes that fail: one line, an exit status, the last checkpoint kept, no hang."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, Patch, at_call, make_lab, outcome, send, steps
from torch import Tensor

from mcan.data.dataset import VQADataset
from mcan.engine.trainer import Trainer
from mcan.errors import DataError


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(tmp_path_factory.mktemp("lab"))


def kill_a_worker(number: int) -> Callable[[], None]:
    """Kill the newest: while an evaluation runs, those that trained may not have ended yet."""
    return lambda: os.kill(max(int(c.pid or 0) for c in multiprocessing.active_children()), number)


def fail_to_read(error: Exception) -> Patch:
    """The second batch that a process reads is not read."""

    def fail() -> None:
        raise error

    return at_call(VQADataset, "__getitem__", 2, fail)


def fail_to_share(reason: str) -> Patch:
    """As torch fails if a tensor of a batch cannot be put into shared memory."""

    def share(self: Any, *_: Any) -> Any:
        raise RuntimeError(f"unable to write to file </torch_1_2_3>: {reason}")

    def patch() -> None:
        torch.UntypedStorage._share_fd_cpu_ = share  # type: ignore[method-assign]

    return patch


def few_descriptors(more: int) -> Patch:
    """As under `ulimit -n`: `more` than are open when a run's first batch is about to be read."""

    def limit() -> None:
        soft = len([*Path("/proc/self/fd").iterdir()]) - 1 + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))

    return at_call(Trainer, "_train_epoch", 1, limit)


def break_off_a_batch() -> None:
    """As if the worker died between announcing a batch and handing over its memory."""

    def rebuild(*_: Any) -> Any:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    torch.multiprocessing.reductions.rebuild_storage_fd = rebuild


INPUT_OUTPUT = OSError(errno.EIO, "Input/output error")
READ = r"a batch could not be read: \[Errno 5\] Input/output error$"
FAILED = r"a process that prepares batches failed \(.*{}.*\); use data.workers=0, or .*--shm-size"
KILLED, DESCRIPTORS = FAILED.format("SIGKILL"), FAILED.format("Too many open files")
FAILURES: dict[str, tuple[Patch, int, int, str]] = {
    # name: (failure, workers, exit status, message)
    "killed": (at_call(Trainer, "update", 8, kill_a_worker(signal.SIGKILL)), 2, 1, KILLED),
    "in_an_evaluation": (at_call(Tensor, "topk", 2, kill_a_worker(signal.SIGKILL)), 2, 1, KILLED),
    "handing_over": (break_off_a_batch, 2, 1, FAILED.format("")),
    "shm_full": (fail_to_share("No space left on device (28)"), 2, 1, FAILED.format("No space")),
    "few_descriptors": (few_descriptors(14), 2, 1, DESCRIPTORS),
    "no_descriptors": (few_descriptors(4), 2, 1, DESCRIPTORS),
    "disk": (fail_to_read(INPUT_OUTPUT), 0, 1, READ),
    "disk_in_a_worker": (fail_to_read(INPUT_OUTPUT), 2, 1, READ),
    "data": (fail_to_read(DataError("x.h5: bad row")), 2, 2, r"x.h5: bad row$"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_is_one_line_and_the_run_can_be_resumed(lab, case):
    patch, workers, status, sentence = FAILURES[case]
    small = "evaluation.batch_size=1"  # so that batches are missing when a worker dies
    result = lab.train(case, small, f"data.workers={workers}", patch=patch)
    assert result.status == status, result.err
    (line,) = result.errors()
    assert re.match(f"error: {sentence}", line), line
    assert "Traceback" not in result.err
    assert lab.resume(case).status == 0
    assert steps(lab, case) == [18]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_signal_ends_the_wait_for_a_batch(lab, workers):
    """A storage that hangs must not hold up a scheduler: the last step is saved."""

    def patch() -> None:
        original = VQADataset.__getitem__

        def read(self: VQADataset, rows: Any) -> Any:
            if 40 in list(rows):
                threading.Timer(0.5, send(signal.SIGTERM)).start()  # without effect in a worker
                time.sleep(1000)
            return original(self, rows)

        VQADataset.__getitem__ = read  # type: ignore[method-assign]

    def stop_soon() -> None:
        patch()
        if workers:
            threading.Timer(4, send(signal.SIGTERM)).start()

    name = f"hanging_{workers}"
    result = lab.train(name, f"data.workers={workers}", patch=stop_soon)
    assert result.status == 0, result.err
    assert "stopped; continue with" in result.err
    assert lab.resume(name).status == 0
    if not (lab.run("calm") / "config.yaml").exists():
        assert lab.train("calm").status == 0
    found, expected = outcome(lab.run(name)), outcome(lab.run("calm"))
    assert found["metrics"] == expected["metrics"]
