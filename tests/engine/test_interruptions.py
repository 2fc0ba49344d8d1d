"""Signals, full disks and diverging losses: a message, an exit status, and nothing lost."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from typing import Any

import pytest
import runs
import torch
from runs import Lab

import mcan.build
from mcan.data.dataset import VQADataset
from mcan.engine.trainer import Trainer
from mcan.nn.mcan import MCAN

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return runs.make_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def expected(lab: Lab) -> Any:
    assert lab.train("uninterrupted").status == 0
    return runs.outcome(lab.run("uninterrupted"))


def assert_resumed(lab: Lab, name: str, expected: Any, ignore: Sequence[str] = ("name",)) -> None:
    assert lab.resume(name).status == 0
    runs.assert_same(runs.outcome(lab.run(name)), expected, ignore=ignore)


@pytest.mark.parametrize(
    ("sign", "step"),
    [
        *(("SIGTERM", 8), ("SIGINT", 8), ("SIGHUP", 8)),
        *(pytest.param("SIGUSR1", step, marks=SLOW) for step in (1, 18)),
    ],
)
def test_signal_in_a_step(lab, expected, sign, step):
    name, number = f"{sign}_{step}", signal.Signals[sign]
    arguments = [f"name={name}", "data.train=[train]", "data.workers=0"]
    stop = runs.at_call(Trainer, "update", step, runs.send(number))
    result = lab.execute("train", [lab.config, *arguments], stop)
    assert result.status == (130 if sign == "SIGINT" else 0), result.err
    assert runs.steps(lab, name) == [step]  # the step in progress was finished, and no other begun
    last = result.err.splitlines()[-1]
    assert last.startswith("stopped; continue with: python train.py config.yaml ")
    # What it says can be typed in.
    command = shlex.split(last.removeprefix("stopped; continue with: python train.py "))
    assert lab.execute("train", command).status == 0
    runs.assert_same(runs.outcome(lab.run(name)), expected)


@pytest.mark.parametrize(
    ("where", "number", "status"),
    [
        (("in", mcan.build, "predict", 2), signal.SIGTERM, 0),
        (("in", Trainer, "_write_checkpoint", 3), signal.SIGTERM, 0),
        # A scheduler and Ctrl-C signal all processes of a group, loader processes too.
        (("group", Trainer, "update", 8), signal.SIGTERM, 0),
        (("group", torch.Tensor, "topk", 5), signal.SIGINT, 130),
    ],
    ids=["evaluation", "checkpoint", "workers_in_a_step", "workers_in_an_evaluation"],
)
def test_signal_elsewhere(lab, expected, where, number, status, request):
    name, (whom, *call) = request.node.callspec.id, where
    workers = "data.workers=2" if whom == "group" else "data.workers=0"
    stop = runs.send(number, group=whom == "group")
    result = lab.train(name, workers, patch=runs.at_call(*call, stop))
    assert result.status == status, result.err
    assert "stopped; continue with" in result.err
    assert "Traceback" not in result.err
    assert_resumed(lab, name, expected, ignore=("name", "workers"))


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGTERM, 0, "stopped before training began\n"), (signal.SIGINT, 130, "interrupted\n")],
    ids=["SIGTERM", "SIGINT"],
)
def test_signal_before_training_ends_at_once(lab, number, status, said):
    """A user who wants to stop need not wait until large files are read."""
    name = f"early_{status}"
    result = lab.train(name, patch=runs.at_call(Trainer, "fit", 1, runs.send(number)))
    assert result.status == status, result.err
    assert result.err.endswith(said)
    assert "Traceback" not in result.err
    assert not list(lab.run(name).glob("checkpoints/*"))


def test_second_interrupt_ends_at_once(lab, expected):
    def twice() -> None:
        runs.send(signal.SIGINT)()
        runs.send(signal.SIGINT)()

    result = lab.train("impatient", patch=runs.at_call(Trainer, "update", 8, twice))
    assert result.status == 130
    assert result.err.endswith("interrupted\n")
    assert "Traceback" not in result.err
    assert runs.steps(lab, "impatient") == [6]
    assert_resumed(lab, "impatient", expected)


def test_stopped_before_the_log_grows(lab, expected):
    """The log was cut on resume, and nothing was added to it before the next checkpoint."""
    assert lab.train("shorter", patch=runs.at_call(Trainer, "update", 9, runs.die)).status == -9
    stop = runs.at_call(Trainer, "update", 1, runs.send(signal.SIGTERM))
    assert lab.resume("shorter", patch=stop).status == 0
    assert runs.steps(lab, "shorter") == [7]
    assert_resumed(lab, "shorter", expected)


def test_disk_full_while_writing_a_checkpoint(lab, expected):
    """At step 10, when checkpoints of the steps before lie there; a checkpoint has 50 kB."""
    fill = runs.at_call(Trainer, "update", 9, lambda: runs.no_file_above(20_000))
    result = lab.train("full", patch=fill)
    folder = lab.run("full") / "checkpoints"
    assert result.status == 1
    (line,) = result.errors()
    assert line.startswith("error: runs/full/checkpoints/step_00000010.pt: the checkpoint could")
    assert line.endswith("free some space and continue with --resume")
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "step_00000006.pt"]
    assert runs.load(folder / "step_00000006.pt")["position"]["step"] == 6
    assert_resumed(lab, "full", expected)


def ignored_signal() -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    runs.at_call(Trainer, "update", 8, runs.send(signal.SIGHUP))()


def test_an_ignored_signal_does_not_end_a_run(lab, expected):
    assert lab.train("ignored", patch=ignored_signal).status == 0
    runs.assert_same(runs.outcome(lab.run("ignored")), expected)


@pytest.mark.parametrize(
    ("step", "kept", "sentence"),
    [
        # The gradient spoils the weights, which show in the loss of the next step, or when they
        # are about to be written.
        (3, [], "the loss is no longer a finite number by step 4; no checkpoint was written yet"),
        (8, [6], "a weight is no longer a finite number by step 10; the last good checkpoint is "),
    ],
)
def test_divergence(lab, step, kept, sentence):
    name = f"diverged_{step}"
    result = lab.train(name, patch=runs.poison(step))
    assert result.status == 1
    (line,) = result.errors()
    assert line.startswith(f"error: {sentence}")
    assert "try a lower optimizer.lr" in line
    assert runs.steps(lab, name) == kept
    if kept:
        assert f"{lab.run(name).relative_to(lab.folder)}/checkpoints/step_00000006.pt" in line
    before = runs.contents(lab.run(name) / "checkpoints")
    assert lab.resume(name, patch=runs.poison(step - sum(kept))).status == 1
    assert runs.contents(lab.run(name) / "checkpoints") == before


OOM: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]
LESS = "out of memory; raise train.accumulation or lower train.batch_size (evaluation.batch_size)"
UNSURE = RuntimeError("x is not deterministic, but 'torch.use_deterministic_algorithms'. You can")
FAILURES: list[tuple[Any, str, Exception, str]] = [
    *((Trainer, "_backward", error, LESS) for error in OOM),
    (torch.optim.Adam, "step", OOM[1], LESS),
    (VQADataset, "__getitem__", MemoryError(), LESS),
    (torch.Tensor, "topk", OOM[0], LESS),
    (MCAN, "to", OOM[0], LESS),
    (torch, "tensor", OOM[0], "images.h5: 0.0 GiB do not fit into the memory of cpu; use data.r"),
    (Trainer, "_backward", UNSURE, "x is not deterministic, but 'torch.use_deterministic_algor"),
]


@pytest.mark.parametrize(("owner", "method", "error", "sentence"), FAILURES)
def test_failures_of_torch_name_keys_and_leave_the_name_free(lab, owner, method, error, sentence):
    def fail() -> None:
        raise error

    options = ["train.checkpoint_every=null", *["data.residency=device"] * (owner is torch)]
    result = lab.train("oom", *options, patch=runs.at_call(owner, method, 1, fail))
    assert result.status in (1, 2)
    (line,) = result.errors()
    assert line.startswith(f"error: {sentence}")
    assert runs.steps(lab, "oom") == []
